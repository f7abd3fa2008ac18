"""No training at all: how good the networks are as they come."""

from __future__ import annotations

from samfed_monai.federation.envelope import Envelope, Kind
from samfed_monai.federation.strategies.local_only import LocalOnly


class Untrained(LocalOnly):
    """Sites score the network that they are prepared with; a round trains nothing, and one round is enough.

    Example::

        "strategy": {"_target_": "samfed_monai.federation.Untrained"}
    """

    def configure(self, round: int) -> dict[str, Envelope]:
        return {site: self._message(site, round, Kind.METRICS, {}, purpose="keep") for site in self.server.sites}
