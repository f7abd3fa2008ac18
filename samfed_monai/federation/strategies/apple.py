"""APPLE's server: it keeps every site's core model and hands each site those of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from samfed_monai.federation.envelope import Envelope, Kind
from samfed_monai.federation.sharing.apple import PLACE, PRIOR, core_name
from samfed_monai.federation.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.federation.server import Server

_COUNTS = "counts"


class Apple(FedAvg):
    """Core models go to all sites, each learns how much of which it takes (APPLE, Luo and Wu, arXiv 2110.08394).

    The site's side is :class:`AppleSharing`. From the second round on a site is sent the core models of the ``N - 1``
    others and the prior ``p_0``, the sites' shares of all images; its own it has. Sites that have not answered yet
    stand in the prior with the mean of the others' numbers, and with the weights before round 0. The round before
    anybody's number is known sends those weights.

    **Bytes**: ``N (N - 1)`` models down a round, where FedAvg sends ``2 N``, the new model once more to be scored;
    ``N`` up, as there. Memory and each stored round at the server: ``N`` models. With LoRA alone shared that is little.

    The server's own model, for hospitals that take no part, is the mean of the core models: a site's own with its
    shares at the prior.

    Example::

        "strategy": {"_target_": "samfed_monai.federation.Apple"}
    """

    personal = True
    one_network = True

    def attach(self, server: Server) -> Apple:
        super().attach(server)
        self._first = {name: tensor.detach().cpu().clone() for name, tensor in server.weights.items()}
        self._cores: dict[str, dict[str, Tensor]] = {}
        self._counts: dict[str, int] = {}
        return self

    def prior(self) -> Tensor:
        """``p_0``: each site's share of all images, (N,) float32, in the order of :attr:`Server.sites`."""
        mean = sum(self._counts.values()) / len(self._counts)
        counts = torch.tensor([float(self._counts.get(site, mean)) for site in self.server.sites])
        return counts / counts.sum()

    def configure(self, round: int) -> dict[str, Envelope]:
        plain = super().configure(round)
        sites = self.server.sites
        tensors = {
            site: self._mixture(place) if self._counts else plain[site].tensors for place, site in enumerate(sites)
        }
        return {site: self._message(site, round, Kind.WEIGHTS, tensors[site], purpose="distil") for site in sites}

    @torch.no_grad()
    def accept(self, round: int, site: str, update: Envelope) -> None:
        old, guard = self._cores.get(site, self._first), self.server.guard
        core = guard.clipped(update.tensors, old) if guard else dict(update.tensors)
        super().accept(round, site, update)
        self._cores[site], self._counts[site] = core, update.n

    def state_dict(self) -> dict[str, Tensor]:
        counts = torch.tensor([self._counts.get(site, 0) for site in self.server.sites])
        places = {site: place for place, site in enumerate(self.server.sites)}
        cores = {core_name(places[s], name): t for s, core in self._cores.items() for name, t in core.items()}
        return {_COUNTS: counts, **cores}

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self._cores, self._counts = {}, {}
        for place, (site, count) in enumerate(zip(self.server.sites, state.get(_COUNTS, torch.zeros(0)), strict=False)):
            if int(count):
                self._counts[site] = int(count)
                self._cores[site] = {name: state[core_name(place, name)] for name in self.global_weights}

    def _mixture(self, place: int) -> dict[str, Tensor]:
        others = {
            core_name(number, name): tensor
            for number, site in enumerate(self.server.sites)
            if number != place
            for name, tensor in self._cores.get(site, self._first).items()
        }
        return {PRIOR: self.prior(), PLACE: torch.tensor(place), **others}
