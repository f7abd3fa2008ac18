from __future__ import annotations

from PIL import Image

from samfed_monai.networks import evaluation_records, public_hash
from samfed_monai.networks.teacher.pairs import read_pair
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


def test_no_split_is_no_evaluation(tmp_path):
    assert evaluation_records(tmp_path / "none.json", tmp_path, split=None) == {}
