"""Steps clipped to the running median of their lengths: by hand, over rounds, and going on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.methods.norm_clipping import NormClipping
from tests.methods.robust import VALUES, answered, attached, combined, rows


def test_longer_steps_are_shortened_to_the_lower_median():
    # lengths 1, 2, 4, 800: the limit is 2
    answers = [[1.0, 0, 0], [0, 2.0, 0], [0, 4.0, 0], [0, 0, -800.0]]
    assert combined(NormClipping(), answers) == pytest.approx([0.25, 1.0, -0.5])
    assert combined(NormClipping(factor=2.0), answers) == pytest.approx([0.25, 1.5, -1.0])


def test_images_weigh_as_in_fedavg_and_integers_are_those_in_the_middle():
    assert combined(NormClipping(), [[1.0, 0, 0], [0, 1.0, 0]], counts=[1, 3]) == [0.25, 0.75, 0.0]
    start = {"w": torch.zeros(1, dtype=torch.float16), "count": torch.tensor(0)}
    answers = [{"w": torch.ones(1, dtype=torch.float16), "count": torch.tensor(count)} for count in (3, 10**9, 4)]
    after = answered(attached(NormClipping(), 3, start), answers)
    assert (after["count"].item(), after["w"].item(), after["w"].dtype) == (4, 1.0, torch.float16)


def test_the_median_runs_over_rounds_and_a_run_that_goes_on_has_it():
    strategy = attached(NormClipping(window=3), 2)
    answered(strategy, [[1.0, 0, 0], [1.0, 0, 0]])
    answered(strategy, [[2.0, 0, 0], [2.0, 0, 0]], round=1)
    again = attached(NormClipping(window=3), 2)
    again.load_state_dict(strategy.global_weights, strategy.state_dict())
    # both step by 8; medians are 1, 1, 8, of which the middle one is 1
    for each in (strategy, again):
        assert answered(each, [[10.0, 0, 0], [10.0, 0, 0]], round=2)["w"].tolist() == [3.0, 0.0, 0.0]
    assert strategy.state_dict()["median_lengths"].tolist() == [1.0, 1.0, 8.0]
    again.load_state_dict(strategy.global_weights, {})
    assert again.state_dict()["median_lengths"].tolist() == [], "those of a run without are none"
    fresh = attached(strategy, 2)
    assert answered(fresh, [[10.0, 0, 0], [10.0, 0, 0]])["w"].tolist() == [10.0, 0.0, 0.0], "a new run begins anew"


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=3, max_size=3), st.lists(st.integers(1, 10**6), min_size=2, max_size=9))
def test_equal_weights_stay_equal_to_the_last_bit(row, counts):
    assert combined(NormClipping(), [row] * len(counts), counts=counts) == row


@settings(max_examples=60, deadline=None)
@given(rows(2), st.randoms())
def test_order_does_not_matter_beyond_rounding(answers, random):
    one, other = combined(NormClipping(), random.sample(answers, len(answers))), combined(NormClipping(), answers)
    # each of at most nine steps rounds values of magnitude <= 174 in float32: 9 * 174 * 1.2e-7 < 1e-3
    assert one == pytest.approx(other, abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(rows(2, 8), st.sampled_from([-1e30, 1e30, 1e6]))
def test_one_wild_site_moves_the_model_no_further_than_an_honest_one_could(honest, wild):
    longest = float(torch.tensor(honest, dtype=torch.float64).norm(dim=1).max())
    found = torch.tensor(combined(NormClipping(), [*honest, [wild] * 3]), dtype=torch.float64)
    assert float(found.norm()) <= longest * (1 + 1e-5) + 1e-5


def test_a_median_may_be_of_one_round_and_is_of_five_by_default():
    assert (NormClipping().factor, NormClipping().window, NormClipping(window=1).window) == (1.0, 5, 1)


def test_one_site_is_refused():
    with pytest.raises(Refused, match="expected at least 2, for NormClipping to protect, found 1 sites"):
        NormClipping().require_sites(["a"])


def test_steps_that_are_shortened_are_told(caplog):
    caplog.set_level("INFO")
    combined(NormClipping(), [[1.0, 0, 0], [0, 2.0, 0], [0, 0, -800.0]])
    assert caplog.messages == ["s02: a step of 800 was shortened to 2"]


def test_medians_are_kept_in_double_precision():
    strategy = attached(NormClipping(), 2)
    answered(strategy, [[0.1, 0.2, 0.0], [0.1, 0.2, 0.0]])
    medians = strategy.state_dict()["median_lengths"]
    assert medians.dtype is torch.float64
    length = torch.tensor([0.1, 0.2], dtype=torch.float32).double().norm().item()
    assert medians.tolist() == pytest.approx([length], rel=1e-15)
