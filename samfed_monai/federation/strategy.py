"""What a server does with the sites' answers: a strategy knows nothing of how messages travel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.federation.envelope import Envelope


class Strategy(ABC):
    """Server side of a round: :meth:`configure`, then :meth:`accept` for each answer, then :meth:`finish`.

    :meth:`aggregate` does the last two at once. Answers are taken one by one so that no more than one of them has to
    be in memory. A strategy does not evaluate, store or send anything.
    """

    #: The model that is evaluated and stored; names to tensors on the CPU.
    global_weights: dict[str, Tensor]

    @abstractmethod
    def configure(self, round: int) -> dict[str, Envelope]:
        """The message for each site; its tensors stay as they are until the first answer of the next round."""

    @abstractmethod
    def accept(self, round: int, site: str, update: Envelope) -> None:
        """Takes in one checked answer.

        Raises:
            MessageRefused: this answer is not used; what was accepted before it stays.
        """

    @abstractmethod
    def finish(self, round: int) -> None:
        """Makes the accepted answers into the next :attr:`global_weights`."""

    def aggregate(self, round: int, updates: Mapping[str, Envelope]) -> None:
        """Accepts ``updates`` in the order of the sites' names, and finishes the round."""
        for site in sorted(updates):
            self.accept(round, site, updates[site])
        self.finish(round)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next round starts from."""
        return dict(self.global_weights)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to what :meth:`state_dict` returned."""
        self.global_weights = dict(state)
