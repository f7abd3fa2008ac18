"""The check that a run begins with."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data import DataList
from samfed_monai.federation import preparation as data_check


def test_a_check_that_passed_is_remembered_until_a_file_changes(small_federation, small_list, tmp_path, monkeypatch):
    root = tmp_path / "images"
    shutil.copytree(small_federation, root)
    data_check.check_data(small_list, root, cache_dir=tmp_path)
    calls = []
    monkeypatch.setattr(data_check, "check_datalist", lambda *args: calls.append(args) or [])
    data_check.check_data(small_list, root, cache_dir=tmp_path)
    assert not calls
    (root / small_list.public[0].image).touch()
    data_check.check_data(small_list, root, cache_dir=tmp_path)
    assert len(calls) == 1


def test_public_images_are_needed_where_sites_do_not_learn_from_labels_of_their_own(small_list):
    none = replace(small_list, public=[])
    assert data_check.no_public_images(small_list, supervised=False) == []
    assert data_check.no_public_images(none, supervised=True) == []
    (problem,) = data_check.no_public_images(none, supervised=False)
    assert (problem.where, problem.found) == (f"{small_list.name} -> public", "none")
    assert "samfed prepare ... --public" in problem.mend


def test_every_problem_is_refused_at_once_and_nothing_is_remembered(small_federation, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(small_federation, root)
    datalist = DataList.load(root / "list.json")
    first, second = (root / datalist.public[index].image for index in (0, 1))
    first.write_bytes(b"")
    second.unlink()
    with pytest.raises(Refused, match="refused: 3 problems") as refused:
        data_check.check_data(datalist, root, cache_dir=tmp_path)
    assert {name for name in (first.name, second.name) if name in str(refused.value)} == {first.name, second.name}
    assert not list(tmp_path.glob("checked/*"))
