"""A fitted teacher at work: it fills a site's soft-mask store, and stands where a network is expected."""

from __future__ import annotations

from samfed_monai.data import SoftMaskStore
from samfed_monai.teacher import fill_store
from tests.networks.fakes import fake_records

from .conftest import SHA256


def store(folder) -> SoftMaskStore:
    return SoftMaskStore(folder, teacher_sha256=SHA256)


def test_only_what_is_missing_is_computed(teacher, tmp_path):
    records = fake_records(tmp_path, 3)
    filled = store(tmp_path / "store")
    assert fill_store(teacher, records[:2], filled, progress=False) == 2
    assert fill_store(teacher, records, store(tmp_path / "store"), progress=False) == 1
    assert fill_store(teacher, records, store(tmp_path / "store"), progress=False) == 0


def test_masks_of_images_of_any_size_keep_their_aspect(teacher, tmp_path):
    records = []
    for name, size in {"a": (32, 32), "b": (24, 32)}.items():
        (tmp_path / name).mkdir()
        records += fake_records(tmp_path / name, 2, size)
    filled = store(tmp_path / "store")
    assert fill_store(teacher, records, filled, progress=False) == len({record["image_sha256"] for record in records})
    for record in records:
        mask = filled.get(record["image_sha256"])
        assert mask.shape == ((1, 16, 16) if "/a/" in record["image"] else (1, 12, 16))


def test_the_bar_says_whose_images_these_are(tmp_path, teacher, capsys):
    records = fake_records(tmp_path, 1)
    fill_store(teacher, records, store(tmp_path / "named"), whose="site-1 test")
    fill_store(teacher, records, store(tmp_path / "unnamed"))
    heads = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines() if "100%" in line]
    assert heads == ["soft masks, site-1 test", "soft masks"]
