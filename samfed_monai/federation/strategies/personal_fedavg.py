"""FedAvg among sites that keep a network of their own beside the global one."""

from __future__ import annotations

from dataclasses import replace

from samfed_monai.federation.envelope import Envelope
from samfed_monai.federation.strategies.fedavg import FedAvg


class PersonalFedAvg(FedAvg):
    """The server of Ditto and of adaptive mixing: the mean of what sites send; each site is scored on its own network.

    What a site does with the global weights, and what it answers, is its sharing's affair (:class:`DittoSharing`,
    :class:`AdaptiveMixing`). Hospitals that take no part are scored on the mean. Bytes are those of FedAvg.

    Example::

        "strategy": {"_target_": "samfed_monai.federation.PersonalFedAvg"}
    """

    personal = True
    one_network = True

    def configure(self, round: int) -> dict[str, Envelope]:
        messages = super().configure(round)
        return {site: replace(message, extra={"purpose": "distil"}) for site, message in messages.items()}
