"""Clusters of sites, ours: sites are grouped once by the colours of their images; each cluster has one model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from samfed_monai.core.validators import require, whole
from samfed_monai.data.records import without_duplicates
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol.message import Kind, Message
from samfed_monai.protocol.statistics import CollectedStatistics, Statistic, StatisticKind
from samfed_monai.protocol.strategy import Exchange, Server, require_least

logger = logging.getLogger(__name__)

GRAPH = "graph"


def colour_graph(image: Tensor, levels: int) -> Tensor:
    """Returns how often intensities are neighbours, as a graph whose nodes are the levels of each colour.

    The weight of an edge is the share of all pairs of neighbouring pixels (right and below) that have those two levels,
    half of it in each direction.

    Args:
        image: (C, H, W) float in [0, 1], of more than one pixel.
        levels: number of nodes for each colour, at equal steps of intensity.

    Returns:
        (C, levels, levels) float64, symmetric; each colour's matrix sums to 1.
    """
    level = (image * levels).long().clamp(0, levels - 1)
    pairs = [(level[:, :-1], level[:, 1:]), (level[:, :, :-1], level[:, :, 1:])]
    first, second = (torch.cat([pair[side].flatten(1) for pair in pairs], dim=1) for side in (0, 1))
    counts = torch.stack([torch.bincount(row, minlength=levels**2) for row in first * levels + second])
    graph = counts.double().view(-1, levels, levels)
    return (graph + graph.mT) / (2 * first.shape[1])


class ColourGraph(Statistic):
    """The mean of :func:`colour_graph` over all training images of a site, as one entry.

    Args:
        data: the site's images (:class:`~samfed_monai.bundle.SiteImages`).
        split: name of the split in its ``records``; labels are not used.
        transform: loads one record, without random steps.
        levels: the strategy's ``levels``.

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
        return len(without_duplicates(self.data.records(self.split)))

    def measured(self, least_images: int) -> Mapping[str, Tensor]:
        records = without_duplicates(self.data.records(self.split))
        total = torch.zeros(3, self.levels, self.levels, dtype=torch.float64)
        for record in records:
            total += colour_graph(torch.as_tensor(self.transform(record)["image"]), self.levels)
        return {GRAPH: (total / max(1, len(records))).flatten()[None].float()}


def empty_graph(levels: int) -> Tensor:
    """Returns zeros, (1, 3 levels²) float32: a single entry, so that its norm is clipped as a whole."""
    return torch.zeros(1, 3 * levels**2)


def grouped(descriptors: Mapping[str, Tensor], groups: int, least: int) -> dict[str, int]:
    """Groups sites by single-linkage clustering with a minimum size.

    The longest edges of the minimum spanning tree of the sites' distances are cut, one after the other, each only if it
    leaves no group too small.

    Args:
        descriptors: (…) float by site, all of one shape.
        groups: maximum number of groups, >= 1.
        least: minimum number of sites in a group, >= 1.

    Returns:
        Group by site, from 0 in the order of the groups' first sites by name.
    """
    sites = sorted(descriptors)
    flat = torch.stack([descriptors[site].double().flatten() for site in sites])
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").tolist()
    tree, connected = [], {0}
    while len(connected) < len(sites):  # Prim's algorithm
        others = [node for node in range(len(sites)) if node not in connected]
        edge = min((distances[i][j], i, j) for i in connected for j in others)
        tree.append(edge)
        connected.add(edge[2])
    count = 1
    for edge in sorted(tree, reverse=True):
        if count < groups:
            remaining = [other for other in tree if other != edge]
            components = _components(len(sites), remaining)
            if min(components.count(component) for component in set(components)) >= least:
                tree, count = remaining, count + 1
    return dict(zip(sites, _components(len(sites), tree), strict=True))


def _components(count: int, edges: Sequence[tuple[float, int, int]]) -> list[int]:
    """Returns the connected component of each of ``count`` nodes; components are numbered by their first nodes."""
    components = list(range(count))
    for _, first, second in edges:
        components = [components[first] if component == components[second] else component for component in components]
    numbers = {component: number for number, component in enumerate(dict.fromkeys(components))}
    return [numbers[component] for component in components]


class ClusteredFedAvg(FedAvg):
    """One FedAvg for each cluster of sites whose images are alike; ours.

    Clustered federated learning (Ghosh et al., arXiv 2006.04088) chooses a site's cluster by its losses in every round;
    here it is chosen once, by the colours of its images. A site's descriptor is a graph between intensities
    (:class:`ColourGraph`), one for all its images; the server groups the sites by them (:func:`grouped`). Descriptors
    leave a site under the policy for image statistics (``privacy#statistics -> graph``): unchanged, unless that rule
    sets ``clip`` and ``noise_multiplier``; ``results.json`` then has their epsilon. Noise is off by default: enough of
    it to protect a whole site makes clusters of a few sites random (docs/personalised.md).

    Rounds are those of FedAvg until enough sites for all clusters have sent a descriptor, so at least the first one.
    From then on each site receives its cluster's model and is averaged within its cluster only; a site with a first
    update after that joins the cluster whose sites are nearest on average. Unseen hospitals get the mean of all sites.
    ``largest_share`` of the update guard caps a site's weight among all sites; within its cluster the weight may be
    larger. One cluster is FedAvg to the bit and requests no descriptor. Memory and each stored round: one model for
    each site and each cluster.

    Args:
        clusters: maximum number of clusters, >= 1.
        least: minimum number of sites in a cluster. 1 permits a cluster of one site, which from then on trains alone;
            the log reports it. With 2 or more no cluster has a single site, and too few sites are refused before any
            work; if only one site of a cluster replies in a round, the cluster's model is that site's.
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
        self._collected = CollectedStatistics(StatisticKind.GRAPH, {GRAPH: empty_graph(levels)})

    def require_sites(self, sites: Sequence[str]) -> None:
        hint = "lower strategy#clusters, or set strategy#least to 1: a cluster of one site keeps its own model"
        require_least(sites, self.clusters * self.least, f"{self.clusters} clusters of at least {self.least}", hint)

    @property
    def places(self) -> Mapping[str, int]:
        """Cluster of each site; empty before sites are clustered."""
        return self._place

    def configure(self, round: int) -> dict[str, Message]:
        super().configure(round)
        for model in self._models:
            model.configure(round)
        messages = {site: self.message(site, round, Kind.WEIGHTS, self.evaluation(site)) for site in self.server.sites}
        return self._collected.with_requests(messages) if self.clusters > 1 else messages

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
        graphs = self._collected.by_site
        if self._place:
            for site in sorted(graphs.keys() - self._place.keys()):
                self._join(site)
        elif len(graphs) >= self.clusters * self.least:
            self._group()

    def evaluation(self, site: str) -> dict[str, Tensor]:
        return self._models[self._place[site]].global_weights if site in self._place else self.global_weights

    def state_dict(self) -> dict[str, Tensor]:
        state = {**super().state_dict(), **self._collected.state_dict()}
        for number, site in enumerate(self.server.sites):
            if site in self._place:
                state[f"cluster@{number}"] = torch.tensor(self._place[site])
        return {**state, **self._pack_models({site: self.evaluation(site) for site in self._place})}

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self._collected.load_state_dict(state)
        sites = enumerate(self.server.sites)
        self._place = {site: int(state[f"cluster@{n}"]) for n, site in sites if f"cluster@{n}" in state}
        models = {self._place[site]: model for site, model in self._unpack_models(state).items()}
        self._models = [self._model(models[place]) for place in sorted(models)]

    def _model(self, weights: Mapping[str, Tensor]) -> FedAvg:
        server, model = self.server, FedAvg()
        model.attach(Server(server.sites, server.rounds, server.seed, weights))
        return model

    def _group(self) -> None:
        graphs = {site: statistics[GRAPH] for site, statistics in self._collected.by_site.items()}
        self._place = grouped(graphs, self.clusters, self.least)
        self._models = [self._model(self.global_weights) for _ in set(self._place.values())]
        for number in range(len(self._models)):
            sites = [site for site, place in self._place.items() if place == number]
            logger.info("cluster %d: %s", number + 1, ", ".join(sites))
            if len(sites) == 1:
                logger.warning("cluster %d has only %s, which keeps its own model", number + 1, sites[0])
        if len(self._models) < self.clusters:
            line = "%d clusters instead of %d: no other cut of the sites' tree leaves each cluster at least %d sites"
            logger.warning(line, len(self._models), self.clusters, self.least)

    def _join(self, site: str) -> None:
        graph = self._collected.by_site[site][GRAPH].double()
        distances: dict[int, list[float]] = {}
        for other, place in self._place.items():
            difference = self._collected.by_site[other][GRAPH].double() - graph
            distances.setdefault(place, []).append(float(difference.norm()))
        self._place[site] = min(distances, key=lambda place: (sum(distances[place]) / len(distances[place]), place))
        logger.info("%s joins cluster %d", site, self._place[site] + 1)
