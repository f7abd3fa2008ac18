"""The check that a run begins with."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data import DataList
from samfed_monai.federation import preparation as data_check


@pytest.fixture
def root(small_federation, tmp_path):
    """A copy of the images, which a test may change."""
    return shutil.copytree(small_federation, tmp_path / "images")


def test_passed_check_is_cached_until_file_changes(root, small_list, tmp_path, monkeypatch):
    data_check.check_data(small_list, root, cache_dir=tmp_path)
    calls, looks, own = [], [], type(small_list).hash
    monkeypatch.setattr(data_check, "check_datalist", lambda *args: calls.append(args) or [])
    monkeypatch.setattr(type(small_list), "hash", property(lambda each: looks.append(1) or own.fget(each)))
    data_check.check_data(small_list, root, cache_dir=tmp_path)
    assert (calls, len(looks)) == ([], 1), "the list is hashed once, and not for each of its files"
    (root / small_list.public[0].image).touch()
    data_check.check_data(small_list, root, cache_dir=tmp_path)
    assert len(calls) == 1
    [record] = (tmp_path / "checked").glob("*.json")
    for number, other in enumerate(("[]", record.read_text().replace('"looks": 0', '"looks": "1"'), '{"a":'), start=2):
        record.write_text(other)
        data_check.check_data(small_list, root, cache_dir=tmp_path)
        assert len(calls) == number, "a record of another form is not used"


def flip(path):
    """One bit of a file's last byte, its size and date as they were."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_fault_68_flipped_bit_is_found_by_sampling_and_verify(root, tmp_path, monkeypatch):
    datalist = DataList.load(root / "list.json")
    files = {name for _, _, item in datalist.items() for name in (item.image, item.label) if name}
    monkeypatch.setattr(data_check, "SAMPLE", 3)
    data_check.check_data(datalist, root, cache_dir=tmp_path)
    victim = root / datalist.public[0].label
    flip(victim)

    def starts(count):
        for _ in range(count):
            data_check.check_data(datalist, root, cache_dir=tmp_path)

    with pytest.raises(Refused, match=r"changed content with the same size and date; .*samfed federate … --verify"):
        starts(-(-len(files) // 3))  # which look at every file once
    assert not list(tmp_path.glob("checked/*.json")), "the next start looks at everything"
    flip(victim)
    data_check.check_data(datalist, root, cache_dir=tmp_path)
    flip(victim)
    with pytest.raises(Refused, match=victim.name):
        data_check.check_data(datalist, root, cache_dir=tmp_path, verify=True)
    (problem,) = data_check.image_problems(datalist, root, cache_dir=tmp_path, verify=True)
    assert victim.name not in str(problem)


def test_samples_cover_all_files_over_several_starts(small_federation, small_list, monkeypatch):
    seen = []
    monkeypatch.setattr(data_check, "SAMPLE", 3)
    monkeypatch.setattr(data_check, "sha256_file", lambda path: seen.append(path) or "")
    files = {name for _, _, item in small_list.items() for name in (item.image, item.label) if name}
    for looks in range(-(-len(files) // 3)):
        data_check._changed(small_list, small_list.hash, small_federation, looks)
    assert len(set(seen)) == len(files)
    assert len(seen) < len(files) + 3


def test_public_images_are_required_unless_supervised(small_list):
    none = replace(small_list, public=[])
    assert data_check.no_public_images(small_list, supervised=False) == []
    assert data_check.no_public_images(none, supervised=True) == []
    (problem,) = data_check.no_public_images(none, supervised=False)
    assert (problem.where, problem.found) == (f"{small_list.name} -> public", "none")
    assert "samfed prepare ... --public" in problem.hint


def test_problems_are_refused_together_and_not_cached(root, tmp_path):
    datalist = DataList.load(root / "list.json")
    first, second = (root / datalist.public[index].image for index in (0, 1))
    first.write_bytes(b"")
    second.unlink()
    with pytest.raises(Refused, match="refused: 3 problems") as refused:
        data_check.check_data(datalist, root, cache_dir=tmp_path)
    assert {name for name in (first.name, second.name) if name in str(refused.value)} == {first.name, second.name}
    assert not list(tmp_path.glob("checked/*"))
