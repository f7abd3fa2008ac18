"""What a strategy may use at the server, handed over when it is attached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from samfed_monai.core.errors import Problem, Refused

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samfed_monai.federation.clip import UpdateGuard
    from samfed_monai.federation.sharing.public_masks import PublicMaskSharing


@dataclass(frozen=True)
class Server:
    """The server's side of a run.

    Args:
        sites: names of the sites that train.
        rounds: number of rounds.
        seed: the run's seed.
        weights: the server's network before round 0, names to tensors.
        guard: limits the norm of weight updates; ``None`` takes every finite one.
        bench: builds the server's own network with its public set: the bundle's ``sharing``, as a site has it, on the
            server's architecture. Called by strategies that train at the server, and by them only.
        networks: site to a builder of an empty network as that site has it; for strategies that need one.
        keeps_parts: whether part of the network is personal: ``weights`` are then its shared names alone, and going
            back to a stored model takes the sites' states.
    """

    sites: Sequence[str]
    rounds: int
    seed: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    guard: UpdateGuard | None = None
    bench: Callable[[], PublicMaskSharing] | None = None
    networks: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    keeps_parts: bool = False

    def open_bench(self, variant: str) -> PublicMaskSharing:
        """The server's own network with its public set.

        Args:
            variant: one that has what is missing otherwise, for the message.

        Raises:
            Refused: the bundle has no ``sharing``.
        """
        if self.bench is None:
            found, expected = "no sharing in the bundle", "a PublicMaskSharing"
            mend = f"use a variant that has one, for instance {variant}"
            raise Refused([Problem("strategy", found=found, expected=expected, mend=mend)])
        return self.bench()
