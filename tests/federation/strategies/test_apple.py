"""APPLE's server: what it sends to whom, what it keeps, and the plain average at the prior."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.methods.apple import Apple, AppleSharing
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Envelope, Kind, UpdateGuard
from samfed_monai.protocol.strategy import Server
from tests.federation.personal import Six, numbers_of, six

START = [0.0] * 6
CORES = {"s0": [1.0, 0.0, 2.0, -1.0, 4.0, 0.0], "s1": [0.0, 2.0, 2.0, 1.0, 0.0, 8.0], "s2": [8.0] * 6}
COUNTS = {"s0": 3, "s1": 1, "s2": 4}


def made(strategy, guard=None):
    return strategy.attach(Server(list(CORES), 3, weights=six(START), guard=guard))


def answers(round: int = 0, sites=tuple(CORES)) -> dict[str, Envelope]:
    return {site: Envelope(Kind.WEIGHTS, site, round, 3, n=COUNTS[site], tensors=six(CORES[site])) for site in sites}


def test_the_first_round_sends_the_start_and_later_ones_the_cores_of_the_others():
    strategy = made(Apple())
    first = strategy.configure(0)
    assert all(numbers_of(message.tensors) == START for message in first.values())
    assert {message.extra["purpose"] for message in first.values()} == {"distil"}
    strategy.aggregate(0, answers())
    sent = strategy.configure(1)["s1"].tensors
    assert sent.keys() == {"prior", "place", "core_0.a", "core_0.b", "core_2.a", "core_2.b"}
    assert (sent["prior"].tolist(), sent["place"].item()) == ([0.375, 0.125, 0.5], 1)
    assert [*sent["core_2.a"].tolist(), *sent["core_2.b"].tolist()] == CORES["s2"]
    assert strategy.expected("s1").keys() == {"a", "b"}, "one core model comes back"
    assert strategy.evaluation("s1") is None
    assert numbers_of(strategy.evaluation("elsewhere")) == numbers_of(strategy.global_weights)


def test_at_the_prior_every_site_has_fedavgs_mean():
    strategy, plain = made(Apple()), made(FedAvg())
    for each in (strategy, plain):
        each.configure(0)
        each.aggregate(0, answers())
    for site, message in strategy.configure(1).items():
        network = Six(CORES[site])
        sharing = AppleSharing(network=network, optimizer=torch.optim.SGD(network.parameters(), lr=1), site=site)
        sharing.receive(1, 3, Kind.WEIGHTS, message.tensors)
        assert numbers_of(network.state_dict()) == pytest.approx(numbers_of(plain.global_weights))
    assert numbers_of(strategy.global_weights) == numbers_of(plain.global_weights)


def test_a_site_that_never_answered_stands_with_the_mean_number_and_the_start():
    strategy = made(Apple())
    strategy.configure(0)
    strategy.aggregate(0, answers(sites=("s0", "s1")))
    sent = strategy.configure(1)["s0"].tensors
    assert sent["prior"].tolist() == pytest.approx([0.5, 1 / 6, 1 / 3])
    assert sent["core_2.a"].tolist() == START[:4]


def test_a_stored_round_goes_on_to_the_same_messages():
    strategy, other = made(Apple()), made(Apple())
    strategy.configure(0)
    strategy.aggregate(0, answers(sites=("s0", "s2")))
    stored = {name: tensor.clone() for name, tensor in strategy.state_dict().items()}
    other.load_state_dict({name: tensor.clone() for name, tensor in strategy.global_weights.items()}, stored)
    for each in (strategy, other):
        each.configure(1)
        each.aggregate(1, answers(1, ("s0", "s1")))
    one, two = strategy.configure(2), other.configure(2)
    for site in CORES:
        assert one[site].tensors.keys() == two[site].tensors.keys()
        assert all(torch.equal(two[site].tensors[name], t) for name, t in one[site].tensors.items())
    assert torch.equal(strategy.global_weights["a"], other.global_weights["a"])


def test_fault_39_a_core_model_that_went_too_far_is_shortened_for_the_others():
    strategy = Apple()
    strategy.attach(Server(["s0", "s1"], 2, weights=six([1.0] * 6), guard=UpdateGuard(limit=2.0)))
    strategy.configure(0)
    far = Envelope(Kind.WEIGHTS, "s0", 0, 2, n=1, tensors=six([101.0] * 6))
    strategy.aggregate(0, {"s0": far, "s1": Envelope(Kind.WEIGHTS, "s1", 0, 2, n=1, tensors=six([1.0] * 6))})
    torch.testing.assert_close(strategy.configure(1)["s1"].tensors["core_0.a"], torch.full((4,), 3.0))
