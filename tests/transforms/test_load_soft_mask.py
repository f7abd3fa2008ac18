"""The teacher's mask joins the item at the image's size."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.data.soft_masks import SoftMaskStore
from samfed_monai.transforms import LoadSoftMaskd

TEACHER, IMAGE = "a" * 64, "0" * 64


@pytest.fixture
def store(tmp_path) -> SoftMaskStore:
    store = SoftMaskStore(tmp_path, teacher_sha256=TEACHER)
    mask = torch.zeros(1, 4, 4)
    mask[:, :, 2:] = 1
    store.put(IMAGE, mask)
    return store


@pytest.mark.parametrize("size", [(4, 4), (16, 16), (12, 20), (2, 2)])
def test_it_is_resized_to_the_image(store, size):
    item = LoadSoftMaskd(store.folder, TEACHER)({"image": torch.rand(3, *size), "image_sha256": IMAGE})
    teacher = item["teacher"]
    assert teacher.shape == (1, *size)
    assert type(teacher) is torch.Tensor
    assert teacher.dtype == torch.float32
    assert teacher[:, :, 0].max() < 0.3
    assert teacher[:, :, -1].min() > 0.7
    assert teacher.min() >= 0
    assert teacher.max() <= 1


def test_a_store_object_and_another_key(store):
    item = LoadSoftMaskd(store, output_key="sam")({"image": torch.rand(3, 4, 4), "image_sha256": IMAGE})
    assert item["sam"].unique().tolist() == [0, 1]


def test_a_mask_that_was_never_computed_is_refused(store):
    with pytest.raises(Refused, match="run the same command again"):
        LoadSoftMaskd(store)({"image": torch.rand(3, 4, 4), "image_sha256": "1" * 64})


@pytest.mark.parametrize(("folder", "teacher"), [(None, TEACHER), ("x", None)])
def test_a_store_without_a_teacher_is_refused(folder, teacher):
    with pytest.raises(Refused, match="set the knobs store_dir and teacher_sha256, or disable this transform"):
        LoadSoftMaskd(folder, teacher)
