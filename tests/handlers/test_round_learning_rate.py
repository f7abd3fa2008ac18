"""Learning rates at hand-computed rounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Events

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import LEARNING_RATE_SCHEDULES, RoundLearningRate
from tests.handlers.toy import next_round, toy_trainer


def optimizer(rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)


def test_cosine_by_hand() -> None:
    schedule = RoundLearningRate(optimizer=optimizer())
    assert [schedule.factor(r, 4) for r in (0, 1, 2, 3)] == pytest.approx([1.0, 0.853553, 0.5, 0.146447], rel=1e-5)


def test_warm_up_rises_in_a_straight_line_and_the_floor_holds() -> None:
    schedule = RoundLearningRate(optimizer=optimizer(), warmup=2, floor=0.2)
    assert [schedule.factor(r, 4) for r in (0, 1, 2, 3)] == pytest.approx([0.5, 1.0, 1.0, 0.6])


def test_a_run_may_go_through_a_part_of_the_schedule() -> None:
    schedule = RoundLearningRate(optimizer=optimizer(), floor=0.01, part=0.25)
    # HSSF's sites: 200 of the 800 steps of a cosine from 1 to 0.01
    assert schedule.factor(100, 200) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi / 8)) / 2)
    with pytest.raises(Refused, match=r"RoundLearningRate -> part: expected a part in \(0, 1\], found 0"):
        RoundLearningRate(optimizer=optimizer(), part=0)


def test_rate_of_each_round_and_of_a_resumed_run() -> None:
    def rates(rounds: list[int]) -> list[float]:
        trainer = toy_trainer([], steps=1, learning_rate=0.1)
        RoundLearningRate(optimizer=trainer.optimizer).attach(trainer)
        seen: list[float] = []
        trainer.add_event_handler(
            Events.ITERATION_STARTED, lambda engine: seen.append(engine.optimizer.param_groups[0]["lr"])
        )
        for number in rounds:
            next_round(trainer, number, 4)
        return seen

    assert rates([0, 2, 3]) == pytest.approx([0.1, 0.05, 0.0146447], rel=1e-4)
    assert rates([3]) == rates([0, 2, 3])[2:]


@given(st.sampled_from(sorted(LEARNING_RATE_SCHEDULES)), st.integers(1, 60), st.integers(0, 80), st.floats(0, 1))
def test_factors_stay_in_0_1(name: str, rounds: int, warmup: int, floor: float) -> None:
    schedule = RoundLearningRate(optimizer=optimizer(), schedule=name, warmup=warmup, floor=floor)
    assert all(0 < schedule.factor(r, rounds) <= 1 for r in range(rounds))


def test_bad_arguments_are_refused_together() -> None:
    with pytest.raises(Refused, match=r"(?s)2 problems.*warmup: .* found -1.*floor: .* found 2"):
        RoundLearningRate(optimizer=optimizer(), warmup=-1, floor=2)
    with pytest.raises(Refused, match=r"RoundLearningRate -> schedule: .*did you mean 'cosine'"):
        RoundLearningRate(optimizer=optimizer(), schedule="cosin")
