"""What a teacher's images go through while it is fitted."""

from __future__ import annotations

import math

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.teacher.augmentation import Augmentation, augment

STILL = {"rotation": 0.0, "zoom_in": 1.0, "zoom_out": 1.0, "shift": 0.0, "colour": 0.0, "tint": 0.0, "blur": 0.0}
"""Ranges that leave an image as it is, but for mirrors and quarter turns."""


def disc(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright disc off the centre on black, and its mask."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mask = ((rows - height * 0.4) ** 2 + (columns - width * 0.6) ** 2 < (min(height, width) * 0.2) ** 2).float()
    return (mask * 0.8).expand(1, 3, -1, -1), mask[None, None]


def test_image_and_mask_move_together():
    image, mask = disc(64, 48)
    for seed in range(12):
        moved, moved_mask = augment(image, mask, 256, torch.Generator().manual_seed(seed))
        assert moved.shape[2:] == moved_mask.shape[2:]
        assert sorted(moved.shape[2:]) == [192, 256]
        inside, outside = moved_mask[0, 0] > 0.99, moved_mask[0, 0] < 0.01
        grey = moved.mean(dim=1)[0]
        # blur of at most 2 px leaves the most of both sides alone
        assert grey[inside].median() > grey[outside].median() + 0.2
        assert 0 <= moved.min() <= moved.max() <= 1


def test_the_generator_is_the_only_source_of_randomness():
    image, mask = disc(32, 32)
    made = [augment(image, mask, 256, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_the_area_stays_within_the_zoom():
    image, mask = disc(64, 64)
    shares = [
        float(augment(image, mask, 256, torch.Generator().manual_seed(seed))[1].mean() / mask.mean())
        for seed in range(20)
    ]
    # zoom exp(+-0.25) in both directions gives areas in [0.60, 1.65]; reflection may show a border twice
    assert min(shares) > 0.55
    assert max(shares) < 2.2


def areas(ranges: Augmentation) -> list[float]:
    """Area of a moved disc over its own, for 30 seeds; in sorted order."""
    image, mask = disc(64, 64)
    moved = (augment(image, mask, 256, torch.Generator().manual_seed(seed), ranges)[1] for seed in range(30))
    return sorted(float(found.mean() / mask.mean()) for found in moved)


@pytest.mark.parametrize(
    ("seed", "channels", "share"),
    [(0, [0.12149, 0.12683, 0.11827], 0.14197), (3, [0.07966, 0.08503, 0.07703], 0.11654)],
)
def test_the_defaults_are_those_that_older_adapters_were_fitted_with(seed, channels, share):
    moved, moved_mask = augment(*disc(64, 48), 256, torch.Generator().manual_seed(seed))
    # recorded before the ranges could be chosen; the tolerance is that of convolutions on another processor
    assert moved.mean((0, 2, 3)).tolist() == pytest.approx(channels, abs=1e-4)
    assert float(moved_mask.mean()) == pytest.approx(share, abs=1e-4)
    again, _ = augment(*disc(64, 48), 256, torch.Generator().manual_seed(seed), Augmentation())
    assert torch.equal(moved, again)


def test_ranges_of_nothing_leave_mirrors_and_quarter_turns():
    image, mask = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 1, 256, 256)
    moved, _ = augment(image, mask, 256, torch.Generator().manual_seed(1), Augmentation(**STILL))
    views = [
        torch.rot90(image.flip(-1) if mirror else image, turns, (-2, -1)) for mirror in (0, 1) for turns in range(4)
    ]
    # the grid is made in float32: a sample lies within 1e-4 px of its pixel
    assert min(float((moved - view).abs().max()) for view in views) < 1e-3


def test_a_wide_zoom_really_widens():
    small = areas(Augmentation(**STILL | {"zoom_out": 3.0}))
    large = areas(Augmentation(**STILL | {"zoom_in": 2.0}))
    # areas in [1/9, 1] and in [1, 4]; mirrored parts of the disc may come into sight beside it
    assert small[0] < 1.2
    assert large[0] > 0.99
    assert large[-1] > 2.5
    lone = disc(64, 64)[1]
    central = torch.roll(lone, (6, -6), (-2, -1))  # in the middle no mirror image of it comes into sight
    shrunk = [
        float(
            augment(central.expand(1, 3, -1, -1), central, 256, generator, Augmentation(**STILL | {"zoom_out": 1.4}))[
                1
            ].mean()
        )
        for generator in (torch.Generator().manual_seed(seed) for seed in range(20))
    ]
    assert min(shrunk) < 0.65 * float(central.mean())  # 1 / 1.4 ** 2 = 0.51 at most
    assert min(shrunk) > 0.5 * float(central.mean())


def test_gamma_bends_intensities_alone():
    grey = torch.full((1, 3, 16, 16), 0.25)
    mask = torch.zeros(1, 1, 16, 16)
    found = []
    for seed in range(40):
        moved, _ = augment(grey, mask, 256, torch.Generator().manual_seed(seed), Augmentation(**STILL | {"gamma": 2.0}))
        assert float(moved.std()) < 1e-5
        found.append(float(moved.mean()))
    # exponents from 1/2 to 2: 0.25 becomes 0.0625 to 0.5
    assert 0.0625 <= min(found) < 0.1
    assert 0.4 < max(found) <= 0.5 + 1e-6


def test_ranges_that_are_none_are_refused_at_once():
    with pytest.raises(Refused, match="refused: 4 problems") as refused:
        Augmentation(rotation=200, zoom_in=0.5, blur=math.nan, tint=True)
    message = str(refused.value)
    assert "augmentation#rotation: expected a number from 0 to 180, found 200" in message
    assert "augmentation#zoom_in: expected a number from 1 to 8, found 0.5" in message
    assert "augmentation#blur: expected a number from 0 to 1, found nan" in message
    assert "augmentation#tint: expected a number from 0 to 0.9, found True" in message
