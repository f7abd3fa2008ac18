"""FedProx (arXiv 1812.06127): a proximal term keeps a site's weights near the global ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samfed_monai.handlers.rounds import when_round_starts
from samfed_monai.handlers.term import Term
from samfed_monai.protocol.strategy import trained_weights


class ProximalTerm(Term):
    """``mu / 2 |w - w_G|^2`` over all trained parameters, without buffers (FedProx, Li et al., arXiv 1812.06127).

    ``w_G`` are the weights at the start of the round, or of each epoch for a trainer without rounds. The gradient is
    ``mu (w - w_G)``: zero at a round's first step. A part that is frozen while another is trained
    (:class:`samfed_monai.handlers.parts_in_turn.PartsInTurn`) counts in the value but gets no gradient.

    Args:
        mu: factor of the term; the paper tries 0.001, 0.01, 0.1 and 1.
        name: name under which ``1/2 |w - w_G|^2`` is logged.

    Example::

        {"_target_": "samfed_monai.methods.fedprox.ProximalTerm", "mu": 0.01}
    """

    unlabelled, of_server = False, True

    def __init__(self, *, mu: float = 0.01, name: str = "proximal") -> None:
        super().__init__(name=name, weight=mu)
        self._anchor: list[tuple[Tensor, Tensor]] = []

    def attach(self, engine: Any) -> None:
        """Also binds :meth:`remember` to the start of a round."""
        when_round_starts(engine, self.remember)
        super().attach(engine)

    @torch.no_grad()
    def remember(self, engine: Any) -> None:
        """Stores the network's weights as ``w_G``."""
        self._anchor = [(weight, weight.detach().clone()) for weight in trained_weights(engine.network).values()]

    def value(self, guidance: Any, engine: Any) -> Tensor:
        """``1/2 |w - w_G|^2``."""
        return torch.stack([(weight - old).square().sum() for weight, old in self._anchor]).sum() / 2
