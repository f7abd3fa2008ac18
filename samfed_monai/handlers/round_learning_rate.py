"""The learning rate as a function of the round."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ignite.engine import Events

from samfed_monai.errors import Problems
from samfed_monai.handlers.rounds import round_of
from samfed_monai.registry import Registry

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch.optim import Optimizer

LEARNING_RATE_SCHEDULES: Registry[Callable[[float], float]] = Registry("learning-rate schedule")
"""Factors by name: from the part of the run that is over, in [0, 1), to a factor in [0, 1]."""


@LEARNING_RATE_SCHEDULES.register("cosine")
def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


@LEARNING_RATE_SCHEDULES.register("constant")
def _constant(done: float) -> float:
    return 1.0


class RoundLearningRate:
    """Sets the learning rate at the start of every round; within a round it stays as it is.

    Since it depends on nothing but (round, rounds), a resumed run has the rates of an uninterrupted one. A trainer
    without rounds counts epochs.

    Args:
        optimizer: whose groups are set; each group's own rate is its peak.
        schedule: ``cosine`` (from the peak towards ``floor``) or ``constant``.
        warmup: number of first rounds in which the rate rises in a straight line to its peak.
        floor: lowest factor, in [0, 1].
        part: how much of the schedule the run goes through, in (0, 1]: with 0.25 a cosine ends near 0.85.

    Raises:
        Refused: an unknown schedule, a negative warm-up, a floor outside [0, 1], a part outside (0, 1].

    Example::

        {"_target_": "samfed_monai.handlers.RoundLearningRate", "optimizer": "@optimizer", "schedule": "cosine"}
    """

    def __init__(
        self,
        *,
        optimizer: Optimizer,
        schedule: str = "cosine",
        warmup: int = 0,
        floor: float = 0.0,
        part: float = 1.0,
    ) -> None:
        problems = Problems()
        if warmup < 0:
            problems.add("RoundLearningRate -> warmup", found=repr(warmup), expected="a number of rounds >= 0")
        if not 0 <= floor <= 1:
            problems.add("RoundLearningRate -> floor", found=repr(floor), expected="a factor in [0, 1]")
        if not 0 < part <= 1:
            problems.add("RoundLearningRate -> part", found=repr(part), expected="a part in (0, 1]")
        with problems.collected():
            self._schedule = LEARNING_RATE_SCHEDULES.named(schedule, where="RoundLearningRate -> schedule")
        problems.refuse_if_any()
        self.optimizer, self.warmup, self.floor, self.part = optimizer, warmup, floor, part
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]

    def factor(self, round: int, rounds: int) -> float:
        """What the peak is multiplied by in a round counted from 0."""
        if round < self.warmup:
            return (round + 1) / self.warmup if self.warmup < rounds else (round + 1) / rounds
        done = (round - self.warmup) / max(rounds - self.warmup, 1)
        return self.floor + (1 - self.floor) * self._schedule(self.part * min(done, 1.0))

    def attach(self, engine: Engine) -> None:
        """Binds to the start of every epoch, when the round is known."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Sets the rate of this round."""
        factor = self.factor(*round_of(engine))
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
