"""CutMix on batches whose pixels say which image they came from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samfed_monai.transforms import cutmix


def a_batch(size: int, channels: int = 3, height: int = 16, width: int = 24) -> torch.Tensor:
    """(B, C, H, W) where every pixel of image i is i."""
    return torch.arange(float(size)).view(-1, 1, 1, 1).expand(size, channels, height, width).clone()


@settings(max_examples=40, deadline=None)
@given(size=st.integers(2, 5), seed=st.integers(0, 2**31))
def test_a_box_of_the_neighbour_in_every_tensor(size, seed):
    images, weights = a_batch(size), a_batch(size, 1)
    generator = torch.Generator().manual_seed(seed)
    mixed, mixed_weights = cutmix(images, weights, generator=generator, prob=1.0, area=(0.1, 0.4))
    for index in range(size):
        changed = mixed[index, 0] != index
        rows, columns = changed.any(dim=1).sum(), changed.any(dim=0).sum()
        assert changed.sum() == rows * columns  # one box
        assert 0.05 < changed.float().mean() < 0.46  # 0.1 to 0.4, and rounding of the sides
        assert (mixed[index, :, changed] == (index - 1) % size).all()
        assert torch.equal(mixed[index, :1], mixed_weights[index])
    assert torch.equal(images, a_batch(size))


def test_the_generator_decides():
    images = torch.rand(4, 3, 16, 16)
    first, second = (cutmix(images, generator=torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_probability_zero_and_single_images_change_nothing():
    images = a_batch(3)
    assert torch.equal(cutmix(images, prob=0.0)[0], images)
    assert torch.equal(cutmix(images[1:2], prob=1.0)[0], images[1:2])


def test_binary_masks_stay_binary_and_types_stay_types():
    labels = torch.randint(0, 2, (4, 1, 16, 16), dtype=torch.uint8)
    mixed = cutmix(torch.rand(4, 3, 16, 16), labels, prob=1.0)[1]
    assert mixed.dtype == torch.uint8
    assert mixed.max() <= 1


def test_tensors_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"tensor 3 has shape \(2, 1, 8, 8\), expected \(2, \.\.\., 16, 24\)"):
        cutmix(a_batch(2), a_batch(2, 1), torch.zeros(2, 1, 8, 8))


def test_ranges_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"found 0\.5 and \(0\.4, 0\.1\)"):
        cutmix(a_batch(2), area=(0.4, 0.1))
