from __future__ import annotations

import pytest
import torch

from samfed_monai.networks.sam import refine as components
from samfed_monai.networks.sam.refine import find_parts


def test_parts_that_touch_at_a_corner_are_one_and_the_largest_comes_first():
    mask = torch.zeros(20, 40, dtype=torch.bool)
    mask[2:4, 2:4] = True
    mask[4:6, 4:6] = True  # touches the first at a corner: 8 pixels together
    mask[10:14, 20:30] = True  # 40 pixels
    parts = find_parts(mask)
    assert len(parts.numbers) == 2
    large, small = parts.numbers
    assert int((parts.labels == large).sum()) == 40
    assert int((parts.labels == small).sum()) == 8
    assert torch.equal(parts.labels > 0, mask)


def test_boxes_are_shares_of_the_image_with_a_margin_inside_it():
    mask = torch.zeros(20, 40, dtype=torch.bool)
    mask[10:14, 20:30] = True
    # 10 wide and 4 high, with a twentieth of that on either side
    expected = [19.5 / 40, 9.8 / 20, 30.5 / 40, 14.2 / 20]
    assert find_parts(mask).boxes[0].tolist() == pytest.approx(expected)
    assert find_parts(torch.ones(5, 7, dtype=torch.bool)).boxes.tolist() == [[0, 0, 1, 1]]


def test_specks_are_labelled_but_not_boxed():
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[0, :4] = True  # 4 pixels of 10,000 are less than 5e-4
    mask[50, :5] = True
    parts = find_parts(mask)
    assert len(parts.numbers) == len(parts.boxes) == 1
    assert int((parts.labels > 0).sum()) == 9
    assert find_parts(torch.zeros(4, 4, dtype=torch.bool)).boxes.shape == (0, 4)


def test_only_the_largest_of_many_are_boxed():
    mask = torch.zeros(40, 40, dtype=torch.bool)
    for number in range(12):
        row, column = 10 * (number // 4), 10 * (number % 4)
        mask[row : row + 2, column : column + 1 + number // 2] = True
    parts = find_parts(mask)
    assert len(parts.numbers) == components.MOST == 8
    areas = [int((parts.labels == number).sum()) for number in parts.numbers]
    assert areas == [12, 12, 10, 10, 8, 8, 6, 6]
