from __future__ import annotations

import numpy as np
import pytest

from samfed_monai.metrics import hausdorff95
from samfed_monai.metrics.scores import joint_box


def squares(shift: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.zeros((2, 40, 40), bool)
    a[5:15, 5:15] = True
    b[5:15, 5 + shift : 15 + shift] = True
    return a, b


@pytest.mark.parametrize("pooled", [False, True])
def test_a_square_shifted_by_four_pixels_is_four_pixels_away(pooled):
    assert hausdorff95(*squares(4), pooled=pooled) == 4.0


def test_the_same_mask_is_zero_pixels_away():
    assert hausdorff95(*squares(0)) == 0.0


def test_two_single_pixels_are_as_far_apart_as_they_are():
    a, b = np.zeros((2, 30, 30), bool)
    a[3, 4] = b[6, 8] = True
    assert hausdorff95(a, b) == 5.0


def test_the_percentile_lies_on_the_line_between_two_pixels():
    a, b = np.zeros((2, 1, 12), bool)
    a[0, :11] = True  # distances to pixel 0 of b: 0 to 10, the 95th percentile at place 9.5
    b[0, 0] = True
    assert hausdorff95(a, b) == pytest.approx(9.5)
    assert hausdorff95(a, b, pooled=True) == pytest.approx(9.45)  # a second 0: place 0.95 x 11 = 10.45 of 12


def test_the_two_definitions_differ_where_one_mask_has_an_island():
    label = np.zeros((80, 80), bool)
    label[10:50, 10:50] = True
    prediction = label.copy()
    prediction[70:73, 70:74] = True  # 10 of 166 surface pixels of one mask, 10 of 322 of both
    assert hausdorff95(prediction, label) > 28
    assert hausdorff95(prediction, label, pooled=True) == 0.0


def test_the_box_holds_both_masks_and_no_more():
    a, b = np.zeros((2, 9, 9), bool)
    a[2, 3] = b[5, 1] = True
    assert joint_box(a, b) == (slice(2, 6), slice(1, 4))
    assert joint_box(a & b, a & b) == (slice(0, 0), slice(0, 0))


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="HD95 of an empty mask is not defined"):
        hausdorff95(np.zeros((4, 4), bool), np.ones((4, 4), bool))
