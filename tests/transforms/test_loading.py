"""Images, labels, soft masks and targets become plain tensors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor, set_track_meta
from monai.transforms import AsDiscreted, Compose, Resized, Transform
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.data.soft_masks import SoftMaskStore
from samfed_monai.transforms import (
    InvertResized,
    LoadImageRGBd,
    LoadRGBd,
    LoadSoftMaskd,
    LoadTargetd,
    PublicTargets,
    RenameItemsd,
    WeakViewd,
)


@pytest.fixture
def record(tmp_path) -> dict:
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 2] = (255, 51, 0)
    mask = np.zeros((4, 6), np.uint8)
    mask[1, 2] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    return {"image": str(tmp_path / "a.png"), "label": str(tmp_path / "m.png"), "id": "a"}


def test_loaded_image_and_label_have_values_and_native_size(record):
    item = LoadRGBd()(record)
    assert item["image"].shape == (3, 4, 6)
    assert item["image"][:, 1, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert item["label"].shape == (1, 4, 6)
    assert item["label"].nonzero().tolist() == [[0, 1, 2]]
    assert item["label"].max() == 1
    assert item["native_size"] == (4, 6)
    for key in ("image", "label"):
        assert type(item[key]) is torch.Tensor
        assert item[key].dtype == torch.float32
    assert isinstance(record["image"], str)
    del record["label"]
    assert set(LoadRGBd()(record)) == {"image", "id", "native_size"}
    del record["image"]
    with pytest.raises(KeyError, match="no 'image', only"):
        LoadRGBd()(record)


def test_declared_mask_threshold_is_used(record, tmp_path):
    Image.fromarray(np.full((4, 6), 130, np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(Refused):
        LoadRGBd()(record)
    assert LoadRGBd()({**record, "mask_threshold": 128})["label"].min() == 1


@pytest.mark.parametrize("value", [1, 255])
def test_fault_15_full_mask_is_loaded_as_ones(record, tmp_path, value):
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(tmp_path / "m.png")  # ScaleIntensity would make it zeros
    assert LoadRGBd()(record)["label"].unique().tolist() == [1.0]
    resized = Resized(["image", "label"], [8, 8], mode="area")
    chain = Compose([LoadRGBd(), resized, AsDiscreted("label", threshold=0.5)])
    assert chain(record)["label"].unique().tolist() == [1.0]


TEACHER, IMAGE = "a" * 64, "0" * 64


@pytest.fixture
def store(tmp_path) -> SoftMaskStore:
    store = SoftMaskStore(tmp_path, teacher_sha256=TEACHER)
    mask = torch.zeros(1, 4, 4)
    mask[:, :, 2:] = 1
    store.put(IMAGE, mask)
    return store


@pytest.mark.parametrize("size", [(4, 4), (16, 16), (12, 20), (2, 2)])
def test_soft_mask_is_resized_to_image(store, size):
    item = {"image": torch.rand(3, *size), "image_sha256": IMAGE}
    teacher = LoadSoftMaskd(store.folder, TEACHER)(item)["teacher"]
    assert torch.equal(LoadSoftMaskd(store, output_key="sam")(item)["sam"], teacher), "a store, and another key"
    assert teacher.shape == (1, *size)
    assert type(teacher) is torch.Tensor
    assert teacher.dtype == torch.float32
    assert teacher[:, :, 0].max() < 0.3
    assert teacher[:, :, -1].min() > 0.7
    assert teacher.min() >= 0
    assert teacher.max() <= 1


def test_missing_soft_mask_is_refused(store):
    with pytest.raises(Refused, match="run the same command again"):
        LoadSoftMaskd(store)({"image": torch.rand(3, 4, 4), "image_sha256": "1" * 64})


@pytest.mark.parametrize(("folder", "teacher"), [("", TEACHER), ("x", None)])
def test_store_without_teacher_is_refused(folder, teacher):
    with pytest.raises(Refused, match="set both options, store_dir and teacher_sha256, or neither"):
        LoadSoftMaskd(folder, teacher)


@pytest.mark.parametrize("given", [{"store": None}, {"store": "x", "masks_for": None}])
def test_item_is_unchanged_without_store_or_use(given):
    item = {"image": torch.rand(3, 4, 4), "image_sha256": IMAGE}
    assert LoadSoftMaskd(**given)(item) == item


def test_items_are_renamed_and_missing_keys_refused():
    rename = RenameItemsd(["image_strong", "label"], ["image", "mask"])
    assert rename({"image": 1, "image_strong": 2, "label": 3}) == {"image": 2, "mask": 3}
    with pytest.raises(KeyError, match="image_strong"):
        rename({"image": 1, "label": 3})
    assert RenameItemsd("image_strong", "image", allow_missing_keys=True)({"image": 1}) == {"image": 1}
    message = "RenameItemsd -> names: expected one name for each key, found 1 names for 2 keys"
    with pytest.raises(Refused, match=message):
        RenameItemsd(["a", "b"], "c")


def test_copied_transform_reads_later_targets():
    targets = PublicTargets()
    copied = copy.deepcopy(LoadTargetd(targets))
    assert copied(item()).keys() == item().keys(), "nothing is set"
    targets.set(torch.full((1, 1, 4, 4), 255, dtype=torch.uint8), torch.tensor([True]))
    assert copied(item())["target"].unique().tolist() == [1.0]


def item(index: int = 0, size: int = 4) -> dict:
    return {"index": index, "image": torch.zeros(3, size, size)}


def test_target_and_gate_are_selected_by_index_and_resized():
    targets = PublicTargets()
    masks = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    masks[1] = 51
    targets.set(masks, torch.tensor([True, False]))
    first, second = (LoadTargetd(targets)(item(index)) for index in range(2))
    assert (first["target"].sum(), first["target_gate"]) == (0, 1)
    assert torch.equal(second["target"], torch.full((1, 4, 4), 0.2))
    assert (second["target_gate"], second["target_gate"].dtype) == (0, torch.float32)
    targets.set(torch.tensor([[[[0, 255]]]], dtype=torch.uint8).expand(1, 1, 2, 2), torch.tensor([True]))
    row = LoadTargetd(targets)(item())["target"][0, 0].tolist()
    assert row == [0, 0.25, 0.75, 1]  # half pixels: the centres lie at 0.25 and 0.75


def test_targets_are_not_cached_between_rounds():
    calls = []

    class Read(Transform):
        def __call__(self, data):
            calls.append(data["index"])
            return dict(data)

    targets = PublicTargets()
    dataset = CacheDataset([item(0), item(1)], Compose([Read(), LoadTargetd(targets)]), progress=False)
    for value in (0, 255):
        targets.set(torch.full((2, 1, 4, 4), value, dtype=torch.uint8), torch.ones(2, dtype=torch.bool))
        assert [dataset[index]["target"].mean().item() for index in range(2)] == [value / 255] * 2
    targets.clear()
    assert "target" not in dataset[0]
    assert "target_gate" not in dataset[0]
    assert calls == [0, 1], "what comes before it is read once"


def test_target_is_transformed_with_image_and_label():
    targets = PublicTargets()
    square = torch.zeros(1, 16, 16)
    square[:, 3:9, 5:8] = 1
    targets.set((square * 255).to(torch.uint8)[None], torch.tensor([True]))
    view = WeakViewd(rotate=0, zoom=(1, 1), shear=0, shift=0)
    moves = 0
    both = Compose([LoadTargetd(targets), view])
    for seed in range(8):
        both.set_random_state(seed)  # of the whole: a Compose that is built draws its parts' states anew
        moved = both({"index": 0, "image": square.expand(3, -1, -1), "label": square})
        assert torch.allclose(moved["target"], moved["label"])
        assert torch.allclose(moved["image"][:1], moved["label"])
        moves += not torch.equal(moved["label"], square)
    assert moves > 4


def test_target_does_not_change_random_views():
    targets, views = PublicTargets(), []
    for masks in (None, torch.zeros(1, 1, 8, 8, dtype=torch.uint8)):
        if masks is not None:
            targets.set(masks, torch.tensor([False]))
        transform = Compose([LoadTargetd(targets), WeakViewd()])
        transform.set_random_state(seed=3)
        views.append(transform({"index": 0, "image": torch.arange(64.0).reshape(1, 8, 8)})["image"])
    assert torch.equal(*views)


def test_inference_reader_gives_upright_pixels_and_metadata(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    Image.new("L", (6, 4), 51).save(tmp_path / "grey.png", exif=exif)
    set_track_meta(True)
    item = LoadImageRGBd()({"image": str(tmp_path / "grey.png"), "id": "grey"})
    assert (item["image"].shape, item["image"].dtype) == ((6, 4, 3), torch.float32)
    assert item["image"].unique().tolist() == [51.0]
    assert item["image"].meta["spatial_shape"].tolist() == [6, 4]
    np.save(tmp_path / "array.npy", np.zeros((4, 4, 3)))  # which MONAI's own readers would take
    with pytest.raises(RuntimeError, match=r"array.npy: expected one of "):
        LoadImageRGBd()({"image": str(tmp_path / "array.npy")})


def resized(height: int, width: int, size: int) -> MetaTensor:
    image = MetaTensor(torch.zeros(1, height, width))
    return Resized("image", (size, size), mode="area")({"image": image})["image"]


def test_prediction_is_resized_back_bilinearly():
    set_track_meta(True)
    item = InvertResized("pred")({"image": resized(2, 4, 2), "pred": torch.tensor([[[-1.0, 1.0], [-1.0, 1.0]]])})
    # torch's bilinear without aligned corners: samples at -0.25, 0.25, 0.75, 1.25 of the two columns, clamped
    assert item["pred"].tolist() == [[[-1.0, -0.5, 0.5, 1.0]] * 2]
    assert type(item["pred"]) is torch.Tensor


def test_untracked_image_is_reported():
    pred = torch.zeros(1, 2, 2)
    with pytest.raises(KeyError, match=r"'image' is no MetaTensor; expected .*set_track_meta"):
        InvertResized("pred")({"image": torch.zeros(1, 2, 2), "pred": pred})
    with pytest.raises(KeyError, match="a MetaTensor that was not resized"):
        InvertResized("pred")({"image": MetaTensor(torch.zeros(1, 2, 2)), "pred": pred})
