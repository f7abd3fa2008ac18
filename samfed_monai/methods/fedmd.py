"""FedMD (arXiv 1910.03581): sites learn from the mean of all sites' soft predictions on the public set."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor

from samfed_monai.core.validators import one_of, require
from samfed_monai.methods.heterogeneous import MASKS
from samfed_monai.protocol.message import Kind, Message
from samfed_monai.protocol.strategy import Exchange, Server, Strategy


class Average(str, Enum):
    """The quantity that is averaged over sites."""

    PROBABILITIES = "probabilities"
    SCORES = "scores"


_LEAST_PROBABILITY = 0.5 / 255  # probability of a mask value of 0: half an 8-bit step, to keep its score finite


def scores_of(masks: Tensor) -> Tensor:
    """Returns class scores (logits) of 8-bit masks, up to a constant per pixel.

    0 and 255 are read as probabilities half an 8-bit step from 0 and 1, which limits scores of one class to +- 6.23.

    Args:
        masks: (N, C, h, w) uint8; C = 1 is the foreground.

    Returns:
        (N, C, h, w) float64: ``log p - log(1 - p)`` for C = 1, ``log p`` for C > 1.
    """
    levels = (torch.arange(256, dtype=torch.float64) / 255).clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return (levels.logit() if masks.shape[1] == 1 else levels.log())[masks.long()]


def masks_of(scores: Tensor) -> Tensor:
    """Returns mean scores as 8-bit masks, (N, C, h, w) uint8: their sigmoid for C = 1, their softmax for C > 1."""
    probabilities = scores.sigmoid() if scores.shape[1] == 1 else scores.softmax(dim=1)
    return (probabilities * 255).round().to(torch.uint8)


class Consensus(Strategy):
    """Sends the mean of the sites' soft masks of ``D_p`` to all (FedMD: Li & Wang, arXiv 1910.03581, algorithm 1).

    **What is averaged.** ``scores`` is the paper's: in algorithm 1 sites send class scores, which are averaged. The
    softmax of mean scores is the normalised geometric mean of probabilities, so the same 8-bit masks are sent and no
    more bytes (:func:`scores_of`). ``probabilities`` is ours, the arithmetic mean; it is the default because the
    results of this project were made with it. They differ where sites disagree: confident sites weigh more in scores.

    All sites count equally and every image is learned (``client_algorithm#gate: "always"``); the server has no network.
    FedMD's digest on the consensus and its revisit of the private data are this package's public phase and local epoch.
    FedMD used the public labels before its first round only; here they stay in the loss of the public phase, as in
    every method.

    Args:
        average: ``probabilities`` or ``scores``.
        exchange: ``predictions``; the server has no network whose weights could be sent.

    Raises:
        Refused: another value of either.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedmd.Consensus", "average": "scores"}
    """

    exchange = Exchange(Kind.SOFT_MASKS, own_networks=True, alike=False, server_model=False)
    masks: Tensor | None
    _sum: Tensor | None

    def __init__(self, *, average: str = "probabilities", exchange: str = "predictions") -> None:
        hint = "remove exchange, or choose the variant hssf, whose server has a network"
        require(
            one_of("strategy#average", average, Average), one_of("strategy#exchange", exchange, ["predictions"], hint)
        )
        self.average = Average(average)

    def attach(self, server: Server) -> Strategy:
        self.algorithm = server.make_client_algorithm("fedmd")
        return super().attach(server)

    def requirements(self) -> dict[str, str]:
        return {"public": self.algorithm.public_hash}

    def configure(self, round: int) -> dict[str, Message]:
        self._sum, self._count = None, 0
        kind, tensors = (Kind.METRICS, {}) if self.masks is None else (Kind.SOFT_MASKS, {MASKS: self.masks})
        return {site: self.message(site, round, kind, tensors, purpose="distil") for site in self.server.sites}

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        return {MASKS: self._like}

    @cached_property
    def _like(self) -> Tensor:
        like: Tensor = self.algorithm.predictor.like(self.algorithm.network)
        return like

    def accept(self, round: int, site: str, update: Message) -> None:
        masks = update.tensors[MASKS]
        values = scores_of(masks) if self.average is Average.SCORES else masks.to(torch.int32)
        self._sum = values if self._sum is None else self._sum + values
        self._count += 1

    def finish(self, round: int) -> None:
        if self._sum is not None:
            mean = self._sum.double() / self._count
            self.masks = masks_of(mean) if self.average is Average.SCORES else mean.round().to(torch.uint8)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.masks is None else {MASKS: self.masks}

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self.masks = state.get(MASKS)
