"""Affine views, against slicing and against torch's own affine grid."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from samfed_monai.transforms import output_to_input, warp
from samfed_monai.transforms.weak_view import warp_together


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))


def test_nothing_drawn_is_the_identity(picture):
    assert torch.allclose(warp(picture, output_to_input((6, 6)), (6, 6)), picture, atol=1e-6)


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_flips_and_quarter_turns_are_those_of_torch(picture, flip, turns, nearest):
    view = warp(picture, output_to_input((6, 6), flip=flip, quarter_turns=turns), (6, 6), nearest=nearest)
    expected = torch.rot90(picture.flip(2) if flip else picture, turns, (1, 2))
    assert torch.allclose(view, expected, atol=1e-5)


def test_a_shift_moves_the_picture_down_and_right():
    picture = torch.zeros(1, 8, 8)
    picture[0, 3, 2] = 1
    view = warp(picture, output_to_input((8, 8), shift=(1 / 8, 2 / 8)), (8, 8), nearest=True)
    assert view[0].nonzero().tolist() == [[4, 4]]


def test_zoom_magnifies_about_the_middle():
    picture = torch.zeros(1, 8, 8)
    picture[0, 3:5, 3:5] = 1  # 2 x 2
    view = warp(picture, output_to_input((8, 8), zoom=2.0), (8, 8), nearest=True)
    expected = torch.zeros(1, 8, 8)
    expected[0, 2:6, 2:6] = 1
    assert torch.equal(view, expected)


def test_angles_are_true_in_a_view_that_is_not_square():
    picture = torch.zeros(1, 40, 80)
    picture[0, 20, 20:60] = 1  # a level line of 40 pixels
    view = warp(picture, output_to_input((40, 80), degrees=30), (40, 80))
    rows, columns = (view[0] > 0.3).nonzero().T
    left, right = columns.argmin(), columns.argmax()
    slope = (rows[left] - rows[right]) / (columns[right] - columns[left])  # rows count downwards
    assert slope.item() == pytest.approx(0.577, abs=0.06)  # tan 30 degrees; a pixel over 35 is 0.03


def test_the_border_is_reflected():
    picture = torch.arange(4.0).expand(1, 4, 4)
    view = warp(picture, output_to_input((4, 4), shift=(0, 0.5)), (4, 4), nearest=True)
    assert view[0, 0].tolist() == [1, 0, 0, 1]


def test_the_grid_is_that_of_torch(picture):
    matrix = output_to_input((5, 9), degrees=20, zoom=1.1, shear=7, shift=(0.1, -0.05), flip=True)
    grid = functional.affine_grid(matrix[None], [1, 1, 5, 9], align_corners=False)
    expected = functional.grid_sample(picture[None], grid, padding_mode="reflection", align_corners=False)[0]
    assert torch.allclose(warp(picture, matrix, (5, 9)), expected, atol=1e-5)


def test_what_is_warped_together_is_what_is_warped_alone(picture):
    mask, low = picture[:1] > 0.5, torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(1))
    tensors = {"image": picture, "label": mask.float(), "teacher": picture[1:], "low": low}
    matrix = output_to_input((4, 5), degrees=20, zoom=0.9, shift=(0.1, -0.05))
    views = warp_together(tensors, matrix, (4, 5), nearest={"label"})
    for key, tensor in tensors.items():
        assert torch.equal(views[key], warp(tensor, matrix, (4, 5), nearest=key == "label"))


def test_shrinking_averages_rather_than_skips():
    stripes = torch.zeros(1, 64, 64)
    stripes[:, :, ::4] = 1  # every fourth column: a mean of 0.25 everywhere
    view = warp(stripes, output_to_input((16, 16)), (16, 16))
    assert view[0, 4:12, 4:12].sub(0.25).abs().max() < 0.05
