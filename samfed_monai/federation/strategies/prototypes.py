"""FedProto: sites exchange the mean feature of each class and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.federation.envelope import Envelope, Kind
from samfed_monai.federation.sharing.prototypes import COUNTS, MEANS
from samfed_monai.federation.strategies.base import Strategy
from samfed_monai.networks.intake import feature_width

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.federation.server import Server


class Prototypes(Strategy):
    """The mean of the sites' prototypes, weighted by their pixels, goes back to all (FedProto, equation 6).

    The server has no network. All sites' features must have one width, which need not mean one network.

    Args:
        classes: the background included.

    Raises:
        Refused: at :meth:`attach`, sites whose features differ in width; both are named.

    Example::

        "strategy": {"_target_": "samfed_monai.federation.Prototypes"}
    """

    has_model = False
    personal = True
    exchange_name = "prototypes"
    answer_kind = Kind.PROTOTYPES

    def __init__(self, *, classes: int = 2) -> None:
        self.classes = classes

    def attach(self, server: Server) -> Prototypes:
        super().attach(server)
        widths = {site: feature_width(server.networks[site]()) for site in server.sites}
        first = server.sites[0]
        for site, width in widths.items():
            if width != widths[first]:
                found = f"{widths[first]} channels at {first}, {width} at {site}"
                mend = "choose networks of one decoder width (all deeplabv3plus_* have 256), or another variant"
                raise Refused([Problem("sites", found=found, expected="features of one width", mend=mend)])
        self._like = {MEANS: torch.zeros(self.classes, widths[first]), COUNTS: torch.zeros(self.classes)}
        self.means: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] | None = None
        return self

    def configure(self, round: int) -> dict[str, Envelope]:
        self._sums = None
        kind = Kind.PROTOTYPES if self.means else Kind.METRICS
        return {site: self._message(site, round, kind, self.means, purpose="distil") for site in self.server.sites}

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        return self._like

    def accept(self, round: int, site: str, update: Envelope) -> None:
        counts = update.tensors[COUNTS].clamp(min=0)
        sums = {MEANS: update.tensors[MEANS] * counts[:, None], COUNTS: counts}
        old = self._sums
        self._sums = sums if old is None else {name: old[name] + value for name, value in sums.items()}

    def finish(self, round: int) -> None:
        if self._sums is not None:
            counts = self._sums[COUNTS]
            self.means = {MEANS: self._sums[MEANS] / counts.clamp(min=1e-6)[:, None], COUNTS: counts}

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.means)

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self.means = dict(state)
