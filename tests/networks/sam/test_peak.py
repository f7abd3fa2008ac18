"""Foreground relative to the highest probability."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.networks.sam.teacher import check_peak, relative_to_peak


def masks(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(len(rows), 1, 1, -1)


def test_the_threshold_is_a_part_of_each_image_s_own_peak():
    found = relative_to_peak(masks([0.1, 0.3, 0.5], [0.1, 0.3, 1.0]), 0.4)
    # odds of p over odds of the threshold, 0.2 and 0.4: 0.3 / 0.7 / (0.2 / 0.8) = 12 / 7, so 12 / 19
    torch.testing.assert_close(found[0].flatten(), torch.tensor([4 / 13, 12 / 19, 0.8]))
    assert (found > 0.5).flatten(1).tolist() == [[False, True, True], [False, False, True]]


def test_a_sure_image_at_one_half_is_left_as_it_is():
    sure = masks([0.2, 0.5, 1.0])
    torch.testing.assert_close(relative_to_peak(sure, 0.5), sure, atol=1e-5, rtol=0)


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=6), st.floats(0.01, 0.5))
def test_the_order_of_pixels_stays_and_the_peak_is_foreground(values, peak):
    before = masks(values)
    after = relative_to_peak(before, peak)
    assert torch.isfinite(after).all()
    assert after.min() >= 0
    assert after.max() <= 1
    assert (after.flatten()[before.flatten().argsort()].diff() >= -1e-6).all()
    if max(values) > 1e-5:
        assert after.flatten()[before.argmax()] > 0.5


@pytest.mark.parametrize("peak", [0, -0.1, 0.6, "0.4", True])
def test_a_part_out_of_its_range_is_refused(peak):
    with pytest.raises(Refused, match=r"teacher -> peak: expected a number above 0 and at most 0.5, or null, found"):
        check_peak(peak)
    check_peak(None)
