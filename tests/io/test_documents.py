"""Strict JSON."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, write_json


def test_json_comes_back_as_it_went(tmp_path: Path):
    content = {"name": "läsion ä", "items": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert "läsion ä" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_that_other_readers_refuse_is_not_written(tmp_path: Path, value: float):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"dice": value})
    assert read_json(tmp_path / "a.json") == 1


def test_fault_26_a_duplicate_key_is_refused_and_all_are_named(tmp_path: Path):
    (tmp_path / "train.json").write_text('{"seed": 1, "seed": 2, "inner": {"tau": 1, "tau": 2}}')
    with pytest.raises(Refused, match=r"(?s)2 problems.*-> tau: .*twice.*-> seed: .*twice"):
        read_json(tmp_path / "train.json")


def test_the_same_key_in_two_objects_is_fine(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"a": {"name": 1}, "b": {"name": 2}}')
    assert read_json(tmp_path / "a.json") == {"a": {"name": 1}, "b": {"name": 2}}


def test_fault_27_a_trailing_comma_is_refused_with_its_line(tmp_path: Path):
    (tmp_path / "train.json").write_text('{\n  "seed": 1,\n}\n')
    with pytest.raises(Refused, match=r"train\.json, line [23].*valid JSON.*look for a trailing comma"):
        read_json(tmp_path / "train.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found 'an empty file'"),
        (b'{"a": "\xff"}', "expected UTF-8 JSON, found byte 7 is not UTF-8; save it as UTF-8"),
        (b"seed: 1", "line 1, column 1"),
    ],
)
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(Refused, match=message):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "mend"),
    [
        ('{"a": 1, // why\n "b": 2}', "JSON has no comments; write a key `_note` in a configuration, or remove it"),
        ('{"a": 1 /* why */}', "JSON has no comments"),
        ('# why\n{"a": 1}', "JSON has no comments"),
        ('{"a": True}', "write true / false / null"),
        ('{"a": [1, None]}', "write true / false / null"),
        ("{'a': 1}", 'write double quotes (")'),
        ('{"a": \u201cx\u201d}', 'write double quotes (")'),
        ('{"a": 0,5}', "write decimals with a point, as 0.5"),
        ('{"a": Truely}', "look for a trailing comma or a missing quote at or just before this place"),
        ('{"a": 1, b": 2}', "look for a trailing comma or a missing quote at or just before this place"),
    ],
)
def test_fault_27_what_other_languages_allow_is_told_with_its_own_mend(tmp_path: Path, content: str, mend: str):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(Refused, match=rf"a\.json, line 1, column \d+: expected valid JSON, .*; {re.escape(mend)}"):
        read_json(tmp_path / "a.json")


def test_a_byte_order_mark_is_passed_over_where_only_this_package_reads(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(Refused, match=r"a\.json: expected no byte order mark, .*, found one at .* without BOM"):
        read_json(tmp_path / "a.json", byte_order_mark=False)


@pytest.mark.parametrize(("content", "line"), [("{\n", "{"), ("[1,\n\n", "[1,"), ('{\n  "a":\n', '"a":')])
def test_fault_27_a_file_that_ends_too_early_is_refused_with_its_last_line(tmp_path: Path, content: str, line: str):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(Refused, match=rf"a\.json, line \d, column \d+: .*found '{re.escape(line)}' \("):
        read_json(tmp_path / "a.json")


def test_a_missing_json_file_is_refused_with_its_path(tmp_path: Path):
    with pytest.raises(Refused, match=r"none\.json: expected a readable file, found No such file"):
        read_json(tmp_path / "none.json")
