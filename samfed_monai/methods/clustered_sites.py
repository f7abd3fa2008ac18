"""Clusters of sites, ours: sites are grouped once by the colours of their images, each cluster has one model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from samfed_monai.core.validators import require, whole
from samfed_monai.data.records import different
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol.message import Kind, Message
from samfed_monai.protocol.statistics import Collected, Statistic, StatisticKind
from samfed_monai.protocol.strategy import Exchange, Server, require_least

logger = logging.getLogger(__name__)

GRAPH = "graph"


def colour_graph(image: Tensor, levels: int) -> Tensor:
    """How often which intensities lie side by side: a graph whose nodes are the levels of each colour.

    The weight of an edge is the share of all pairs of neighbouring pixels (right and below) that have those two levels,
    half of it in each direction.

    Args:
        image: (C, H, W) float in [0, 1], of more than one pixel.
        levels: nodes of each colour, at equal steps of intensity.

    Returns:
        (C, levels, levels) float64, symmetric; each colour's sums to 1.
    """
    level = (image * levels).long().clamp(0, levels - 1)
    pairs = [(level[:, :-1], level[:, 1:]), (level[:, :, :-1], level[:, :, 1:])]
    one, other = (torch.cat([pair[side].flatten(1) for pair in pairs], dim=1) for side in (0, 1))
    counts = torch.stack([torch.bincount(row, minlength=levels**2) for row in one * levels + other])
    graph = counts.double().view(-1, levels, levels)
    return (graph + graph.mT) / (2 * one.shape[1])


class ColourGraph(Statistic):
    """The mean of :func:`colour_graph` over all training images of a site, as one entry.

    Args:
        data: the site's images (:class:`~samfed_monai.bundle.SiteImages`).
        split: of them, as of its ``records``; labels are not looked at.
        transform: of one record; without random steps.
        levels: as the strategy's.

    Example::

        "statistics": {"_target_": "samfed_monai.methods.clustered_sites.ColourGraph", "data": "@images", …}
    """

    kind = StatisticKind.GRAPH

    def __init__(
        self, *, data: Any, transform: Callable[[Any], Any], split: str = "unlabelled", levels: int = 8
    ) -> None:
        self.data, self.transform, self.split, self.levels = data, transform, split, levels

    def like(self) -> Mapping[str, Tensor]:
        return {GRAPH: empty_graph(self.levels)}

    def images(self, least_images: int) -> int:
        return len(different(self.data.records(self.split)))

    def measured(self, least_images: int) -> Mapping[str, Tensor]:
        records = different(self.data.records(self.split))
        total = torch.zeros(3, self.levels, self.levels, dtype=torch.float64)
        for record in records:
            total += colour_graph(torch.as_tensor(self.transform(record)["image"]), self.levels)
        return {GRAPH: (total / max(1, len(records))).flatten()[None].float()}


def empty_graph(levels: int) -> Tensor:
    """(1, 3 levels²) float32: one entry, whose norm is clipped as a whole."""
    return torch.zeros(1, 3 * levels**2)


def grouped(descriptors: Mapping[str, Tensor], groups: int, least: int) -> dict[str, int]:
    """Sites in at most ``groups`` connected parts of a graph, none smaller than ``least``.

    The graph is the minimum spanning tree of the sites' distances; its longest edges are cut, one after the other, each
    only if it leaves no part too small: single-linkage clustering with a least size.

    Args:
        descriptors: site to (…) float, all of one shape.
        groups: >= 1.
        least: sites of a part, >= 1.

    Returns:
        Site to its part, from 0 in the order of the parts' first sites by name.
    """
    sites = sorted(descriptors)
    flat = torch.stack([descriptors[site].double().flatten() for site in sites])
    far = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").tolist()
    kept, inside = [], {0}
    while len(inside) < len(sites):  # Prim's algorithm
        length, one, other = min((far[i][j], i, j) for i in inside for j in range(len(sites)) if j not in inside)
        kept.append((length, one, other))
        inside.add(other)
    count = 1
    for edge in sorted(kept, reverse=True):
        if count < groups:
            left = [each for each in kept if each != edge]
            parts = _parts(len(sites), left)
            if min(parts.count(part) for part in set(parts)) >= least:
                kept, count = left, count + 1
    return dict(zip(sites, _parts(len(sites), kept), strict=True))


def _parts(count: int, edges: Sequence[tuple[float, int, int]]) -> list[int]:
    """Connected part of each of ``count`` nodes, numbered by their first nodes."""
    part = list(range(count))
    for _, one, other in edges:
        part = [part[one] if each == part[other] else each for each in part]
    numbers = {each: number for number, each in enumerate(dict.fromkeys(part))}
    return [numbers[each] for each in part]


class ClusteredFedAvg(FedAvg):
    """One FedAvg for each cluster of sites whose images are alike; ours.

    Clustered federated learning (Ghosh et al., arXiv 2006.04088) chooses a site's cluster by its losses in every round;
    here it is chosen once, by what the site's images look like. A site's descriptor is a graph between intensities
    (:class:`ColourGraph`), one for all its images, and the server's graph has the sites as nodes (:func:`grouped`).
    Descriptors leave under the policy for statistics of images (``privacy#statistics -> graph``): as they are, unless
    that rule has a ``clip`` and a ``noise_multiplier``, and then ``results.json`` has their epsilon. It is no default:
    noise that means anything for a whole site makes clusters of a few sites random (docs/personalised.md).

    A round: the first is FedAvg's, and brings the descriptors; so are the next, as long as too few sites have sent one
    for so many clusters. From then on a site is sent its cluster's model, and averages with its cluster alone; who
    answers for the first time later joins the cluster whose sites are nearest on average. Hospitals that take no part
    have the mean of all sites. ``largest_share`` of the update guard caps what a site weighs among all sites; among the
    few of its cluster it may weigh more. One cluster is FedAvg to the bit, and asks for no descriptor. Memory and each
    stored round: as many models as sites and clusters.

    Args:
        clusters: at the most, >= 1.
        least: sites of a cluster, at the least. 1 permits a site alone, whose model is then its own and which has
            nothing of the others from then on; the log says so. With 2 and more no cluster has a single site, and too
            few sites for that are refused before any work; where the others of a cluster do not answer in a round, its
            model is nevertheless that of the one that does.
        levels: nodes of the descriptor's graph for each colour, in [2, 32].

    Raises:
        Refused: an option out of its range; too few sites for so many clusters.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.clustered_sites.ClusteredFedAvg", "clusters": 2}
    """

    def __init__(self, *, clusters: int = 2, least: int = 2, levels: int = 8) -> None:
        require(
            whole("strategy#clusters", clusters, least=1),
            whole("strategy#least", least, least=1),
            whole("strategy#levels", levels, least=2, most=32),
        )
        self.clusters, self.least, self.levels = clusters, least, levels
        self.statistic = StatisticKind.GRAPH if clusters > 1 else None
        self.exchange = Exchange(tailored=True) if clusters > 1 else FedAvg.exchange
        self._collected = Collected(StatisticKind.GRAPH, {GRAPH: empty_graph(levels)})

    def require_sites(self, sites: Sequence[str]) -> None:
        hint = "lower strategy#clusters, or let strategy#least be 1: a cluster of one site has a model of its own"
        require_least(sites, self.clusters * self.least, f"{self.clusters} clusters of at least {self.least}", hint)

    @property
    def places(self) -> Mapping[str, int]:
        """Cluster of each site; empty before there are any."""
        return self._place

    def configure(self, round: int) -> dict[str, Message]:
        super().configure(round)
        for model in self._models:
            model.configure(round)
        sent = {site: self._message(site, round, Kind.WEIGHTS, self.evaluation(site)) for site in self.server.sites}
        return self._collected.asking(sent) if self.clusters > 1 else sent

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        return self._collected.expected(site, self.global_weights)

    def accept(self, round: int, site: str, update: Message) -> None:
        update = self._collected.taken(site, update)
        super().accept(round, site, update)
        if site in self._place:
            self._models[self._place[site]].accept(round, site, update)

    def finish(self, round: int) -> None:
        super().finish(round)
        for model in self._models:
            model.finish(round)
        known = self._collected.by_site
        if self._place:
            for site in sorted(known.keys() - self._place.keys()):
                self._join(site)
        elif len(known) >= self.clusters * self.least:
            self._group()

    def evaluation(self, site: str) -> dict[str, Tensor]:
        return self._models[self._place[site]].global_weights if site in self._place else self.global_weights

    def state_dict(self) -> dict[str, Tensor]:
        state = {**super().state_dict(), **self._collected.state_dict()}
        for number, site in enumerate(self.server.sites):
            if site in self._place:
                state[f"cluster@{number}"] = torch.tensor(self._place[site])
        return {**state, **self._stored({site: self.evaluation(site) for site in self._place})}

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self._collected.load_state_dict(state)
        sites = enumerate(self.server.sites)
        self._place = {site: int(state[f"cluster@{n}"]) for n, site in sites if f"cluster@{n}" in state}
        models = {self._place[site]: own for site, own in self._restored(state).items()}
        self._models = [self._model(models[place]) for place in sorted(models)]

    def _model(self, weights: Mapping[str, Tensor]) -> FedAvg:
        server, model = self.server, FedAvg()
        model.attach(Server(server.sites, server.rounds, server.seed, weights))
        return model

    def _group(self) -> None:
        graphs = {site: own[GRAPH] for site, own in self._collected.by_site.items()}
        self._place = grouped(graphs, self.clusters, self.least)
        self._models = [self._model(self.global_weights) for _ in set(self._place.values())]
        for number in range(len(self._models)):
            sites = [site for site, place in self._place.items() if place == number]
            logger.info("cluster %d: %s", number + 1, ", ".join(sites))
            if len(sites) == 1:
                logger.warning("cluster %d is %s alone: its model is its own", number + 1, sites[0])
        if len(self._models) < self.clusters:
            line = "clusters: %d where %d were asked for; no other cut of the sites' tree leaves each at least %d sites"
            logger.warning(line, len(self._models), self.clusters, self.least)

    def _join(self, site: str) -> None:
        own = self._collected.by_site[site][GRAPH].double()
        far: dict[int, list[float]] = {}
        for other, place in self._place.items():
            apart = (self._collected.by_site[other][GRAPH].double() - own).norm()
            far.setdefault(place, []).append(float(apart))
        self._place[site] = min(far, key=lambda place: (sum(far[place]) / len(far[place]), place))
        logger.info("%s joins cluster %d", site, self._place[site] + 1)
