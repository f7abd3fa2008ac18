"""How much a term counts in a round: numbers between 0 and 1 over the rounds of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

from samfed_monai.registry import Registry

Schedule = Callable[..., float]
"""``schedule(round, rounds, fraction=0.4) -> float`` with ``round`` counted from 0."""

SCHEDULES: Registry[Schedule] = Registry("schedule")


@SCHEDULES.register("constant")
def constant(round: int, rounds: int, fraction: float = 0.4) -> float:
    """1 in every round."""
    return 1.0


@SCHEDULES.register("gaussian_ramp")
def gaussian_ramp(round: int, rounds: int, fraction: float = 0.4) -> float:
    """``exp(-5 (1 - t)^2)`` with ``t`` going from 0 to 1 over the first ``fraction`` of the rounds, then 1.

    Args:
        round: this round, counted from 0.
        rounds: how many rounds the run has.
        fraction: part of the run in which the weight rises (docs/method.md, step 6; the curve is Laine & Aila 2017's).
    """
    return math.exp(-5.0 * (1.0 - _progress(round, rounds, fraction)) ** 2)


@SCHEDULES.register("linear")
def linear(round: int, rounds: int, fraction: float = 0.4) -> float:
    """From 0 to 1 in a straight line over the first ``fraction`` of the rounds, then 1."""
    return _progress(round, rounds, fraction)


def _progress(round: int, rounds: int, fraction: float) -> float:
    length = fraction * rounds
    return 1.0 if length < 1 else min(1.0, round / length)  # a ramp shorter than one round is no ramp
