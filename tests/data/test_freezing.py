from __future__ import annotations

import json

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data.datalist import DataList, Item, freeze, require_free

ONE = DataList("skin", [Item("1.png", "a" * 64, "1_m.png", "b" * 64)])
OTHER = DataList("skin", [Item("2.png", "c" * 64, "2_m.png", "d" * 64)])


def test_the_same_list_passes_and_its_file_stays_byte_for_byte(tmp_path):
    path = tmp_path / "list.json"
    freeze({path: ONE})
    assert DataList.load(path) == ONE
    path.write_text(json.dumps(json.loads(path.read_text())))  # another white space, the same list
    before = path.read_bytes()
    require_free(path, name="skin")
    freeze({path: ONE})
    assert path.read_bytes() == before


def test_fault_29_another_list_is_not_replaced_and_nothing_else_is_written(tmp_path):
    freeze({tmp_path / "list.json": ONE})
    (tmp_path / "text.json").write_text("{}")
    lists = {tmp_path / name: OTHER for name in ("new.json", "list.json", "text.json")}
    with pytest.raises(Refused, match="2 problems") as caught:
        freeze(lists)
    first, second = map(str, caught.value.problems)
    assert first == (
        f"{tmp_path}/list.json: expected no file, or the very list to be written ({OTHER.hash[:12]}), "
        f"found another data list, 'skin' ({ONE.hash[:12]}); choose another name, or delete it"
    )
    assert "text.json: expected no file, or a data list, found something else (text.json -> schema: no such" in second
    assert not (tmp_path / "new.json").exists()
    assert DataList.load(tmp_path / "list.json") == ONE


@pytest.mark.parametrize("content", ["", "my notes", "[1]", '{"schema": 1}'])
def test_what_is_no_list_is_refused_before_anything_is_read(tmp_path, content):
    (tmp_path / "notes.json").write_text(content)
    with pytest.raises(Refused, match=r"found something else \(.*\); choose another name, or delete it"):
        require_free(tmp_path / "notes.json", name="notes")
    require_free(tmp_path / "none.json", name="none")


def test_a_list_of_another_name_is_refused_before_anything_is_read(tmp_path):
    freeze({tmp_path / "list.json": ONE})
    with pytest.raises(Refused, match=r"expected no file, or the list 'polyp', found the list 'skin'; choose another"):
        require_free(tmp_path / "list.json", name="polyp")
