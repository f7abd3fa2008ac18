"""No exchange at all: what each site reaches alone, with the public set that it has anyway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from samfed_monai.federation.envelope import Envelope, Kind
from samfed_monai.federation.strategies.base import Strategy

if TYPE_CHECKING:
    from torch import Tensor


class LocalOnly(Strategy):
    """Sites take the same steps as in every heterogeneous row, and nothing travels but their scores.

    Example::

        "strategy": {"_target_": "samfed_monai.federation.LocalOnly"}
    """

    has_model = False
    personal = True
    exchange_name = "none"
    answer_kind = Kind.METRICS

    def configure(self, round: int) -> dict[str, Envelope]:
        return {site: self._message(site, round, Kind.METRICS, {}, purpose="distil") for site in self.server.sites}

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        return None

    def accept(self, round: int, site: str, update: Envelope) -> None:
        """Numbers only: there is nothing to take in."""
