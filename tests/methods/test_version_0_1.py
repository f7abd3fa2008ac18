"""Strategies of version 0.1 that no variant takes."""

from __future__ import annotations

import pytest
import torch

import samfed_monai.federation
from samfed_monai.core.errors import Refused
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.methods.version_0_1 import AveragedFedAvg
from samfed_monai.protocol import Kind, Message, Server


def test_its_name_of_then_is_found():
    assert samfed_monai.federation.AveragedFedAvg is AveragedFedAvg


def started(strategy, value: float = 0.0):
    weights = {"w": torch.tensor([value]), "n": torch.tensor([0])}
    strategy.attach(Server(["a"], 9, weights=weights))
    return strategy


def played(strategy, rounds: dict[int, float]) -> list[float]:
    """What sites were sent in each round, in which one site answers with the given number."""
    sent = []
    for round, answer in rounds.items():
        sent.append(float(strategy.configure(round)["a"].tensors["w"]))
        tensors = {"w": torch.tensor([answer]), "n": torch.tensor([round + 1])}
        strategy.aggregate(round, {"a": Message(Kind.WEIGHTS, "a", round, 9, n=1, tensors=tensors)})
    return sent


def test_first_the_plain_mean_of_the_rounds_then_the_moving_one():
    strategy = started(AveragedFedAvg(decay=0.5))
    assert played(strategy, {0: 4.0}) == [0.0]
    assert strategy.global_weights["w"].tolist() == [4.0]  # the start does not count
    played(strategy, {1: 8.0})
    assert strategy.global_weights["w"].tolist() == [6.0]
    played(strategy, {2: 2.0})
    assert strategy.global_weights["w"].tolist() == [4.0]  # 0.5 x 6 + 0.5 x 2; the plain mean would be 4.67
    assert strategy.evaluation("a")["w"].tolist() == [4.0]


def test_sites_are_sent_what_fedavg_sends():
    rounds = {0: 4.0, 1: 8.0, 2: 2.0, 3: 1.0}
    assert (
        played(started(AveragedFedAvg(decay=0.9)), rounds) == played(started(FedAvg()), rounds) == [0.0, 4.0, 8.0, 2.0]
    )


def test_without_decay_it_is_fedavg():
    averaged, plain = started(AveragedFedAvg(decay=0)), started(FedAvg())
    for strategy in (averaged, plain):
        played(strategy, {0: 4.0, 1: 0.1})
    assert torch.equal(averaged.global_weights["w"], plain.global_weights["w"])


def test_counters_are_those_of_the_last_round():
    strategy = started(AveragedFedAvg(decay=0.5))
    played(strategy, {0: 4.0, 1: 8.0})
    assert strategy.global_weights["n"].tolist() == [2]


def test_half_precision_is_averaged_in_single():
    strategy = AveragedFedAvg(decay=0.5)
    strategy.attach(Server(["a"], 9, weights={"w": torch.zeros(1, dtype=torch.bfloat16)}))
    for round, value in enumerate((1.0, 2.0)):
        strategy.configure(round)
        tensors = {"w": torch.tensor([value], dtype=torch.bfloat16)}
        strategy.aggregate(round, {"a": Message(Kind.WEIGHTS, "a", round, 9, n=1, tensors=tensors)})
    assert strategy.global_weights["w"].dtype == torch.bfloat16
    assert strategy.global_weights["w"].tolist() == [1.5]


def test_a_resumed_run_goes_on_where_it_stood():
    whole = started(AveragedFedAvg(decay=0.5))
    played(whole, {0: 4.0, 1: 8.0, 2: 2.0})
    first = started(AveragedFedAvg(decay=0.5))
    played(first, {0: 4.0, 1: 8.0})
    second = started(AveragedFedAvg(decay=0.5), value=-7.0)
    second.load_state_dict(first.global_weights, first.state_dict())
    assert played(second, {2: 2.0}) == [8.0]
    assert second.global_weights["w"].tolist() == whole.global_weights["w"].tolist() == [4.0]


def test_what_is_stored_is_not_what_the_next_round_writes_into():
    strategy = started(AveragedFedAvg(decay=0.5))
    played(strategy, {0: 4.0})
    kept = strategy.global_weights["w"]
    played(strategy, {1: 8.0, 2: 9.0, 3: 1.0})
    assert kept.tolist() == [4.0]


@pytest.mark.parametrize("decay", [1.0, -0.1, "0.5", True])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(Refused, match=r"strategy#decay: expected a number in \[0, 1\)"):
        AveragedFedAvg(decay=decay)
