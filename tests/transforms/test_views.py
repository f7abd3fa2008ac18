"""The views of a bundle's train.json: labelled, unlabelled, and for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.data import SoftMaskStore
from samfed_monai.transforms import LoadTargetd, PublicTargets, ResizeWithLabeld, StrongViewd, WeakViewd

ROOT = Path(__file__).parents[2]

HASH, TEACHER = "b" * 64, "a" * 64


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """An image of 20 x 30 pixels; its left half is lesion."""
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


def pipelines(bundle: str = "samfed_skin", **overrides: Any) -> dict[str, Compose]:
    """The three lists of a bundle's ``train.json``, built by MONAI's parser."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(ROOT / "bundles" / bundle / "configs" / "train.json")
    for name, value in {"image_size": 16, **overrides}.items():
        parser[name] = value
    return {name: parser.get_parsed_content(f"{name}#preprocessing") for name in ("train", "unlabelled", "validate")}


def test_evaluation_resizes_image_and_label(record):
    item = pipelines()["validate"](record)
    assert item["image"].shape == (3, 16, 16)
    assert torch.equal(torch.as_tensor(item["label"])[0, 0], torch.tensor([1.0] * 8 + [0.0] * 8))
    assert item["native_size"] == (20, 30)
    assert "label" not in pipelines()["validate"](without_label(record))


@pytest.mark.parametrize(("label_resize", "columns"), [("area", [0, 1, 1, 0]), ("nearest", [0, 0, 1, 0])])
def test_label_is_resized_by_area_or_nearest_pixel(tmp_path, label_resize, columns):
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:, 12:20] = 255  # in the middle
    Image.fromarray(mask).convert("RGB").save(tmp_path / "i.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    record = {"image": str(tmp_path / "i.png"), "label": str(tmp_path / "m.png")}
    item = pipelines(image_size=4, label_resize=label_resize)["validate"](record)
    assert torch.as_tensor(item["label"])[0, 0].tolist() == columns
    assert torch.as_tensor(item["image"])[0, 0].tolist() == [0, 0.5, 0.5, 0]


@pytest.mark.parametrize("bundle", ["samfed_skin", "samfed_polyp"])
def test_bundle_preprocessing_has_expected_order(bundle):
    names = {which: [type(step).__name__ for step in chain.transforms] for which, chain in pipelines(bundle).items()}
    read = ["LoadRGBd", "ResizeWithLabeld", "AsDiscreted"]
    assert names == {
        "train": [*read, "LoadTargetd", "WeakViewd", "StrongViewd", "RenameItemsd"],
        "unlabelled": [*read, "LoadSoftMaskd", "WeakViewd", "StrongViewd"],
        "validate": read,
    }


def test_labelled_images_use_strong_view(record):
    chain = pipelines()["train"].set_random_state(3)
    weak, strong = WeakViewd(), StrongViewd(strength=0.5, cutout=0.0)
    by_hand = Compose([*chain.transforms[:3], LoadTargetd(PublicTargets()), weak, strong]).set_random_state(3)
    for _ in range(3):
        item, expected = chain(record), by_hand(record)
        assert torch.equal(item["image"], expected["image_strong"])
        assert torch.equal(item["label"], expected["label"])
        assert "image_strong" not in item


def test_unlabelled_views_include_soft_mask_and_weak_view(record, store):
    chain = pipelines(store_dir=str(store), teacher_sha256=TEACHER)["unlabelled"]
    item = chain.set_random_state(0)(without_label(record))
    assert item["teacher"].shape == (1, 16, 16)
    assert item["teacher"].mean().item() == pytest.approx(0.75, abs=0.01)
    assert not torch.equal(item["image"], item["image_strong"])
    assert "label" not in item


@pytest.mark.parametrize("given", [{"store_dir": None}, {"guides#sam#_disabled_": True}])
def test_soft_masks_are_not_read_without_store_or_use(record, store, given):
    arguments = {"store_dir": str(store), "teacher_sha256": TEACHER, **given}
    assert "teacher" not in pipelines(**arguments)["unlabelled"](record)


def test_resized_class_label_is_one_hot():
    planes = torch.tensor([[0.0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]])  # a row of six pixels
    label = planes[:, None].expand(3, 2, 6)
    resize = ResizeWithLabeld(["image", "label"], [1, 2], ["area", "area"])
    resized = resize({"image": torch.zeros(3, 2, 6), "label": label})["label"]
    assert resized[:, 0].tolist() == [[1, 0], [0, 1], [0, 0]]  # two thirds background; thirds, and the first class
    half = ResizeWithLabeld(["image", "label"], [1, 3], ["area", "area"])({"image": label, "label": label})["label"]
    assert half[:, 0].tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 0]], "foreground from a half on, as in binary masks"


@pytest.mark.parametrize("mode", [["area", "bilinear"], "bilinear"])
def test_invalid_label_resize_is_refused(mode):
    with pytest.raises(Refused, match=r"json -> label_resize: expected one of \['area', 'nearest'\], found 'bilinear'"):
        ResizeWithLabeld(["image", "label"], [4, 4], mode)
    assert ResizeWithLabeld(["image", "label"], [4, 4], "area")({"image": torch.ones(1, 8, 8)})["image"].shape[1] == 4
