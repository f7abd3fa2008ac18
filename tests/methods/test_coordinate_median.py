"""The median of weights: by hand, whoever sends what in whatever order, and with a wild site."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.methods.coordinate_median import CoordinateMedian
from samfed_monai.protocol import Kind, Message, UpdateGuard
from tests.methods.robust import VALUES, answered, attached, combined, rows


def test_odd_and_even_numbers_of_sites():
    assert combined(CoordinateMedian(), [[1.0, 5.0, 9.0], [2.0, -4.0, 9.0], [300.0, 6.0, -9.0]]) == [2.0, 5.0, 9.0]
    assert combined(CoordinateMedian(), [[1.0, 0, 0], [2.0, 0, 0], [4.0, 0, 0], [1e30, 0, 0]]) == [3.0, 0.0, 0.0]


def test_going_back_to_a_round_forgets_the_answers_of_the_one_that_was_not_finished():
    strategy = attached(CoordinateMedian(), 3)
    strategy.configure(0)
    for site in ("s00", "s01", "s02"):
        tensors = {"w": torch.full((3,), 5.0)}
        strategy.accept(0, site, Message(Kind.WEIGHTS, site, 0, 9, n=1, tensors=tensors))
    strategy.load_state_dict({"w": torch.full((3,), 2.0)}, {})
    strategy.finish(0)
    assert strategy.global_weights["w"].tolist() == [2.0] * 3


def test_images_do_not_weigh():
    assert combined(CoordinateMedian(), [[1.0] * 3, [2.0] * 3, [9.0] * 3], counts=[1, 1, 10**7]) == [2.0] * 3


def test_integers_and_half_precision():
    start = {"w": torch.zeros(1, dtype=torch.float16), "count": torch.tensor(0)}
    answers = [
        {"w": torch.tensor([w], dtype=torch.float16), "count": torch.tensor(c)}
        for w, c in [(1, 7), (2, 9), (8, 99), (4, 8)]
    ]
    after = answered(attached(CoordinateMedian(), 4, start), answers)
    assert (after["w"].dtype, after["w"].item(), after["count"].item()) == (torch.float16, 3.0, 8)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=3, max_size=3), st.integers(3, 9))
def test_equal_weights_stay_equal_to_the_last_bit(row, sites):
    assert combined(CoordinateMedian(), [row] * sites) == row


@settings(max_examples=60, deadline=None)
@given(rows(3), st.randoms())
def test_order_does_not_matter(answers, random):
    assert combined(CoordinateMedian(), random.sample(answers, len(answers))) == combined(CoordinateMedian(), answers)


@settings(max_examples=60, deadline=None)
@given(rows(2, 8), VALUES.map(lambda value: value * 1e30))
def test_one_wild_site_leaves_every_number_among_those_of_the_others(honest, wild):
    least, most = torch.tensor(honest).amin(0), torch.tensor(honest).amax(0)
    found = torch.tensor(combined(CoordinateMedian(), [*honest, [wild] * 3]))
    assert bool(((least <= found) & (found <= most)).all())


def test_two_of_five_wild_sites_leave_every_number_among_those_of_the_others():
    found = combined(CoordinateMedian(), [[1.0] * 3, [3.0] * 3, [2.0] * 3, [1e30] * 3, [1e30] * 3])
    assert found == [3.0] * 3


def test_two_sites_are_refused_and_a_round_with_two_answers_leaves_the_model(caplog):
    with pytest.raises(Refused, match="strategy: expected at least 3, for CoordinateMedian to protect, found 2 sites"):
        CoordinateMedian().require_sites(["a", "b"])
    CoordinateMedian().require_sites(["a", "b", "c"])
    strategy = attached(CoordinateMedian(), 3, [5.0] * 3)
    assert answered(strategy, [[1.0] * 3, [2.0] * 3])["w"].tolist() == [5.0] * 3
    assert "round 1: 2 answers, CoordinateMedian needs 3; the model stays" in caplog.text
    assert answered(strategy, [[1.0] * 3, [2.0] * 3, [3.0] * 3], round=1)["w"].tolist() == [2.0] * 3


def test_the_guard_comes_first():
    strategy = attached(CoordinateMedian(), 3, [1.0, 0.0, 0.0], guard=UpdateGuard(limit=2.0))
    assert answered(strategy, [[11.0, 0.0, 0.0]] * 3)["w"].tolist() == [3.0, 0.0, 0.0]


def test_an_answer_of_a_round_before_is_forgotten():
    strategy = attached(CoordinateMedian(), 3)
    answered(strategy, [[1.0] * 3] * 3)
    strategy.load_state_dict({"w": torch.full((3,), 7.0)}, {})
    strategy.finish(1)
    assert strategy.global_weights["w"].tolist() == [7.0] * 3
