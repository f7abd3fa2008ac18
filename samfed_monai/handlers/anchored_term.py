"""The term that holds a site's own weights near weights that are given to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from samfed_monai.handlers.term import Term

if TYPE_CHECKING:
    from torch import Tensor, nn


class AnchoredTerm(Term):
    """``lambda / 2 |v - w|^2`` over trained parameters, ``w`` given by :meth:`hold` (Ditto, arXiv 2012.04221, h_k).

    Unlike ``ProximalTerm`` it does not take the weights that a round starts with: a personal network starts from
    its own and is drawn to the global ones. Zero as long as nothing is held.

    Args:
        mu: Ditto's lambda. 0 is training alone; the larger, the nearer to the global network.
        name: under which ``1/2 |v - w|^2`` is logged.

    Example::

        {"_target_": "samfed_monai.handlers.AnchoredTerm", "name": "ditto", "mu": 0.1}
    """

    unlabelled = False

    def __init__(self, *, mu: float = 0.1, name: str = "anchored") -> None:
        super().__init__(name=name, weight=mu, schedule="constant", fraction=0.0)
        self._held: dict[str, Tensor] = {}

    def hold(self, weights: Mapping[str, Tensor] | None) -> None:
        """Draws the network's parameters of these names to ``weights``; ``None`` lets go."""
        self._held = {name: tensor.detach().clone() for name, tensor in (weights or {}).items()}

    def value(self, guidance: Any, engine: Any) -> Tensor:
        """``1/2 |v - w|^2``."""
        squares = [
            (weight - self._held[name]).square().sum()
            for name, weight in _trained(engine.network)
            if name in self._held
        ]
        return torch.stack(squares).sum() / 2 if squares else engine.state.output["loss"].new_zeros(())


def _trained(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    named = ((name.removeprefix("module."), weight) for name, weight in network.named_parameters())
    return [(name, weight) for name, weight in named if weight.requires_grad and weight.is_floating_point()]
