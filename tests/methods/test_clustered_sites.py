"""Clusters of sites: graphs of four pixels by hand, cuts with a minimum size, and a FedAvg for each cluster."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.methods.clustered_sites import ClusteredFedAvg, ColourGraph, colour_graph, grouped
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Kind, Message, Server
from samfed_monai.protocol.statistics import with_statistics
from tests.methods.rounds import a_round

SITES = ("a", "b", "c", "d")


def test_colour_graph_matches_hand_computed_values() -> None:
    image = torch.tensor([[[0.0, 0.4], [0.6, 1.0]]])  # levels 0 0 / 1 1: pairs 00 and 11 across, 01 twice down
    assert colour_graph(image, 2).tolist() == [[[0.25, 0.25], [0.25, 0.25]]]
    assert colour_graph(torch.zeros(3, 2, 3), 2).tolist() == [[[1.0, 0.0], [0.0, 0.0]]] * 3
    three = torch.tensor([[[0.0, 0.5], [0.3, 1.0]]])  # levels 0 1 / 0 2: pairs 01 and 02 across, 00 and 12 down
    assert (colour_graph(three, 3) * 8).tolist() == [[[2.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]]


def test_graph_statistic_is_mean_over_images() -> None:
    images = {"one": torch.zeros(3, 4, 4), "other": torch.ones(3, 4, 4)}
    data = SimpleNamespace(records=lambda split: [{"image": name} for name in images] if split == "mine" else [])
    graph = ColourGraph(data=data, split="mine", levels=2, transform=lambda record: {"image": images[record["image"]]})
    assert graph.measured(5)["graph"].tolist() == [[0.5, 0.0, 0.0, 0.5] * 3]
    assert graph.images(5) == 2
    like = graph.like()["graph"]
    assert (like.shape, like.dtype) == ((1, 12), torch.float32)
    assert ColourGraph(data=data, transform=lambda record: record).levels == ClusteredFedAvg().levels


@pytest.mark.parametrize("count", [1, 10])
def test_graph_of_identical_images_equals_single_graph(count: int) -> None:
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    data = SimpleNamespace(records=lambda split: [{}] * count)
    measured = ColourGraph(data=data, levels=3, transform=lambda record: {"image": image}).measured(5)["graph"]
    assert torch.equal(measured, colour_graph(image, 3).flatten()[None].float())


def at(**positions: float) -> dict[str, torch.Tensor]:
    return {site: torch.tensor([position]) for site, position in positions.items()}


def test_grouping_cuts_longest_edges_with_minimum_size() -> None:
    assert grouped(at(a=0.0, b=1.0, c=10.0, d=11.5), 2, 2) == {"a": 0, "b": 0, "c": 1, "d": 1}
    outlier = at(a=0.0, b=1.0, c=3.0, d=4.0, e=100.0)
    assert grouped(outlier, 2, 1) == {"a": 0, "b": 0, "c": 0, "d": 0, "e": 1}
    assert grouped(outlier, 2, 2) == {"a": 0, "b": 0, "c": 1, "d": 1, "e": 1}, "not the longest edge, but the next"
    assert grouped(at(a=0.0, b=5.0, c=9.0), 2, 2) == {"a": 0, "b": 0, "c": 0}, "no cut leaves two and two"
    assert set(grouped(at(a=1.0, b=1.0, c=1.0, d=1.0), 1, 2).values()) == {0}
    pairs = at(a=0.0, b=1.0, c=10.0, d=11.0, e=30.0, f=31.0)
    assert grouped(pairs, 3, 2) == {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2, "f": 2}


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=9), st.integers(1, 4), st.integers(1, 3))
def test_clusters_respect_minimum_size_and_maximum_count(positions: list[float], groups: int, least: int) -> None:
    found = grouped({f"s{n}": torch.tensor([position, 0.0]) for n, position in enumerate(positions)}, groups, least)
    counts = [list(found.values()).count(each) for each in set(found.values())]
    assert len(counts) <= groups
    assert min(counts) >= min(least, len(positions))
    assert set(found.values()) == set(range(len(counts)))


def server(sites: tuple[str, ...] = SITES) -> Server:
    return Server(sites, 9, weights={"w": torch.zeros(2), "count": torch.tensor(0)})


def answer(site: str, value: float, *, position: float | None = None, n: int = 1, round: int = 0) -> Message:
    tensors: dict[str, Any] = {"w": torch.tensor([value, -value]), "count": torch.tensor(int(value))}
    own = {} if position is None else {"graph": torch.full((1, 12), position)}
    return Message(Kind.WEIGHTS, site, round, 9, n=n, tensors=with_statistics(tensors, own))


POSITIONS = {"a": 0.0, "b": 0.1, "c": 0.9, "d": 1.0}
VALUES = {"a": 1.0, "b": 3.0, "c": 10.0, "d": 20.0}


def begin(positions: dict[str, float], away: tuple[str, ...] = (), **options: Any) -> ClusteredFedAvg:
    """A strategy after a round in which all but those ``away`` sent a descriptor."""
    strategy = ClusteredFedAvg(levels=2, **options)
    strategy.attach(server((*positions, *away)))
    a_round(strategy, {site: answer(site, VALUES.get(site, 1.0), position=at) for site, at in positions.items()})
    return strategy


def test_first_round_is_fedavg_then_clusters_are_averaged() -> None:
    strategy = begin(POSITIONS)
    assert strategy.places == {"a": 0, "b": 0, "c": 1, "d": 1}
    sent = strategy.configure(1)
    assert {message.tensors["w"][0].item() for message in sent.values()} == {8.5}
    assert {message.extra.get("statistics") for message in sent.values()} == {None}, "once is enough"
    assert strategy.expected("a").keys() == {"w", "count"}  # type: ignore[union-attr]
    strategy.aggregate(1, {s: answer(s, VALUES[s], n=3 if s == "b" else 1, round=1) for s in SITES})
    means = {site: strategy.evaluation(site)["w"][0].item() for site in SITES}  # type: ignore[index]
    assert means == {"a": 2.5, "b": 2.5, "c": 15.0, "d": 15.0}
    assert strategy.global_weights["w"][0].item() == pytest.approx(40 / 6), "hospitals that take no part: all sites"
    assert strategy.reference("c")["w"][0].item() == 15.0
    later, stored = strategy.configure(2), strategy.state_dict()
    assert {site: later[site].tensors["w"][0].item() for site in SITES} == means
    assert {site: stored[f"{at}.w"][0].item() for at, site in enumerate(SITES)} == means
    assert strategy.exchange.tailored, "what one site is sent is not for another"


def test_late_site_joins_cluster_with_least_mean_distance() -> None:
    positions = {"a": 0.0, "b": 0.1, "c": 0.9, "d": 1.0, "f": 1.1}  # 0.6 is 0.55 from two and 0.4 from three of them
    strategy = begin(positions, away=("e",))
    a_round(strategy, {"e": answer("e", 5.0, position=0.6, round=1)}, 1)
    assert strategy.places == {"a": 0, "b": 0, "c": 1, "d": 1, "f": 1, "e": 1}


def test_rounds_equal_fedavg_until_enough_descriptors() -> None:
    strategy = begin({site: POSITIONS[site] for site in "abd"}, away=("c",))
    assert strategy.places == {}
    sent = strategy.configure(1)
    assert {message.tensors["w"][0].item() for message in sent.values()} == {8.0}, "of 1, 3 and 20"
    assert [site for site in sent if "statistics" in sent[site].extra] == ["c"]
    strategy.aggregate(1, {s: answer(s, VALUES[s], position=0.9 if s == "c" else None, round=1) for s in SITES})
    assert strategy.places == {"a": 0, "b": 0, "c": 1, "d": 1}
    assert strategy.evaluation("a")["w"][0].item() == 8.5  # type: ignore[index]


@given(
    st.lists(st.floats(0, 1, width=32), min_size=4, max_size=8),
    st.lists(st.integers(0, 3), min_size=8, max_size=8),
    st.integers(2, 3),
)
def test_clusters_keep_two_sites_whenever_descriptors_arrive(
    positions: list[float], first: list[int], clusters: int
) -> None:
    graphs = {f"s{at}": position for at, position in enumerate(positions)}
    strategy = ClusteredFedAvg(levels=2, clusters=clusters).attach(server(tuple(graphs)))
    for round in range(4):
        strategy.configure(round)
        here = [site for at, site in enumerate(graphs) if first[at] <= round]
        own = {site: graphs[site] if first[at] == round else None for at, site in enumerate(graphs) if site in here}
        strategy.aggregate(round, {site: answer(site, 1.0, position=own[site], round=round) for site in here})
        found = list(strategy.places.values())  # type: ignore[attr-defined]
        assert all(found.count(cluster) >= 2 for cluster in set(found))
    assert len(found) in (0, len(graphs))
    assert (found == []) == (len(graphs) < 2 * clusters)


def test_single_cluster_equals_fedavg_without_statistics() -> None:
    strategy = ClusteredFedAvg(clusters=1).attach(server())
    assert (strategy.statistic, strategy.exchange, strategy.keeps_states) == (None, FedAvg.exchange, False)
    assert all("statistics" not in message.extra for message in strategy.configure(1).values())


def test_too_few_sites_for_clusters_are_refused_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    error = "strategy: expected 4 sites or more, for 2 clusters of at least 2, found 3; lower strategy#clusters, or set"
    with pytest.raises(Refused, match=error):
        ClusteredFedAvg().require_sites(["a", "b", "c"])
    ClusteredFedAvg(least=1).require_sites(["a", "b", "c"])
    caplog.set_level(logging.INFO)
    begin({**POSITIONS, "c": 0.2, "d": 9.0}, least=1)
    assert "cluster 2 has only d, which keeps its own model" in caplog.text
    assert "instead of" not in caplog.text, "there are as many clusters as that"
    caplog.clear()
    begin(dict(zip("abcdef", (0.0, 0.1, 0.2, 0.8, 0.9, 1.0), strict=True)), clusters=3)  # one cut leaves threes
    error = "2 clusters instead of 3: no other cut of the sites' tree leaves each cluster at least 2 sites"
    assert error in caplog.text
