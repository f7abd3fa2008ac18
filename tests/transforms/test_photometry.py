"""Colour, blur and boxes by hand-computed numbers."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from samfed_monai.transforms import box_fill, colour_matrix, gaussian_blur
from samfed_monai.transforms.strong_view import recolour


def test_no_change_is_the_identity():
    assert torch.allclose(colour_matrix(), torch.eye(3), atol=1e-6)


def test_saturation_zero_gives_the_luminance():
    grey = colour_matrix(saturation=0.0) @ torch.tensor([1.0, 0.5, 0.0])
    assert grey.tolist() == pytest.approx([0.299 + 0.2935] * 3, abs=1e-6)


def test_a_third_of_a_turn_of_hue_moves_red_to_green():
    assert (colour_matrix(hue=1 / 3) @ torch.tensor([1.0, 0, 0])).tolist() == pytest.approx([0, 1, 0], abs=1e-6)


@pytest.mark.parametrize("hue", [-0.25, -0.05, 0.1])
def test_grey_stays_grey(hue):
    grey = colour_matrix(hue=hue, saturation=1.3) @ torch.full((3,), 0.4)
    assert grey.tolist() == pytest.approx([0.4] * 3, abs=1e-6)


def test_contrast_pivots_on_the_mean_luminance():
    image = torch.tensor([0.2, 0.6]).expand(3, 1, 2)
    assert recolour(image, torch.eye(3), 0.5)[0, 0].tolist() == pytest.approx([0.3, 0.5])
    assert recolour(image, colour_matrix(brightness=0.5), 1.0)[0, 0].tolist() == pytest.approx([0.1, 0.3])


def test_blur_is_that_of_scipy():
    image = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(0))
    expected = ndimage.gaussian_filter(image.numpy(), (0, 1.5, 1.5), mode="mirror", radius=(0, 4, 4))
    assert abs(gaussian_blur(image, 1.5).numpy() - expected).max() < 1e-5  # float32 sums of 81 products


def test_a_tiny_blur_changes_nothing_and_a_wide_one_fits_small_images():
    image = torch.rand(3, 4, 4)
    assert gaussian_blur(image, 0.05) is image
    assert gaussian_blur(image, 10.0).shape == image.shape


def test_a_box_is_filled_with_the_mean_colour():
    image = torch.zeros(2, 2, 4)
    image[0, :, 0] = 1  # mean 0.25
    filled = box_fill(image, 0, 3, 1, 9)
    assert filled[0].tolist() == [[1, 0, 0, 0.25], [1, 0, 0, 0]]
    assert filled[1].sum() == 0
    assert image[0, 0, 3] == 0
