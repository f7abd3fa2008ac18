"""Overrides on a command line, recovered word by word: those of MONAI and those of `samfed`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from samfed_monai.config.overrides import monai_command, overrides_of, parse_pairs, samfed_value
from samfed_monai.core.errors import Refused

MONAI = "/usr/lib/python3/site-packages/monai/bundle/__main__.py"


def test_only_monai_command_line_is_parsed():
    assert monai_command(["/usr/bin/samfed", "federate", "--rate", "1"]) is None
    for given in ("['a.json','b.json']", "a.json,b.json"):
        assert monai_command([MONAI, "run", "--config_file", given]).config_files == [Path("a.json"), Path("b.json")]


def test_values_are_parsed_like_fire_and_null_is_ignored():
    words = "run --config_file a/train.json --rate 0.5 --amp True --name=ada --net#x [1,2] --learning-rate -1 --b None"
    command = monai_command([MONAI, *words.split(), "--flag"])
    read = {"rate": 0.5, "amp": True, "name": "ada", "net#x": [1, 2], "learning_rate": -1, "flag": True}
    assert command.overrides == read
    assert command.config_files == [Path("a/train.json")]


def test_args_file_is_read_and_command_line_takes_precedence(tmp_path):
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"rate": 1, "steps": 2, "config_file": "t.json"}))
    command = monai_command([MONAI, "run", "--args_file", str(path), "--rate", "3"])
    assert command.overrides == {"rate": 3, "steps": 2}
    assert command.config_files == [Path("t.json")]


def test_hyphens_become_underscores_except_in_site_names():
    line = "--learning-rate 1 --sites#site-1#learning-rate 2 --sites::st-ann::network x --batch-size=3"
    assert dict(parse_pairs(line.split(), samfed_value)) == {
        "learning_rate": 1,
        "sites#site-1#learning_rate": 2,
        "sites::st-ann::network": "x",
        "batch_size": 3,
    }
    monais = monai_command([MONAI, "run", "--sites#site-1#network", "x"])
    assert monais.overrides == monais.typed == {"sites#site_1#network": "x"}, "which is what fire hands to MONAI"


def test_samfed_value_reads_json_then_python_then_text():
    words = ["--a", "true", "--b", "null", "--c", "[1,2]", "--d", "(1,2)", "--e", "site-1", "--f", "007", "--g", "1e-3"]
    read = {"a": True, "b": None, "c": [1, 2], "d": (1, 2), "e": "site-1", "f": "007", "g": 0.001}
    assert dict(parse_pairs(words, samfed_value)) == read
    assert overrides_of(["--a", "{}", "--a#b", "1", "--c"]) == {"a": {}, "a#b": 1, "c": True}


@pytest.mark.parametrize("text", ["{1}", "b'x'", "1j", "...", "[{1}]", "Infinity", "NaN", "1e999", "[-1e999]"])
def test_literals_unknown_to_json_are_text(text):
    assert samfed_value(text) == text


@pytest.mark.parametrize("text", ["[" * 5000 + "]" * 5000, '{"a":' * 5000 + "1" + "}" * 5000])
def test_fault_71_deeply_nested_value_is_refused(text):
    message = "command line: expected objects and lists with fewer levels, found more than 100 levels"
    with pytest.raises(Refused, match=message):
        samfed_value(text)
