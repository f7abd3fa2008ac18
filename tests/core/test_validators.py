"""Checks of arguments: what is accepted, and the words of each refusal."""

from __future__ import annotations

import math
from enum import Enum

import numpy as np
import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.validators import in_range, one_of, require, switch, whole


class Word(str, Enum):
    SOFT, HARD = "soft", "hard"


@pytest.mark.parametrize(
    ("bounds", "accepted", "refused", "expected"),
    [
        ({"least": 0}, [0, 0.5, 1e9, np.float32(2)], [-1e-9, True, None, "1", math.inf, math.nan], ">= 0"),
        ({"above": 0}, [1e-9, 1], [0, -1], "> 0"),
        ({"most": 1}, [1, -3], [1.5], "<= 1"),
        ({"below": 1}, [0.99], [1], "< 1"),
        ({"least": 0, "most": 1}, [0, 1], [-0.1, 1.1], "in [0, 1]"),
        ({"least": 0.5, "below": 1}, [0.5], [0.49, 1], "in [0.5, 1)"),
        ({"above": 0, "most": 1}, [1], [0, 2], "in (0, 1]"),
        ({"above": 0, "below": 0.5}, [0.25], [0, 0.5], "in (0, 0.5)"),
        ({"least": 0, "or_null": True}, [None, 0], [-1, False], ">= 0, or null"),
    ],
)
def test_numbers_in_a_range(bounds, accepted, refused, expected):
    assert not [value for value in accepted if in_range("x#y", value, **bounds)]
    for value in refused:
        assert [*map(str, in_range("x#y", value, **bounds))] == [f"x#y: expected a number {expected}, found {value!r}"]


def test_whole_numbers_are_neither_floats_nor_truth_values():
    assert not whole("x", 2, least=2) + whole("x", 32, least=2, most=32) + whole("x", None, or_null=True)
    for value in (1, 33, 2.0, True, "2", None):
        (problem,) = whole("x", value, "a number of pixels", least=2, most=32, hint="less")
        assert str(problem) == f"x: expected a number of pixels in [2, 32], found {value!r}; less"


def test_words_of_an_enum_or_a_list():
    assert not one_of("x", "soft", Word) + one_of("x", Word.HARD, Word) + one_of("x", 2, [1, 2])
    (near,), (far,) = one_of("x", "sofd", Word, "see docs"), one_of("x", None, [1, 2], "see docs")
    assert str(near) == "x: expected one of ['soft', 'hard'], found 'sofd'; did you mean 'soft'?"
    assert str(far) == "x: expected one of [1, 2], found None; see docs"


def test_a_switch_is_true_or_false():
    assert not switch("x", False)
    assert [*map(str, switch("x", 1))] == ["x: expected true or false, found 1"]


def test_all_problems_are_refused_together():
    require([], in_range("x", 1, least=0))
    with pytest.raises(Refused, match=r"(?s)2 problems.*x: .*y: "):
        require(in_range("x", -1, least=0), [], switch("y", "no"))
