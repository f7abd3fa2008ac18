"""FCA: common and individual units of hand-made updates, and a server with a model for each site."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.methods.fca import ClientTailored, agreement
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Kind, Message, Server, UpdateGuard
from tests.methods.rounds import a_round, update

ONE = torch.ones(3)
#: Three sites, three units of two numbers: all agree; the last is against; at right angles and still.
UPDATES = torch.tensor(
    [[[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]], [[2.0, 0.0], [1.0, 1.0], [0.0, 1.0]], [[3.0, 0.0], [-1.0, -1.0], [0.0, 0.0]]]
)


def test_agreement_is_cosine_to_mean_of_others():
    found = agreement(UPDATES, ONE)
    assert found[:, 0].tolist() == [1.0, 1.0, 1.0]
    # the others of sites 0 and 1 cancel out in unit 1; those of site 2 point the other way
    torch.testing.assert_close(found[:, 1], torch.tensor([0.0, 0.0, -1.0]))
    assert found[:, 2].tolist() == [0.0, 0.0, 0.0], "at right angles; nothing moved"


START = {"a": torch.zeros(2, 2), "b": torch.zeros(2), "n": torch.tensor(0)}


def build(strategy, sites=("s0", "s1"), guard=None):
    return strategy.attach(Server(list(sites), 3, weights=START, guard=guard))


def answer(site: str, a, b, *, n: int = 1, round: int = 0) -> Message:
    return update(site, round=round, rounds=3, images=n, a=a, b=b, n=n)


#: Both go the same way in the first row of ``a`` and the first of ``b``, and apart in the others.
FIRST = {
    "s0": answer("s0", [[1.0, 1.0], [1.0, 0.0]], [1.0, 1.0]),
    "s1": answer("s1", [[3.0, 3.0], [-1.0, 0.0]], [2.0, -1.0], n=3),
}


def test_common_units_are_averaged_and_individual_units_kept():
    strategy = build(ClientTailored())
    assert strategy.configure(0)["s0"].tensors["a"].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    strategy.aggregate(0, FIRST)
    sent = {site: message.tensors for site, message in strategy.configure(1).items()}
    assert sent["s0"]["a"].tolist() == [[2.5, 2.5], [1.0, 0.0]]
    assert sent["s1"]["a"].tolist() == [[2.5, 2.5], [-1.0, 0.0]]
    assert (sent["s0"]["b"].tolist(), sent["s1"]["b"].tolist()) == ([1.75, 1.0], [1.75, -1.0])
    assert sent["s0"]["n"].item() == sent["s1"]["n"].item() == 3, "counters are the largest site's"
    assert torch.equal(strategy.evaluation("s1")["a"], sent["s1"]["a"])
    assert strategy.evaluation("elsewhere")["a"].tolist() == [[2.5, 2.5], [-0.5, 0.0]], "the mean of all"


def test_extreme_thresholds_equal_fedavg_or_local_training():
    common, alone, plain = build(ClientTailored(threshold=-1.0)), build(ClientTailored(threshold=1.0)), build(FedAvg())
    updates = {s: answer(s, [[1.0, v], [v, 1.0]], [1.0, v], n=int(v)) for s, v in (("s0", 1.0), ("s1", 3.0))}
    for strategy in (common, alone, plain):
        a_round(strategy, updates)
    for site in updates:
        for name in ("a", "b"):
            torch.testing.assert_close(common.evaluation(site)[name], plain.global_weights[name])
        assert torch.equal(alone.evaluation(site)["a"], updates[site].tensors["a"])
    assert torch.equal(alone.global_weights["a"], plain.global_weights["a"])


def step_in_loops(start: np.ndarray, sent: list[np.ndarray], counts: list[int]) -> list[np.ndarray]:
    """A step on one tensor, unit by unit."""
    models = [each.copy() for each in sent]
    for unit in range(len(start)):
        steps = [each[unit] - start[unit] for each in sent]
        masks = []
        for site, step in enumerate(steps):
            others = sum(n * s for i, (n, s) in enumerate(zip(counts, steps, strict=True)) if i != site)
            masks.append(float((step * others).sum() / np.sqrt((step**2).sum() * (others**2).sum()) > 0.2))
        shares = [mask * n for mask, n in zip(masks, counts, strict=True)]
        common = sum(share * each[unit] for share, each in zip(shares, sent, strict=True)) / max(sum(shares), 1e-30)
        for model, mask, each in zip(models, masks, sent, strict=True):
            model[unit] = (1 - mask) * each[unit] + mask * common
    return models


def test_aggregation_matches_loop_over_units():
    random, counts = np.random.default_rng(0), [1, 2, 5]
    old = {"x_a": random.normal(size=(2, 5)), "x_b": random.normal(size=(7, 2)), "decoder": random.normal(size=(3, 3))}
    weights = {name: torch.tensor(values, dtype=torch.float32) for name, values in old.items()}
    sites = [f"s{number}" for number in range(3)]
    strategy = ClientTailored(threshold=0.2, patterns=["*_[ab]"])
    strategy.attach(Server(sites, 3, weights=weights)).configure(0)
    sent = [{name: values + random.normal(size=values.shape) for name, values in old.items()} for _ in sites]
    updates = {}
    for site, n, own in zip(sites, counts, sent, strict=True):
        tensors = {name: torch.tensor(values, dtype=torch.float32) for name, values in own.items()}
        updates[site] = Message(Kind.WEIGHTS, site, 0, 3, n=n, tensors=tensors)
    strategy.aggregate(0, updates)
    for name in ("x_a", "x_b"):
        for site, expected in zip(sites, step_in_loops(old[name], [own[name] for own in sent], counts), strict=True):
            np.testing.assert_allclose(strategy.evaluation(site)[name].numpy(), expected, atol=1e-6)
    mean = sum(n * own["decoder"] for n, own in zip(counts, sent, strict=True)) / 8
    for site in sites:
        np.testing.assert_allclose(strategy.evaluation(site)["decoder"].numpy(), mean, atol=1e-6)


def test_updates_are_relative_to_sent_model():
    strategy = build(ClientTailored())
    for round in range(2):
        a_round(strategy, {s: replace(m, round=round) for s, m in FIRST.items()}, round)
    # in the second round s0 comes back from [2.5, 2.5] to [1, 1] and s1 continues to [3, 3]: they differ
    assert strategy.evaluation("s0")["a"].tolist() == [[1.0, 1.0], [1.0, 0.0]]
    assert strategy.evaluation("s1")["a"].tolist() == [[3.0, 3.0], [-1.0, 0.0]]


def test_site_without_answer_keeps_model():
    strategy = build(ClientTailored())
    a_round(strategy, FIRST)
    before = {name: tensor.clone() for name, tensor in strategy.evaluation("s1").items()}
    for round in (1, 2):
        a_round(strategy, {"s0": answer("s0", [[9.0, 9.0], [9.0, 9.0]], [9.0, 9.0], round=round)}, round)
    assert all(torch.equal(strategy.evaluation("s1")[name], tensor) for name, tensor in before.items())
    assert strategy.evaluation("s0")["b"].tolist() == [9.0, 9.0]


def test_fault_39_overlong_step_is_clipped_from_sent_model():
    strategy = ClientTailored()
    strategy.attach(Server(["s0", "s1"], 1, weights={"w": torch.full((6,), 1.0)}, guard=UpdateGuard(limit=2.0)))
    a_round(strategy, {site: update(site, rounds=1, w=[w] * 6) for site, w in {"s0": 101.0, "s1": 0.5}.items()})
    torch.testing.assert_close(strategy.evaluation("s0")["w"], torch.full((6,), 3.0))
    assert strategy.evaluation("s1")["w"].tolist() == [0.5] * 6


def test_unmatched_pattern_is_refused():
    with pytest.raises(Refused, match=r"strategy#patterns: expected at least one, found no name like 'c\*'"):
        build(ClientTailored(patterns=["a", "c*"]))
