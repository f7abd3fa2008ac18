"""FedProx (arXiv 1812.06127): a proximal term that keeps a site's weights near the global ones."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor

from samfed_monai.handlers.rounds import in_federation
from samfed_monai.handlers.term import Term
from samfed_monai.protocol.strategy import trained_weights


class ProximalTerm(Term):
    """``mu / 2 |w - w_G|^2`` over all trained parameters, not over buffers (FedProx, Li et al., arXiv 1812.06127).

    ``w_G`` are the weights as the round starts; a trainer on its own, without rounds, takes those at the start of each
    epoch. Its gradient is ``mu (w - w_G)``: zero at a round's first step.

    Args:
        mu: how strongly; the paper tries 0.001, 0.01, 0.1 and 1.
        name: under which ``1/2 |w - w_G|^2`` is logged.

    Example::

        {"_target_": "samfed_monai.methods.fedprox.ProximalTerm", "mu": 0.01}
    """

    unlabelled = False

    def __init__(self, *, mu: float = 0.01, name: str = "proximal") -> None:
        super().__init__(name=name, weight=mu)
        self._anchor: list[Tensor] = []

    def attach(self, engine: Any) -> None:
        """Binds to the start of a round as well."""
        engine.add_event_handler(Events.STARTED, self.remember)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        super().attach(engine)

    @torch.no_grad()
    def remember(self, engine: Any) -> None:
        """Takes the network's weights as ``w_G``."""
        weights: list[Tensor] = list(trained_weights(engine.network).values())
        if len(self._anchor) == len(weights):
            torch._foreach_copy_(self._anchor, weights)
        else:
            self._anchor = [weight.detach().clone() for weight in weights]

    def _epoch_started(self, engine: Any) -> None:
        if not in_federation(engine):
            self.remember(engine)

    def value(self, guidance: Any, engine: Any) -> Tensor:
        """``1/2 |w - w_G|^2``."""
        weights = list(trained_weights(engine.network).values())
        squares = [(weight - old).square().sum() for weight, old in zip(weights, self._anchor, strict=True)]
        return torch.stack(squares).sum() / 2
