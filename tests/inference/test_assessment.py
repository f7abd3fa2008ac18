"""How far a mask is to be trusted, by its own probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from samfed_monai.inference.assessment import COLUMNS, Assessment, assess
from samfed_monai.inference.segment import COLUMNS as TABLE


def test_expected_dice_is_that_of_a_mask_with_its_probabilities() -> None:
    probability = np.zeros((4, 5), np.float32)
    probability[1, 1:4] = 0.9, 0.6, 0.5
    mask = np.where(probability > 0.55, 255, 0)
    assert assess(probability, mask) == Assessment(pytest.approx(2 * 1.5 / (2.0 + 2)), None, ())


@pytest.mark.parametrize(
    ("places", "flags"),
    [
        ([], ("empty",)),
        ([(0, 2)], ("touches the border",)),
        ([(1, 1), (2, 2)], ()),
        ([(1, 1), (2, 3)], ("several pieces",)),
        ([(1, 0), (2, 3)], ("touches the border", "several pieces")),
    ],
)
def test_flags_say_what_is_unusual(places: list[tuple[int, int]], flags: tuple[str, ...]) -> None:
    mask = np.zeros((4, 5), np.uint8)
    for place in places:
        mask[place] = 1
    found = assess(mask.astype(np.float32), mask)
    assert (found.expected_dice, found.flags) == (1.0, flags)


def test_a_row_of_the_table() -> None:
    assert Assessment(0.69999, 0.41234, ("empty", "several pieces")).row() == {
        "expected_dice": 0.7,
        "lower_bound": 0.4123,
        "doubtful": "yes",
        "flags": "empty; several pieces",
    }
    assert Assessment(0.7).row() == {"expected_dice": 0.7, "doubtful": "", "flags": ""}
    assert set(COLUMNS) < set(TABLE)
