"""DRFLM: mirror ascent on the simplex by hand, and site weights that follow losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from samfed_monai.methods.drflm import DistributionallyRobust, ascent_step
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Message, Server
from tests.methods.rounds import a_round, update


def test_mirror_step_matches_hand_computed_values():
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert torch.equal(ascent_step(weights, torch.full((3,), 0.7), 5.0), weights)
    assert torch.equal(ascent_step(weights, torch.tensor([0.1, 0.2, 0.3]), 0.0), weights)
    uneven = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)  # their sum is not 1 to the last bit
    assert torch.equal(ascent_step(uneven, torch.full((3,), 0.7), 5.0), uneven)
    moved = ascent_step(weights, torch.tensor([0.1, 0.2, 0.3]), 0.5)
    assert moved.diff().gt(0).all()
    assert moved.sum().item() == pytest.approx(1)
    assert ascent_step(weights, torch.tensor([0.0, 0.0, 1e9]), 1.0).tolist() == [0.0, 0.0, 1.0]
    assert ascent_step(torch.tensor([1.0]), torch.tensor([0.7]), 1.0).tolist() == [1.0]
    corner = torch.tensor([1.0, 0.0])  # of which the other site's loss leaves exp(-1e9)
    assert ascent_step(corner, torch.tensor([0.0, 1e9]), 1.0).tolist() == [1.0, 0.0]


def answers(first: float, second: float, *, round: int = 0, counts=(1, 3)) -> dict[str, Message]:
    sent = {}
    for at, (loss, images, w) in enumerate(zip((first, second), counts, ([1.0, 0.1], [5.0, 0.5]), strict=True)):
        metrics = {"term_local_mixup_all": loss}
        sent[f"s{at}"] = update(f"s{at}", round=round, images=images, metrics=metrics, w=w, count=at)
    return sent


def attach(strategy: Any) -> Any:
    return strategy.attach(Server(["s0", "s1"], 9, weights={"w": torch.zeros(2), "count": torch.tensor(0)}))


def test_first_round_is_fedavg_then_weights_follow_losses():
    strategy = attach(DistributionallyRobust(step=1.0))
    a_round(strategy, answers(math.log(3.0), 0.0))
    assert strategy.global_weights["w"][0].item() == 4.0  # (1 + 3 * 5) / 4
    assert strategy.weights == pytest.approx({"s0": 0.5, "s1": 0.5})  # 1/4 * 3 against 3/4
    a_round(strategy, answers(0.0, 0.0, round=1), 1)
    assert strategy.global_weights["w"][0].item() == pytest.approx(3.0)


def test_zero_step_equals_fedavg():
    strategy, plain = attach(DistributionallyRobust(step=0.0)), attach(FedAvg())
    for round in range(3):
        for each in (strategy, plain):
            a_round(each, answers(0.9, 0.1, round=round, counts=(1 + 2 * round, 3)), round)
        assert all(torch.equal(strategy.global_weights[name], plain.global_weights[name]) for name in ("w", "count"))
