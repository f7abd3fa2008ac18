"""What a site gives and takes when it keeps a network of its own: the counterpart of a strategy, at the site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from samfed_monai.federation.envelope import Kind

if TYPE_CHECKING:
    from torch import Tensor


class Sharing(ABC):
    """Named in a bundle as ``sharing``; ``null`` there means that weights are exchanged and replaced.

    A round at such a site: :meth:`receive`, the local epoch on the site's own network, :meth:`share`.
    """

    #: SHA-256 of the public set as this site uses it; empty where none is used. The server refuses another.
    public_hash: str = ""

    @abstractmethod
    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Takes what the server sent, before the local epoch.

        Args:
            round, rounds: which round, from 0, and how many there are.
            kind: what the tensors are.
            tensors: by name; none in a round in which the server has nothing to say.

        Returns:
            Numbers to report, by name.

        Raises:
            MessageRefused: the tensors are not what this site can use.
        """

    @abstractmethod
    def share(self) -> tuple[Kind, dict[str, Tensor]]:
        """What leaves the site after the local epoch."""

    def may_share(self) -> Mapping[Kind, Mapping[str, Tensor]]:
        """What :meth:`share` may have answered: kind to names, shapes and dtypes. Anything else is refused.

        Called after :meth:`share`, for its answer.
        """
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What the next round starts from beside the network, as named tensors; empty for most."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - see state_dict
        """Puts back what :meth:`state_dict` returned, an empty one included; the network is in place already."""

    def reset(self) -> None:  # noqa: B027 - a sharing that remembers nothing has nothing to forget
        """Forgets what it remembers of the network, whose weights were put in from outside."""
