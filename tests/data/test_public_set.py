from __future__ import annotations

import hashlib

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data import DataList, load_records, public_hash
from samfed_monai.teacher.exam import public_hash as hash_of_adapters
from tests.data.making import disc, item, pair, save, small_list


def test_the_hash_is_that_of_the_images_and_masks_in_order(tmp_path):
    datalist = small_list(tmp_path)
    rows = ",".join(f'["{one.sha256}","{one.label_sha256}"]' for one in datalist.public)
    assert public_hash(datalist) == hashlib.sha256(f"[{rows}]".encode()).hexdigest()
    turned = DataList("turned", datalist.public[::-1])
    assert public_hash(turned) != public_hash(datalist)
    assert public_hash(turned, ordered=False) == public_hash(datalist, ordered=False)


def test_a_list_and_its_records_agree_until_a_mask_changes(tmp_path):
    datalist = small_list(tmp_path)
    records = load_records(datalist, tmp_path, split="public")
    assert public_hash(records) == public_hash(datalist)
    assert hash_of_adapters(records) == public_hash(datalist, ordered=False)
    save(tmp_path / "masks" / "p0.png", disc(radius=9))
    assert public_hash(records) != public_hash(datalist)


def test_names_and_sites_do_not_enter(tmp_path):
    datalist = small_list(tmp_path)
    moved = [pair(tmp_path / "other", f"q{seed}", seed) for seed in range(2)]
    assert public_hash(DataList("moved", moved)) == public_hash(datalist)


def test_an_image_without_its_mask_is_refused(tmp_path):
    datalist = small_list(tmp_path)
    with pytest.raises(Refused, match=r"images/p0\.png: expected the mask's file, found no mask"):
        public_hash(DataList("bare", [item(tmp_path, "images/p0.png")]))
    records = load_records(datalist, tmp_path, split="public")
    (tmp_path / "masks" / "p1.png").unlink()
    with pytest.raises(Refused, match=r"p1\.png: expected a readable mask, found No such file"):
        public_hash(records)
