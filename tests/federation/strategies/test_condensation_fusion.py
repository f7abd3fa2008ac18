"""Condensation: from whom the server learns, on which images, and what it sends."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.methods.heterogeneous import CondensationFusion
from samfed_monai.protocol import Envelope, Kind, Server
from tests.federation.unlike import IMAGES, SERVER_WIDTH, label_masks, toy_net, unlike_server

SITES = ("a", "b")


def attached(**options) -> CondensationFusion:
    return CondensationFusion(**options).attach(unlike_server(dict.fromkeys(SITES), 2))


def answer(site: str, masks: torch.Tensor) -> Envelope:
    return Envelope(Kind.SOFT_MASKS, site, 0, 2, n=4, tensors={"masks": masks})


def spy_on_phase(strategy: CondensationFusion, monkeypatch) -> list:
    calls = []
    monkeypatch.setattr(strategy.bench.phase, "run", lambda *arguments: calls.append(arguments) or {})
    return calls


def test_the_server_learns_from_the_most_reliable_site_only(monkeypatch):
    strategy = attached(floor=0.5)
    calls = spy_on_phase(strategy, monkeypatch)
    good, empty = label_masks(), torch.zeros(IMAGES, 1, 8, 8, dtype=torch.uint8)
    first, second = good.clone(), empty.clone()
    first[3:], second[3:] = empty[3:], good[3:]  # each knows one half
    strategy.configure(0)
    strategy.aggregate(0, {"a": answer("a", first), "b": answer("b", second)})
    (round, rounds, masks, gate) = calls[0]
    assert (round, rounds) == (0, 2)
    assert torch.equal(masks, good)
    assert gate.tolist() == [True] * IMAGES


def test_nobody_is_learned_from_below_the_floor_or_below_the_server(monkeypatch):
    best = label_masks()
    for floor, expected in ((0.99, False), (0.0, True)):
        strategy = attached(floor=floor)
        calls = spy_on_phase(strategy, monkeypatch)
        reliability = strategy.bench.predictor.reliability(best)
        assert (reliability < 0.99).any()
        strategy.configure(0)
        strategy.aggregate(0, {"a": answer("a", best)})
        low = reliability < 0.99
        assert calls[0][3][low].tolist() == [expected] * int(low.sum())
    strategy = attached(floor=0.0)
    calls = spy_on_phase(strategy, monkeypatch)
    strategy.configure(0)
    strategy.aggregate(0, {"a": answer("a", strategy.bench.own_masks().clone())})
    assert not calls[0][3].any(), "as reliable as the server is not better"


def test_a_round_without_answers_leaves_the_server_as_it_was(monkeypatch):
    strategy = attached()
    calls = spy_on_phase(strategy, monkeypatch)
    strategy.configure(0)
    strategy.aggregate(0, {})
    assert calls == []


def test_answers_of_the_round_before_are_forgotten(monkeypatch):
    strategy = attached()
    spy_on_phase(strategy, monkeypatch)
    strategy.configure(0)
    strategy.accept(0, "a", answer("a", label_masks()))
    strategy.configure(1)
    assert strategy._answers == {}


def test_what_is_sent_and_expected_by_exchange():
    masks = attached()
    sent = masks.configure(0)["a"]
    assert (sent.kind, sent.tensors.keys()) == (Kind.SOFT_MASKS, {"masks"})
    assert sent.extra == {"purpose": "distil", **masks.requirements()}
    assert (sent.tensors["masks"].shape, sent.tensors["masks"].dtype) == ((IMAGES, 1, 8, 8), torch.uint8)
    assert masks.expected("a")["masks"].shape == (IMAGES, 1, 8, 8)
    assert (masks.answer_kind, masks.exchange_name) == (Kind.SOFT_MASKS, "predictions")
    weights = attached(exchange="weights")
    sent = weights.configure(0)["a"]
    assert sent.kind == Kind.WEIGHTS
    assert sent.tensors["0.weight"].shape[0] == SERVER_WIDTH
    assert weights.expected("a")["0.weight"].shape[0] == 4, "the site's own network"
    assert (weights.answer_kind, weights.exchange_name) == (Kind.WEIGHTS, "weights")


def test_an_unseen_hospital_gets_the_servers_network_and_a_site_its_own():
    strategy = attached()
    assert strategy.evaluation("a") is None
    assert strategy.evaluation("elsewhere") is strategy.global_weights


def test_a_stored_round_comes_back_with_the_optimizer():
    strategy = attached(floor=0.0)
    strategy.configure(0)
    strategy.aggregate(0, {"a": answer("a", label_masks())})
    weights, state = dict(strategy.global_weights), {k: t.clone() for k, t in strategy.state_dict().items()}
    other = attached(floor=0.0)
    other.load_state_dict(weights, state)
    for each in (strategy, other):
        each.configure(1)
        each.aggregate(1, {"a": answer("a", label_masks())})
    assert all(torch.equal(strategy.global_weights[name], other.global_weights[name]) for name in weights)
    assert not torch.equal(strategy.global_weights["0.weight"], toy_net(SERVER_WIDTH).state_dict()["0.weight"])


def test_the_server_trains_without_touching_anybodys_random_numbers():
    strategy = attached(floor=0.0)
    strategy.configure(0)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    strategy.aggregate(0, {"a": answer("a", label_masks())})
    assert torch.equal(torch.rand(1), expected)


def test_bad_options_are_refused_together():
    with pytest.raises(Refused, match=r"strategy#exchange: expected one of .*'none'(.|\n)*strategy#floor: expected"):
        CondensationFusion(exchange="none", floor=1.0)


def test_a_bundle_without_sharing_is_refused():
    with pytest.raises(Refused, match=r"strategy: expected a PublicMaskSharing, found no sharing .*heterogeneous"):
        CondensationFusion().attach(Server(SITES, 1))
