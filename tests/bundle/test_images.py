"""Records, data sets and the public set, from a small synthetic list."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.transforms import Compose, Lambda, Randomizable, RandomizableTransform, Transform

from samfed_monai.bundle import PublicSet, SiteImages, SplitDataset
from samfed_monai.core.errors import Refused
from samfed_monai.data import DataList, render_synthetic


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    sizes: dict[str, Any] = {"images_per_site": 3, "public": 4, "validation": 2, "test": 3, "size": (64, 64)}
    render_synthetic(folder, sites=2, labelled=True, **sizes).save(folder / "list.json")
    return folder


def images(made: Path, **arguments) -> SiteImages:
    return SiteImages(**{"datalist": made / "list.json", "data_root": made, "site": "site-1", **arguments})


def test_splits_have_images_and_labels_only_where_allowed(made):
    for split, count in {"public": 4, "unlabelled": 3, "validation": 2, "test": 3}.items():
        records = images(made).records(split)
        assert ["label" in record for record in records] == [split != "unlabelled"] * count
    assert all("label" in record for record in images(made, oracle=True).records("unlabelled"))


def test_limit_keeps_public_set_whole_and_rejects_zero(made):
    assert [len(images(made, limit=1).records(split)) for split in ("public", "unlabelled", "test")] == [4, 1, 1]
    message = r"train\.json -> limit: expected a number of images >= 1, or null, found 0; null uses all images"
    with pytest.raises(Refused, match=message):
        images(made, limit=0)


@pytest.mark.parametrize("site", ["", "public", "server", None])
def test_server_has_only_public_images(made, site):
    server = images(made, site=site)
    assert [len(server.records(split)) for split in ("public", "unlabelled", "validation", "test")] == [4, 0, 0, 0]


def test_dataset_has_split_images_and_unknown_site_is_refused(made):
    dataset = SplitDataset(data=images(made), split="validation", transform=lambda record: record["site"])
    assert list(dataset) == ["site-1", "site-1"]
    with pytest.raises(Refused, match="found 'site-9'"):
        SplitDataset(data=images(made, site="site-9"), split="test", transform=dict)


class Drawn(Randomizable, Transform):
    """Replaces a record by a random number."""

    def __call__(self, record):
        return self.R.rand()


def test_datasets_with_same_view_draw_independently(made):
    view = Drawn()
    one, other = (SplitDataset(data=images(made), split=split, transform=view) for split in ("public", "unlabelled"))
    one.transform.set_random_state(1)
    alone = [one[0], one[0]]
    one.transform.set_random_state(1)
    other.transform.set_random_state(2)
    drawn = [one[0], other[0], one[0]]
    assert drawn[::2] == alone
    assert drawn[1] not in alone


class Counted(Transform):
    """Reads a record, and counts how often."""

    reads = 0

    def __init__(self, size: int = 4) -> None:
        self.size = size

    def __call__(self, record):
        Counted.reads += 1
        return {"image": torch.zeros(self.size)}


class Spoilt(RandomizableTransform):
    """Writes into what it is given."""

    def __call__(self, item):
        item["image"] += 1
        return item


def test_public_images_are_read_once_per_process(made, monkeypatch):
    monkeypatch.setattr(Counted, "reads", 0)
    sites = [
        SplitDataset(data=images(made, site=site), split="public", transform=Compose([Counted(), Spoilt()]))
        for site in ("site-1", "site-2")
    ]
    plain = SplitDataset(data=images(made), split="public", transform=Compose([Counted()]))
    for dataset in (*sites, plain, *sites):
        items = [dataset[place] for place in range(len(dataset))]
        assert {item["image"].sum().item() for item in items} == {0.0 if dataset is plain else 4.0}, "none is spoilt"
    assert Counted.reads == len(plain)


def test_cache_is_not_shared_for_other_transforms_or_splits(made, monkeypatch):
    monkeypatch.setattr(Counted, "reads", 0)
    one, other = (SplitDataset(data=images(made), split="public", transform=Compose([Counted(n)])) for n in (4, 8))
    assert [len(each[0]["image"]) for each in (one, other)] == [4, 8]
    own, again = (SplitDataset(data=images(made), split="unlabelled", transform=Compose([Counted()])) for _ in range(2))
    assert own._cache is not again._cache
    within = [SplitDataset(data=images(made), split="public", transform=Lambda(lambda item: item)) for _ in range(2)]
    assert within[0]._cache is not within[1]._cache, "two functions cannot be compared"


def test_shared_cache_is_freed_with_last_dataset(made):
    dataset = SplitDataset(data=images(made), split="public", transform=Compose([Counted(16)]))
    kept = weakref.ref(dataset._cache)
    assert dataset[0] is not None
    del dataset
    gc.collect()
    assert kept() is None


def public_set(made: Path, **arguments) -> PublicSet:
    return PublicSet(datalist=made / "list.json", data_root=made, **arguments)


def test_public_set_is_split_and_test_images_are_optional(made):
    public = public_set(made, held_out_fraction=0.25, evaluate_limit=2)
    names = [record["image_sha256"] for record in public.train + public.held_out]
    assert (len(public.train), len(public.held_out), len(set(names))) == (3, 1, 4)
    assert {site: len(records) for site, records in public.tests.items()} == {"site-1": 2, "site-2": 2}
    assert public.hash == DataList.load(made / "list.json").hash
    assert public_set(made, evaluate_on=None).tests == {}


def test_teacher_limit_selects_public_images_by_hash(made, tmp_path):
    few, everything = public_set(made, limit=2), public_set(made)
    chosen, known = (sorted(record["image_sha256"] for record in of.train + of.held_out) for of in (few, everything))
    assert (len(few.train), len(few.held_out)) == (1, 1)
    assert chosen == known[:2]  # by hash
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for record in few.train + few.held_out:
        shutil.copy(record["label"], tmp_path / Path(record["label"]).name)
    for path in (tmp_path / "public" / "masks").iterdir():
        kept = tmp_path / path.name
        path.write_bytes(kept.read_bytes() if kept.exists() else b"another")
    assert len(public_set(tmp_path, limit=2).train) == 1, "the others are not read"
    assert len(images(made).records("public")) == 4  # what the students learn from stays whole


def test_changed_and_empty_masks_are_refused(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for folder in ("site-1", "public"):
        for path in (tmp_path / folder / "masks").iterdir():
            path.write_bytes(b"another")
        with pytest.raises(Refused, match=f"{folder}/masks/.*: expected .*, found SHA-256 .*; restore"):
            assert public_set(tmp_path).tests
    monkeypatch.setattr("samfed_monai.bundle.images.facts_of", lambda *_: [])
    with pytest.raises(Refused, match="public: expected masks with foreground, found only empty masks"):
        public_set(made)
