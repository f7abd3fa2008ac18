"""What a server does with the sites' answers: a strategy knows nothing of how messages travel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from samfed_monai.federation.envelope import Envelope, Kind

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.federation.server import Server


class Strategy(ABC):
    """Server side of a round: :meth:`configure`, then :meth:`accept` for each answer, :meth:`finish`, :meth:`refine`.

    The constructor takes options, as a bundle's JSON names them (``strategy``); :meth:`attach` binds the run. Answers
    are taken one by one so that no more than one of them has to be in memory. A strategy does not evaluate, store or
    send anything.
    """

    #: The server's model, which is stored, and evaluated at sites that take no part; names to tensors on the CPU.
    #: Empty where the server has none.
    global_weights: dict[str, Tensor]

    #: Whether the server has a model at all; without one :attr:`global_weights` stays empty.
    has_model: bool = True

    #: Whether each site keeps a network of its own, which is then what is evaluated there.
    personal: bool = False

    #: What travels, in the words of ``results.json``: ``weights``, ``predictions``, ``prototypes`` or ``none``.
    exchange_name: str = "weights"

    #: What sites must answer with; ``None`` takes every kind of message.
    answer_kind: Kind | None = None

    server: Server

    @property
    def one_network(self) -> bool:
        """Whether all sites must have the same network, because their weights meet."""
        return not self.personal

    @property
    def keeps_states(self) -> bool:
        """Whether going back to the best round takes more than :attr:`global_weights`: states of sites or server."""
        return self.personal or self.server.keeps_parts

    def attach(self, server: Server) -> Strategy:
        """Binds the run, before anything else is called; returns itself.

        Raises:
            Refused: the run has not what this strategy needs.
        """
        self.server = server
        self._take(server.weights)
        return self

    def require_names(self, shared: Sequence[str]) -> None:  # noqa: B027 - most strategies take any network
        """Looks at the names of what sites share before anything is computed.

        Raises:
            Refused: options of this strategy do not fit them.
        """

    def requirements(self) -> dict[str, str]:
        """What every site must confirm before round 0, and in each round that it trains, as ``extra`` of a message.

        Empty asks for nothing. It is asked again because a site may have come back with other data.
        """
        return {}

    @abstractmethod
    def configure(self, round: int) -> dict[str, Envelope]:
        """The message for each site; its tensors stay as they are until the first answer of the next round."""

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        """Names, shapes and dtypes of a site's answer; ``None`` where it answers with numbers only."""
        return self.global_weights

    @abstractmethod
    def accept(self, round: int, site: str, update: Envelope) -> None:
        """Takes in one checked answer.

        Raises:
            MessageRefused: this answer is not used; what was accepted before it stays.
        """

    def finish(self, round: int) -> None:  # noqa: B027 - a strategy may have nothing to add
        """Makes the accepted answers into what the next round starts from."""

    def refine(self, round: int) -> None:  # noqa: B027 - most servers do not train
        """What the server itself trains once the answers are in."""

    def aggregate(self, round: int, updates: Mapping[str, Envelope]) -> None:
        """Accepts ``updates`` in the order of the sites' names, finishes and refines the round."""
        for site in sorted(updates):
            self.accept(round, site, updates[site])
        self.finish(round)
        self.refine(round)

    def evaluation(self, site: str) -> dict[str, Tensor] | None:
        """The model that a site evaluates; ``None`` is its own network."""
        return None if self.personal and site in self.server.sites else self.global_weights

    def state_dict(self) -> dict[str, Tensor]:
        """What the next round starts from beside :attr:`global_weights`; empty for most."""
        return {}

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Goes back to a stored round.

        Args:
            weights: its :attr:`global_weights`.
            state: what :meth:`state_dict` returned then.
        """
        self._take(weights)

    def _take(self, weights: Mapping[str, Tensor]) -> None:
        taken = weights if self.has_model else {}
        self.global_weights = {name: tensor.detach().cpu().clone() for name, tensor in taken.items()}

    def _message(self, site: str, round: int, kind: Kind, tensors: Mapping[str, Tensor], **extra: str) -> Envelope:
        server, extra = self.server, {**self.requirements(), **extra}
        return Envelope(kind, site, round, server.rounds, server.seed, tensors=dict(tensors), extra=extra)
