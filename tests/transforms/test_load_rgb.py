"""Images and labels become plain tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.transforms import EvaluationImages, LoadRGBd


@pytest.fixture
def record(tmp_path) -> dict:
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 2] = (255, 51, 0)
    mask = np.zeros((4, 6), np.uint8)
    mask[1, 2] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    return {"image": str(tmp_path / "a.png"), "label": str(tmp_path / "m.png"), "id": "a"}


def test_values_shapes_and_native_size(record):
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


def test_an_unlabelled_record_is_fine(record):
    del record["label"]
    assert set(LoadRGBd()(record)) == {"image", "id", "native_size"}


def test_a_declared_threshold_is_used(record, tmp_path):
    Image.fromarray(np.full((4, 6), 130, np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(Refused):
        LoadRGBd()(record)
    assert LoadRGBd()({**record, "mask_threshold": 128})["label"].min() == 1


@pytest.mark.parametrize("value", [1, 255])
def test_fault_15_a_full_mask_is_ones_everywhere(record, tmp_path, value):
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(tmp_path / "m.png")  # ScaleIntensity would make it zeros
    assert LoadRGBd()(record)["label"].unique().tolist() == [1.0]
    assert EvaluationImages(image_size=8)(record)["label"].unique().tolist() == [1.0]


def test_a_record_without_an_image_says_so(record):
    del record["image"]
    with pytest.raises(KeyError, match="no 'image', only"):
        LoadRGBd()(record)
