from __future__ import annotations

import torch
from PIL import Image

from samfed_monai.networks.sam.geometry import place
from samfed_monai.teacher import evaluation_records, public_hash
from samfed_monai.teacher.exam import read_pair
from tests.networks.fakes import fake_records


def test_the_public_hash_is_of_images_and_masks_in_any_order(tmp_path):
    records = fake_records(tmp_path, 3)
    before = public_hash(records)
    assert public_hash(records[::-1]) == before
    assert public_hash(records[:2]) != before
    Image.new("L", (32, 32), 255).save(records[0]["label"])
    assert public_hash(records) != before


def test_a_pair_is_read_at_its_native_size(tmp_path):
    (record,) = fake_records(tmp_path, 1, (24, 40))
    pair = read_pair(record)
    assert pair.image.shape == (1, 3, 24, 40)
    assert pair.mask.shape == (1, 1, 24, 40)
    image, mask = pair.floats()
    assert 0.2 < image.mean() < 1
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_a_large_pair_is_shrunk_to_its_place_in_the_input_once(tmp_path):
    (record,) = fake_records(tmp_path, 1, (96, 160))
    native = read_pair(record)
    small = native.shrunk(64)
    assert small.image.shape == (1, 3, 40, 64)  # 38.4 rows, rounded to a multiple of 4
    assert small.image.dtype == small.mask.dtype == torch.uint8
    for kept, exact in zip(small.floats(), native.floats(), strict=True):
        expected = place(exact, 64)
        assert torch.equal(place(kept, 64), kept), "it is at its place"
        torch.testing.assert_close(kept, expected, rtol=0, atol=0.5 / 255 + 1e-6)
    assert 0 < float(small.floats()[1].max()) <= 1
    assert native.shrunk(160) is native
    assert native.shrunk(512) is native, "nothing is enlarged and kept"


def test_no_split_is_no_evaluation(tmp_path):
    assert evaluation_records(tmp_path / "none.json", tmp_path, split=None) == {}
