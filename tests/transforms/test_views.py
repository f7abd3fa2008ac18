"""From a record to what the network sees: labelled, unlabelled, and for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, Resized
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.data import SoftMaskStore
from samfed_monai.transforms import (
    EvaluationImages,
    LabelledViews,
    LoadRGBd,
    StrongViewd,
    UnlabelledViews,
    WeakViewd,
)

HASH, TEACHER = "b" * 64, "a" * 64


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """An image of 20 x 30 pixels whose left half is lesion."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[:, :15] = 255
    Image.fromarray(pixels).save(tmp_path / "i.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    return {"image": str(tmp_path / "i.png"), "label": str(tmp_path / "m.png"), "image_sha256": HASH}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    SoftMaskStore(tmp_path / "store", teacher_sha256=TEACHER).put(HASH, torch.full((1, 8, 8), 0.75))
    return tmp_path / "store"


def without_label(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "label"}


def test_evaluation_brings_image_and_label_to_one_size(record):
    item = EvaluationImages(image_size=16)(record)
    assert item["image"].shape == (3, 16, 16)
    assert torch.equal(torch.as_tensor(item["label"])[0, 0], torch.tensor([1.0] * 8 + [0.0] * 8))
    assert item["native_size"] == (20, 30)


@pytest.mark.parametrize(("label_resize", "columns"), [("area", [0, 1, 1, 0]), ("nearest", [0, 0, 1, 0])])
def test_a_label_stays_where_its_image_has_it_unless_it_is_asked_for_the_nearest_pixel(tmp_path, label_resize, columns):
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:, 12:20] = 255  # in the middle
    Image.fromarray(mask).convert("RGB").save(tmp_path / "i.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    record = {"image": str(tmp_path / "i.png"), "label": str(tmp_path / "m.png")}
    item = EvaluationImages(image_size=4, label_resize=label_resize)(record)
    assert torch.as_tensor(item["label"])[0, 0].tolist() == columns
    assert torch.as_tensor(item["image"])[0, 0].tolist() == [0, 0.5, 0.5, 0]


def test_another_way_to_resize_labels_is_refused():
    with pytest.raises(
        Refused, match=r"train\.json -> label_resize: expected one of \['area', 'nearest'\], found 'bilinear'"
    ):
        EvaluationImages(image_size=4, label_resize="bilinear")


def test_evaluation_does_without_a_label(record):
    assert "label" not in EvaluationImages(image_size=16)(without_label(record))


def test_labelled_views_are_those_of_the_transforms_in_a_row(record):
    chain = Compose(
        [
            LoadRGBd(),
            Resized(["image", "label"], [16, 16], mode=["area", "nearest"]),
            WeakViewd(["image", "label"], rotate=40.0),
            StrongViewd(output_key="image", noise=0.1),
        ]
    ).set_random_state(3)
    views = LabelledViews(image_size=16, weak=WeakViewd(rotate=40.0), strong=StrongViewd(noise=0.1)).set_random_state(3)
    for _ in range(3):
        expected, item = chain(record), views(record)
        assert item.keys() == expected.keys()
        assert all(torch.equal(item[key], expected[key]) for key in ("image", "label"))


def test_the_same_views_serve_both_kinds_of_images_without_sharing_random_numbers(record):
    weak, strong = WeakViewd(), StrongViewd()
    alone = LabelledViews(image_size=16, weak=weak, strong=strong).set_random_state(1)
    labelled = LabelledViews(image_size=16, weak=weak, strong=strong).set_random_state(1)
    unlabelled = UnlabelledViews(image_size=16, weak=weak, strong=strong).set_random_state(2)
    for _ in range(3):
        unlabelled(record)
        assert torch.equal(labelled(record)["image"], alone(record)["image"])


def test_unlabelled_views_move_the_soft_mask_and_keep_the_weak_view(record, store):
    views = UnlabelledViews(
        image_size=16, weak=WeakViewd(), strong=StrongViewd(), store_dir=store, teacher_sha256=TEACHER
    )
    item = views.set_random_state(0)(without_label(record))
    assert item["teacher"].shape == (1, 16, 16)
    assert item["teacher"].mean().item() == pytest.approx(0.75, abs=0.01)
    assert not torch.equal(item["image"], item["image_strong"])
    assert "label" not in item


@pytest.mark.parametrize("given", [{"store_dir": None}, {"masks_for": None}])
def test_soft_masks_are_left_unread_without_a_store_or_without_a_use(record, store, given):
    arguments = {"store_dir": store, "teacher_sha256": TEACHER, **given}
    assert "teacher" not in UnlabelledViews(image_size=16, weak=WeakViewd(), strong=StrongViewd(), **arguments)(record)


def test_a_store_without_its_teacher_is_refused(store):
    with pytest.raises(Refused, match="set the knobs store_dir and teacher_sha256"):
        UnlabelledViews(image_size=16, weak=WeakViewd(), strong=StrongViewd(), store_dir=store)
