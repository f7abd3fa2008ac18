"""Schedules at hand-computed rounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import SCHEDULES, constant, gaussian_ramp, linear


def test_gaussian_ramp_rises_over_the_first_40_percent_and_stays_at_1() -> None:
    assert gaussian_ramp(0, 10) == pytest.approx(math.exp(-5))
    assert gaussian_ramp(2, 10) == pytest.approx(math.exp(-5 * 0.25))  # t = 2 / 4
    assert gaussian_ramp(4, 10) == 1.0
    assert gaussian_ramp(9, 10) == 1.0


def test_linear_and_constant() -> None:
    assert [linear(r, 10) for r in (0, 1, 2, 4, 9)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    assert [constant(r, 10) for r in (0, 9)] == [1.0, 1.0]


def test_a_ramp_shorter_than_a_round_is_no_ramp() -> None:
    assert gaussian_ramp(0, 1) == 1.0
    assert linear(0, 100, fraction=0.0) == 1.0


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 300), st.floats(0, 1))
def test_every_schedule_stays_in_0_1_and_never_falls(name: str, rounds: int, fraction: float) -> None:
    values = [SCHEDULES[name](r, rounds, fraction) for r in range(rounds)]
    assert all(0 <= value <= 1 for value in values)
    assert values == sorted(values)


def test_fault_25_unknown_schedule_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        Refused, match=r"schedule: expected one of .* found 'gausian_ramp'; did you mean 'gaussian_ramp'"
    ):
        SCHEDULES["gausian_ramp"]
