"""Rounds of an engine: numbers, steps, learning rates by hand, seeds, and a site that diverges."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Events
from torch import Tensor

from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.handlers import (
    LEARNING_RATE_SCHEDULES,
    BatchGuide,
    DivergenceGuard,
    EmaGuide,
    GlobalDistillationTerm,
    GlobalGuide,
    PseudoLabelTerm,
    RoundLearningRate,
    SamDistillationTerm,
    SeedHandler,
    UnlabelledStream,
    round_of,
    steps_per_round,
)
from tests.handlers.toy import next_round, same, toy_loader, toy_network, toy_trainer, weights


def test_round_is_epoch_or_client_round() -> None:
    engine = SimpleNamespace(state=SimpleNamespace(epoch=0, max_epochs=5))
    assert round_of(engine) == (0, 5)  # STARTED comes before the first epoch is counted
    engine.state.epoch = 3
    assert round_of(engine) == (2, 5)
    engine.state.round, engine.state.rounds = 4, 15
    assert round_of(engine) == (4, 15)


@pytest.mark.parametrize(
    ("local_steps", "unlabelled", "labelled", "steps"),
    [
        *((None, 17, 10, 3), (None, 16, 10, 2), (None, 1, 10, 1), (5, 17, 10, 5)),
        (None, 0, 10, 2),  # without unlabelled images: public ones
        (None, 0, 0, 1),  # so that the stream can say what is wrong
    ],
)
def test_round_steps_default_to_one_pass(local_steps: int | None, unlabelled: int, labelled: int, steps: int) -> None:
    images = {"labelled": range(labelled), "unlabelled": range(unlabelled)}
    assert steps_per_round(local_steps=local_steps, batch_size=8, **images) == steps


def test_invalid_steps_and_batch_size_are_refused() -> None:
    with pytest.raises(Refused, match=r"train.json -> local_steps: expected a whole number >= 1, or null, found 0"):
        steps_per_round(local_steps=0, batch_size=8, labelled=[], unlabelled=[])
    with pytest.raises(Refused, match=r"train.json -> batch_size: .* found -2"):
        steps_per_round(local_steps=1, batch_size=-2, labelled=[], unlabelled=[])


def optimizer(rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)


def test_cosine_schedule_matches_hand_calculation() -> None:
    plain, warm = (RoundLearningRate(optimizer=optimizer(), **more) for more in ({}, {"warmup": 2, "floor": 0.2}))
    assert [plain.factor(r, 4) for r in (0, 1, 2, 3)] == pytest.approx([1.0, 0.853553, 0.5, 0.146447], rel=1e-5)
    assert [warm.factor(r, 4) for r in (0, 1, 2, 3)] == pytest.approx([0.5, 1.0, 1.0, 0.6])


def test_schedule_part_is_applied_and_zero_refused() -> None:
    schedule = RoundLearningRate(optimizer=optimizer(), floor=0.01, part=0.25)
    # HSSF's sites: 200 of the 800 steps of a cosine from 1 to 0.01
    assert schedule.factor(100, 200) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi / 8)) / 2)
    with pytest.raises(Refused, match=r"RoundLearningRate -> part: expected a fraction in \(0, 1\], found 0"):
        RoundLearningRate(optimizer=optimizer(), part=0)


def test_learning_rate_follows_round_and_is_equal_after_resume() -> None:
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
def test_schedule_factors_are_in_0_1(name: str, rounds: int, warmup: int, floor: float) -> None:
    schedule = RoundLearningRate(optimizer=optimizer(), schedule=name, warmup=warmup, floor=floor)
    assert all(0 < schedule.factor(r, rounds) <= 1 for r in range(rounds))


def test_invalid_arguments_are_refused_together() -> None:
    with pytest.raises(Refused, match=r"(?s)2 problems.*warmup: .* found -1.*floor: .* found 2"):
        RoundLearningRate(optimizer=optimizer(), warmup=-1, floor=2)
    with pytest.raises(Refused, match=r"RoundLearningRate -> schedule: .*did you mean 'cosine'"):
        RoundLearningRate(optimizer=optimizer(), schedule="cosin")


class Site:
    """A guided trainer of a site, and its rounds."""

    def __init__(self, seed: int = 0, site: str = "site-1") -> None:
        labelled, unlabelled = toy_loader(10, 1), toy_loader(12, 2)
        stream = UnlabelledStream(loader=unlabelled, guides=[BatchGuide(), GlobalGuide(), EmaGuide()], cutmix=0.5)
        terms = [PseudoLabelTerm(), SamDistillationTerm(), GlobalDistillationTerm()]
        handlers = [SeedHandler(seed=seed, site=site, loaders=[labelled, unlabelled, None]), stream, *terms]
        self.trainer = toy_trainer(handlers, loader=labelled)

    def run(self, start: dict[str, Tensor], round: int) -> dict[str, Tensor]:
        self.trainer.network.load_state_dict(start)
        next_round(self.trainer, round, 5)
        return weights(self.trainer.network)


def test_round_depends_only_on_weights_site_round_and_seed() -> None:
    start = weights(toy_network(7))
    fresh = Site().run(start, 3)
    used = Site()
    used.run(weights(toy_network(8)), 1)
    torch.rand(5)  # another site took its turn
    random.random()
    np.random.rand(3)  # noqa: NPY002 - the global state is what this is about
    assert same(fresh, used.run(start, 3))
    assert same(fresh, used.run(start, 3))
    for site, round in ((Site(site="site-2"), 3), (Site(), 4), (Site(seed=1), 3)):
        assert not same(fresh, site.run(start, round))


def test_global_generators_are_seeded() -> None:
    trainer = toy_trainer([SeedHandler(seed=1, site="a")], steps=1)
    draws = []
    for _ in range(2):
        next_round(trainer, 2, 3)
        numpy_draw = float(np.random.rand())  # noqa: NPY002
        draws.append((random.random(), numpy_draw, float(torch.rand(1))))
    assert draws[0] == draws[1]


class Broken(SamDistillationTerm):
    def value(self, guidance: Any, engine: Any) -> torch.Tensor:
        return super().value(guidance, engine) * float("nan")


def test_nan_term_stops_before_weights_change() -> None:
    stream = UnlabelledStream(loader=toy_loader(), guides=[BatchGuide()])
    trainer = toy_trainer([stream, Broken(), DivergenceGuard(site="site-3")])
    before = weights(trainer.network)["0.weight"]
    message = (
        r"training diverged at site 'site-3', round 2 of 5, step 1: the loss is NaN or infinite "
        r"\(terms at fault: sam_kd\)\n  to continue: lower learning_rate, or the weight of that term"
    )
    with pytest.raises(Stopped, match=message):
        next_round(trainer, 1, 5)
    assert torch.equal(before, weights(trainer.network)["0.weight"])


def test_non_finite_weights_are_found_at_epoch_end() -> None:
    trainer = toy_trainer([DivergenceGuard(site="a")], steps=1, learning_rate=float("inf"))
    with pytest.raises(Stopped, match=r"site 'a', round 1 of 1, step 1: the weights have NaN or infinity \(first in 0"):
        trainer.run()
