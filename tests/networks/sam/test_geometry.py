from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from samfed_monai.networks.sam.build import crop, inner_size, pad, place


def test_inner_size_by_hand():
    assert inner_size(256, 256, 512) == (512, 512)
    assert inner_size(300, 400, 512) == (384, 512)
    assert inner_size(767, 1022, 512) == (384, 512)
    assert inner_size(400, 1, 256) == (256, 4)


@given(st.integers(8, 3000), st.integers(8, 3000), st.sampled_from([256, 512, 1024]))
def test_the_image_ends_on_a_border_of_the_mask(height, width, size):
    inner = inner_size(height, width, size)
    assert max(inner) == size
    assert all(side % 4 == 0 and 4 <= side <= size for side in inner)
    scale = size / max(height, width)
    assert all(
        abs(fitted - side * scale) <= max(2, 4 - side * scale)
        for fitted, side in zip(inner, (height, width), strict=True)
    )


@given(st.integers(20, 90), st.integers(20, 90))
def test_a_mask_at_quarter_resolution_comes_back_in_register(height, width):
    """A ramp survives scaling, padding, quartering, cropping and resizing back: nothing moved."""
    ramp = torch.linspace(0, 1, width).expand(1, 1, height, width) + torch.linspace(0, 1, height)[:, None]
    quarter = F.avg_pool2d(pad(place(ramp, 256), 256), 4)
    back = F.interpolate(crop(quarter, height, width, 256), (height, width), mode="bilinear", align_corners=False)
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    # half a mask pixel at most, where a pixel of the mask is max(h, w) / 64 of the image's
    assert (back - ramp)[inside].abs().max() <= 0.5 * (1 / 64 + 1 / 64) * max(height, width) / min(height, width) + 1e-3
