from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.data.soft_masks import resize_probabilities


def test_a_mask_of_that_size_is_handed_on_as_it_is():
    masks = torch.rand(2, 1, 3, 4)
    assert resize_probabilities(masks, (3, 4)) is masks


def test_enlarged_bilinearly_with_corners_not_aligned():
    masks = torch.tensor([[[[0.0, 1.0]]]])
    torch.testing.assert_close(resize_probabilities(masks, (1, 4)), torch.tensor([[[[0.0, 0.25, 0.75, 1.0]]]]))


def test_shrunk_with_every_pixel_counted():
    masks = torch.tensor([[[[0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]]]])
    without = torch.nn.functional.interpolate(masks, (1, 2), mode="bilinear", align_corners=False)
    assert without.sum() == 0  # the pixel falls between those that are sampled
    shrunk = resize_probabilities(masks, (1, 2))
    assert shrunk[0, 0, 0, 0] > shrunk[0, 0, 0, 1] > 0


def test_weights_that_add_up_to_more_than_one_give_no_more_than_one():
    ones = torch.ones(1, 1, 213, 8)
    plain = torch.nn.functional.interpolate(ones, (107, 8), mode="bilinear", align_corners=False, antialias=True)
    assert plain.max() > 1  # 1.00000012
    assert resize_probabilities(ones, (107, 8)).max() == 1


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_probabilities_stay_probabilities_at_any_size(height, width, new_height, new_width):
    masks = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(height * 41 + width))
    resized = resize_probabilities(masks, (new_height, new_width))
    assert resized.shape == (1, 2, new_height, new_width)
    # no new extremes: up to float32's rounding
    assert masks.min() - 1e-6 <= resized.min() <= resized.max() <= min(1, masks.max() + 1e-6)
