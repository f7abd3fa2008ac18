"""What a teacher's images go through while it is fitted: the list in the bundles' ``teacher.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.transforms import Compose, RandGaussianNoised, SpatialPadd

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import canonical_hash
from samfed_monai.networks.sam.build import PIXEL_MEAN, PIXEL_STD, build_sam, place
from samfed_monai.teacher.views import PlaceInInputd, ViewedImages, content_of, without_views
from samfed_monai.transforms import LoadRGBd
from tests.networks.fakes import fake_records

from .steps import steps

SIZE = 64
STILL = {
    **{f"weak_view#{name}": 0.0 for name in ("rotate", "shift")},
    "weak_view#zoom": [1.0, 1.0],
    "strong_view#strength": 0.0,
}
"""Overrides that leave an image as it is, but for mirrors and quarter turns."""


def disc(height: int, width: int) -> dict[str, torch.Tensor]:
    """A bright disc off the centre on black, and its mask."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mask = ((rows - height * 0.4) ** 2 + (columns - width * 0.6) ** 2 < (min(height, width) * 0.2) ** 2).float()
    return {"image": (mask * 0.8).expand(3, -1, -1), "label": mask[None]}


def seen(item: dict[str, torch.Tensor], seed: int, **overrides: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """An image that is read already, in one view, with its colours as they were before they were normalised."""
    chain = steps(**overrides)
    read = Compose([step for step in chain.transforms if not isinstance(step, LoadRGBd)])
    image, label = ViewedImages([item], read, seed=seed).view(0, 0)
    mean, std = (torch.tensor(channels).view(3, 1, 1) / 255 for channels in (PIXEL_MEAN, PIXEL_STD))
    return image * std + mean, label


def test_image_and_mask_are_transformed_together():
    for seed in range(4):
        moved, mask = seen(disc(64, 48), seed)
        assert moved.shape == (3, 256, 256)
        assert mask.shape == (1, 256, 256)
        inside, outside = mask[0] > 0.99, mask[0] < 0.01
        grey = moved.mean(dim=0)
        # blur of at most 2.3 px leaves the most of both sides alone
        assert grey[inside].median() > grey[outside].median() + 0.2
        assert -1e-6 <= moved.min() <= moved.max() <= 1 + 1e-6


def test_view_depends_on_seed_part_and_image():
    items = [disc(32, 32), disc(32, 24)]
    one, other, again = (ViewedImages(items, Compose(steps().transforms[1:]), seed=seed) for seed in (1, 2, 1))
    first = one.view(0, 0)[0]
    one.view(1, 0)
    assert torch.equal(one.view(0, 0)[0], first)
    assert torch.equal(again.view(0, 0)[0], first)
    assert not torch.equal(one.view(0, 1)[0], first), "another epoch"
    assert not torch.equal(other.view(0, 0)[0], first), "another seed"


def test_zero_ranges_give_only_flips_and_quarter_turns():
    image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    views = [torch.rot90(image.flip(-1) if flip else image, turns, (-2, -1)) for flip in (0, 1) for turns in range(4)]
    found = set()
    for seed in range(40):
        moved, _ = seen({"image": image, "label": torch.zeros(1, SIZE, SIZE)}, seed, size=SIZE, **STILL)
        # the grid is made in float32: a sample is within 1e-4 px of its pixel
        (which,) = (index for index, view in enumerate(views) if float((moved - view).abs().max()) < 1e-3)
        found.add(which)
    assert found == set(range(8))


def test_still_image_is_resized_normalised_and_padded():
    item = disc(64, 48)
    image, label = ViewedImages([item], Compose(steps().transforms[1:])).still(0)
    sam = build_sam("vit_t", size=256)
    expected = torch.zeros(1, 3, 256, 256)
    expected[..., :192] = sam.normalise(place(item["image"][None], 256))
    torch.testing.assert_close(image[None], expected, rtol=0, atol=0.5 / 255 / 0.224 + 1e-5)  # kept in bytes
    assert float(label[..., 192:].abs().max()) == 0
    assert float(label.max()) == 1


def test_deterministic_transforms_are_cached(tmp_path):
    records = fake_records(tmp_path, 2)
    images = ViewedImages(records, steps())
    first = images.view(1, 0)[0]
    Path(records[1]["image"]).unlink()
    assert torch.equal(images.view(1, 0)[0], first)
    with pytest.raises((Refused, RuntimeError)):
        ViewedImages(records, steps()).view(1, 0)


def test_without_views_every_epoch_is_equal(tmp_path):
    images = ViewedImages(fake_records(tmp_path, 1), without_views(64))
    image, label = images.view(0, 0)
    assert torch.equal(image, images.view(0, 1)[0])
    assert torch.equal(image, images.still(0)[0])
    assert image.shape == (3, 64, 64)
    assert image.min() < 0, "normalised, and not squeezed into bytes"
    assert label.shape == (1, 64, 64)


def test_large_image_is_placed_in_input():
    image = torch.rand(3, 96, 160)
    placed = PlaceInInputd("image", size=64)({"image": image})["image"]
    assert placed.shape == (3, 40, 64)  # 38.4 rows, rounded to a multiple of 4
    assert torch.equal(placed, place(image[None], 64)[0])
    with pytest.raises(KeyError, match="label"):
        PlaceInInputd(size=64)({"image": image})


def test_content_of_transforms_depends_only_on_settings():
    known = [canonical_hash(content_of(steps(**numbers).transforms)) for numbers in ({}, {}, {"weak_view#shear": 1.0})]
    assert known[0] == known[1] != known[2]
    drawn = steps()
    before = canonical_hash(content_of(drawn.transforms))
    ViewedImages([disc(32, 32)], Compose(drawn.transforms[1:])).view(0, 0)
    assert canonical_hash(content_of(drawn.transforms)) == before, "what was drawn is no part of it"
    assert content_of([torch.nn.Linear, content_of, torch.device("cpu")]) == ["Linear", "content_of", "cpu"]
    foreign = content_of([RandGaussianNoised("image", std=0.5), SpatialPadd("image", [8, 8])])
    assert foreign[0]["class"] == "monai.transforms.intensity.dictionary.RandGaussianNoised"
    assert foreign[1]["padder"]["spatial_size"] == [8, 8]
