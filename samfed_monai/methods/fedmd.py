"""FedMD (arXiv 1910.03581): sites learn from everybody's mean soft predictions on the public set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from samfed_monai.methods.heterogeneous import MASKS
from samfed_monai.protocol.message import Envelope, Kind
from samfed_monai.protocol.strategy import Exchange, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.protocol.strategy import Server


class Consensus(Strategy):
    """The mean of the sites' soft masks of ``D_p`` goes back to all (FedMD: Li & Wang, arXiv 1910.03581, algorithm 1).

    Every site counts alike and every image is learned (``sharing#gate: "always"``); the server has no network. FedMD's
    digest on the consensus and its revisit of the private data are this package's public phase and local epoch; the
    public labels, which FedMD used before its first round, stay in the loss of the public phase here, as in every row.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedmd.Consensus"}
    """

    exchange = Exchange(Kind.SOFT_MASKS, own_networks=True, alike=False, server_model=False)

    def attach(self, server: Server) -> Consensus:
        super().attach(server)
        self.bench = server.open_bench("fedmd")
        self.masks: Tensor | None = None
        self._sum: Tensor | None = None
        self._like: Tensor | None = None
        self._count = 0
        return self

    def requirements(self) -> dict[str, str]:
        return {"public": self.bench.public_hash}

    def configure(self, round: int) -> dict[str, Envelope]:
        self._sum, self._count = None, 0
        kind, tensors = (Kind.METRICS, {}) if self.masks is None else (Kind.SOFT_MASKS, {MASKS: self.masks})
        return {site: self._message(site, round, kind, tensors, purpose="distil") for site in self.server.sites}

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        if self._like is None:
            self._like = self.bench.predictor.like(self.bench.network)
        return {MASKS: self._like}

    def accept(self, round: int, site: str, update: Envelope) -> None:
        masks = update.tensors[MASKS].to(torch.int32)
        self._sum = masks if self._sum is None else self._sum + masks
        self._count += 1

    def finish(self, round: int) -> None:
        if self._sum is not None:
            self.masks = (self._sum.double() / self._count).round().to(torch.uint8)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.masks is None else {MASKS: self.masks}

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self.masks = state.get(MASKS)
