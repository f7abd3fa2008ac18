"""Soft masks of several classes in the store: planes come back as they were put, damage is found in them, too."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.data import SoftMaskStore

TEACHER, IMAGE = "a" * 64, "b" * 64


@pytest.mark.parametrize("bits", [8, 16])
def test_planes_come_back_in_their_order(tmp_path, bits):
    store = SoftMaskStore(tmp_path, teacher_sha256=TEACHER, bits=bits)
    planes = torch.rand(3, 4, 5).softmax(dim=0)
    store.put(IMAGE, planes)
    found = store.get(IMAGE)
    assert found.shape == (3, 4, 5)
    assert (found - planes).abs().max() <= 0.5 / (2**bits - 1) + 1e-7
    assert (found.sum(0) - 1).abs().max() <= 3 * 0.5 / (2**bits - 1) + 1e-6


def test_one_plane_is_the_file_that_it_was(tmp_path):
    store = SoftMaskStore(tmp_path, teacher_sha256=TEACHER)
    store.put(IMAGE, torch.full((1, 2, 2), 0.5))
    (file,) = tmp_path.rglob("*.mask")
    assert file.read_bytes()[:4] == b"SFM1"
    assert len(file.read_bytes()) == 14 + 4


@pytest.mark.parametrize("place", [14, 15, 20, -1])
def test_a_flipped_byte_makes_it_missing(tmp_path, place):
    store = SoftMaskStore(tmp_path, teacher_sha256=TEACHER)
    store.put(IMAGE, torch.rand(3, 4, 4))
    (file,) = tmp_path.rglob("*.mask")
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    assert store.missing([IMAGE]) == [IMAGE]


def test_two_planes_are_no_number_of_classes(tmp_path):
    with pytest.raises(
        Refused, match=r"expected shape \(1, h, w\), or of K classes \(K \+ 1, h, w\), found shape \(2, 4"
    ):
        SoftMaskStore(tmp_path, teacher_sha256=TEACHER).put(IMAGE, torch.rand(2, 4, 4))
