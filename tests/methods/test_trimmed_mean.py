"""The trimmed mean of weights: by hand, in any order, and with wild sites."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samfed_monai.methods.trimmed_mean import TrimmedMean, trimmed
from tests.methods.robust import VALUES, answered, attached, combined, rows


@pytest.mark.parametrize(
    ("sites", "trim", "out"),
    [
        (2, 0.25, 0),
        (3, 0.25, 1),
        (4, 0.25, 1),
        (5, 0.25, 2),
        (8, 0.25, 2),
        (8, 0.1, 1),
        (9, 0.49, 4),
        (8, 0.49, 3),
        (25, 0.28, 7),
    ],
)
def test_so_many_are_left_out_at_either_end(sites, trim, out):
    assert trimmed(sites, trim) == out


def test_the_rest_is_averaged():
    answers = [[1.0, -1e30, 0.0], [2.0, 4.0, 0.0], [6.0, 2.0, 0.0], [1e30, 8.0, 0.0]]
    assert combined(TrimmedMean(), answers) == [4.0, 3.0, 0.0]


def test_integers_are_those_in_the_middle_and_types_stay():
    start = {"w": torch.zeros(1, dtype=torch.bfloat16), "count": torch.tensor(0)}
    answers = [{"w": torch.tensor([c], dtype=torch.bfloat16), "count": torch.tensor(c)} for c in (7, 10**9, 9, 8)]
    after = answered(attached(TrimmedMean(), 4, start), answers)
    assert (after["w"].item(), after["w"].dtype, after["count"].item()) == (8.5, torch.bfloat16, 8)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=3, max_size=3), st.integers(3, 9))
def test_equal_weights_stay_equal_to_the_last_bit(row, sites):
    assert combined(TrimmedMean(), [row] * sites) == row


@settings(max_examples=60, deadline=None)
@given(rows(3), st.randoms())
def test_order_does_not_matter(answers, random):
    assert combined(TrimmedMean(), random.sample(answers, len(answers))) == combined(TrimmedMean(), answers)


@settings(max_examples=60, deadline=None)
@given(rows(2, 8), VALUES.map(lambda value: value * 1e30))
def test_one_wild_site_leaves_every_number_among_those_of_the_others(honest, wild):
    least, most = torch.tensor(honest).amin(0), torch.tensor(honest).amax(0)
    found = torch.tensor(combined(TrimmedMean(), [*honest, [wild] * 3]))
    # a mean of at most seven values of magnitude <= 100 rounds by less than 7 * 100 * 6e-8
    assert bool(((least - 1e-4 <= found) & (found <= most + 1e-4)).all())
