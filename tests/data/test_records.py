"""From a data list to records: sites, splits, the public set."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monai.data.utils import list_data_collate
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.data import public_hash
from samfed_monai.data.datalist import DataList, Site
from samfed_monai.data.records import load_records, split_public
from samfed_monai.transforms.loading import read_label
from tests.data.making import disc, item, pair, picture, save, small_list


def test_records_hold_absolute_paths_and_hashes(tmp_path):
    datalist = small_list(tmp_path)
    datalist.save(tmp_path / "list.json")
    first, second = load_records(tmp_path / "list.json", tmp_path, split="public")
    root = tmp_path.resolve()
    assert first == {
        "id": "p0",
        "image": str(root / "images" / "p0.png"),
        "label": str(root / "masks" / "p0.png"),
        "image_sha256": datalist.public[0].sha256,
        "site": "",
        "index": 0,
    }
    assert (second["id"], second["index"]) == ("p1", 1)
    assert "index" not in load_records(datalist, tmp_path, split="test", site="site-1")[0]
    assert load_records(DataList("list", [], {"a": Site()}), tmp_path, split="test", site="a") == []


def test_records_with_and_without_group_are_collated(tmp_path):
    datalist = small_list(tmp_path)
    datalist.public[0] = replace(datalist.public[0], group="patient")
    records = load_records(datalist, tmp_path, split="public")
    assert [record["group"] for record in records] == ["patient", ""]
    assert list_data_collate(records)["group"] == ["patient", ""]
    train, held_out = split_public([*records, *records], 0.5)  # images without a group are apart
    assert {record["group"] for record in train} != {record["group"] for record in held_out}


def test_slices_have_place_in_volume_only_if_volume_is_complete(tmp_path, caplog):
    places = [{"volume": "v.nii", "slice": 2, "spacing": [1, 2, 3]}, {"volume": "w.nii"}, {}]
    one = pair(tmp_path, "a", 0)
    items = [replace(one, **place) for place in places]
    datalist = DataList("list", [], {"a": Site(items, items, items)})
    keys = ("volume", "slice", "spacing")
    for split in ("validation", "test"):
        found = [[record[key] for key in keys] for record in load_records(datalist, tmp_path, split=split, site="a")]
        assert found == [["v.nii", 2, [1, 2, 3]], ["w.nii", 1, [0, 0, 0]], ["", 0, [0, 0, 0]]]
    assert not set(keys) & load_records(datalist, tmp_path, split="unlabelled", site="a")[0].keys()
    slices = [replace(pair(tmp_path, f"s{n}", n), volume=f"{n % 2}.nii", slice=n) for n in range(1, 5)]
    datalist = DataList("parted", [], {"a": Site(slices[3:], [], slices[:3])})  # a slice of 0.nii is to train on
    found, few = (load_records(datalist, tmp_path, split="test", site="a", limit=limit) for limit in (None, 1))
    assert [each["volume"] for each in found] == ["1.nii", "", "1.nii"]
    assert not few[0].keys() & set(keys)
    assert caplog.text.count("parted -> a -> test: 1 volume cut by a limit or split, not scored as a whole") == 1


def test_masks_and_weak_labels_are_collated(tmp_path):
    pairs = [pair(tmp_path, name, seed) for seed, name in enumerate("abc")]
    save(tmp_path / "masks" / "b.png", Image.fromarray(np.array([[0, 1], [255, 1]], np.uint8)))
    items = [pairs[0], replace(pairs[1], label_kind="points"), replace(pairs[2], label_kind="mask")]
    datalist = DataList("mixed", [], {"a": Site(items)})
    records = load_records(datalist, tmp_path, split="unlabelled", site="a", with_labels=True, weak_labels=True)
    assert list_data_collate(records)["label_kind"] == ["mask", "points", "mask"]
    values = [set(np.unique(read_label(record)).tolist()) for record in records]
    assert values == [{0, 1}, {0, 1, 255}, {0, 1}], "255 of a mask is foreground"
    with pytest.raises(Refused, match=r"found 1 weak label \(points\)"):
        load_records(datalist, tmp_path, split="unlabelled", site="a", with_labels=True)


def test_labels_of_unlabelled_images_are_loaded_on_request_only(tmp_path):
    datalist = replace(small_list(tmp_path), mask_threshold=128)
    cases = (("unlabelled", None, 0), ("unlabelled", True, 1), ("test", None, 1), ("test", False, 0))
    for split, requested, labelled in cases:
        (record,) = load_records(datalist, tmp_path, split=split, site="site-1", with_labels=requested)
        assert ("label" in record, record.get("mask_threshold")) == (labelled, 128 if labelled else None)


def test_limit_keeps_the_order_of_the_list(tmp_path):
    items = [pair(tmp_path, f"i{number}", number) for number in range(6)]
    records = load_records(DataList("list", items), tmp_path, split="public", limit=4)
    chosen = sorted(items, key=lambda item: item.sha256)[:4]
    assert [record["image_sha256"] for record in records] == [item.sha256 for item in items if item in chosen]


def test_unknown_site_split_and_limit_are_refused(tmp_path):
    datalist = small_list(tmp_path)
    with pytest.raises(Refused, match=r"site: expected one of \['site-1'\], found 'site-2'"):
        load_records(datalist, tmp_path, split="test", site="site-2")
    message = (
        r"(?s)split: expected one of \['public', .*found 'train'.*limit: expected a number of .* >= 1, or null, found"
    )
    with pytest.raises(Refused, match=message):
        load_records(datalist, tmp_path, split="train", site="site-1", limit=-1)


def test_fault_19_missing_files_and_links_are_reported_together(tmp_path):
    datalist = small_list(tmp_path / "right")
    (tmp_path / "wrong").mkdir()
    text = "expected {} of small -> {}, found none of them (the first is images/{}.png); is this the data root that the"
    for site, split, count, first in ((None, "public", "4 files", "p0"), ("site-1", "unlabelled", "1 file", "u0")):
        with pytest.raises(Refused, match="1 problem\n") as caught:
            load_records(datalist, tmp_path / "wrong", split=split, site=site)
        assert text.format(count, f"{site or 'public'} -> {split}", first) in str(caught.value)
    (tmp_path / "right/images/p1.png").rename(tmp_path / "p1.png")
    (tmp_path / "right/images/p1.png").symlink_to(tmp_path / "p1.png")
    gone = [tmp_path.resolve() / "right" / path for path in ("images/p0.png", "masks/p1.png")]
    for path in gone:
        path.unlink()
    with pytest.raises(Refused) as caught:
        load_records(datalist, tmp_path / "right", split="public")
    text = "expected a file that the list names, found no such file; restore it, or check the data root"
    image, link, mask = map(str, caught.value.problems)
    assert [image, mask] == [f"{path}: {text}" for path in gone]
    assert "'images/p1.png', a link out of the data root" in link


groups = st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=12, max_size=40)


@given(groups, st.sampled_from([0.1, 0.3]), st.integers(0, 3))
def test_split_public_is_exact_grouped_and_deterministic(groups, fraction, seed):
    records = [{"image_sha256": f"{n:04d}", **({"group": g} if g else {})} for n, g in enumerate(groups)]
    if len({g or n for n, g in enumerate(groups)}) < 2:
        with pytest.raises(Refused, match="at least 2, one to hold out, found 1 independent group of images; add "):
            split_public(records, fraction, seed)
        return
    train, held_out = split_public(records, fraction, seed)
    assert sorted(train + held_out, key=lambda r: r["image_sha256"]) == records
    assert train
    assert held_out
    assert not {r["group"] for r in train if "group" in r} & {r["group"] for r in held_out if "group" in r}
    assert (train, held_out) == split_public(records, fraction, seed)


def test_split_public_holds_out_fraction_and_keeps_copies_together():
    records = [{"image_sha256": f"{number // 2:04d}"} for number in range(40)]  # every image twice
    train, held_out = split_public(records, 0.2)
    assert (len(train), len(held_out)) == (32, 8)
    assert not {r["image_sha256"] for r in train} & {r["image_sha256"] for r in held_out}
    assert split_public(records, 0.0) == (records, [])
    with pytest.raises(Refused, match=r"fraction: expected a number in \[0, 1\)"):
        split_public(records, 1.0)
    for fraction in (0.0, 0.2):
        with pytest.raises(Refused, match=r"public: expected public images with masks, found none; make the list"):
            split_public([], fraction)


def test_public_hash_covers_images_and_masks_in_order(tmp_path):
    datalist = small_list(tmp_path)
    rows = ",".join(f'["{one.sha256}","{one.label_sha256}"]' for one in datalist.public)
    assert public_hash(datalist) == hashlib.sha256(f"[{rows}]".encode()).hexdigest()
    moved = [pair(tmp_path / "other", f"q{seed}", seed) for seed in range(2)]
    assert public_hash(DataList("moved", moved)) == public_hash(datalist), "names and sites do not enter"
    turned = DataList("turned", datalist.public[::-1])
    assert public_hash(turned) != public_hash(datalist)
    assert public_hash(turned, ordered=False) == public_hash(datalist, ordered=False)


def test_public_hash_of_list_equals_records_until_mask_changes(tmp_path):
    datalist = small_list(tmp_path)
    records = load_records(datalist, tmp_path, split="public")
    assert public_hash(records) == public_hash(datalist)
    assert public_hash(records[::-1], ordered=False) == public_hash(datalist, ordered=False)
    save(tmp_path / "masks" / "p0.png", disc(radius=9))
    assert public_hash(records) != public_hash(datalist)
    save(tmp_path / "images" / "p1.png", picture(9))
    message = r"(?s)2 problems.*masks/p0\.png: .*, found SHA-256 .*images/p1\.png: .*; restore"
    with pytest.raises(Refused, match=message):
        load_records(datalist, tmp_path, split="public", verify=True)


def test_public_hash_refuses_image_without_mask(tmp_path):
    datalist = small_list(tmp_path)
    with pytest.raises(Refused, match=r"images/p0\.png: expected the mask's file, found no mask"):
        public_hash(DataList("bare", [item(tmp_path, "images/p0.png")]))
    records = load_records(datalist, tmp_path, split="public")
    (tmp_path / "masks" / "p1.png").unlink()
    with pytest.raises(Refused, match=r"p1\.png: expected a readable mask, found No such file"):
        public_hash(records)
