"""Baselines without exchange: each site trains alone on its own images and the public set, or not at all."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from samfed_monai.protocol.message import Kind, Message
from samfed_monai.protocol.strategy import ClientAlgorithm, Exchange, Strategy


class NothingShared(ClientAlgorithm):
    """Sends only metrics and receives nothing: the site's side of ``LocalOnly`` and ``Untrained``.

    Example::

        "client_algorithm": {"_target_": "samfed_monai.methods.local_only.NothingShared"}
    """

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def share(self) -> tuple[Kind, dict[str, Tensor]]:
        return Kind.METRICS, {}


class LocalOnly(Strategy):
    """Sites take the same steps as in every heterogeneous method, and send only their scores.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.local_only.LocalOnly"}
    """

    exchange = Exchange(Kind.METRICS, own_networks=True, alike=False, server_model=False)

    def configure(self, round: int) -> dict[str, Message]:
        return {site: self.message(site, round, Kind.METRICS, {}, purpose="distil") for site in self.server.sites}

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        return None

    def accept(self, round: int, site: str, update: Message) -> None:
        """Does nothing: updates have only metrics."""


class Untrained(LocalOnly):
    """Sites score their initial network without any training; one round is enough.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.local_only.Untrained"}
    """

    def configure(self, round: int) -> dict[str, Message]:
        return {site: self.message(site, round, Kind.METRICS, {}, purpose="keep") for site in self.server.sites}
