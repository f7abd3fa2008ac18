"""Checks of arguments and of JSON: what is accepted, and the words of each refusal."""

from __future__ import annotations

import math
import sys
from enum import Enum

import numpy as np
import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.validators import in_range, installed, one_of, require, schema_problems, switch, whole


class Word(str, Enum):
    SOFT, HARD = "soft", "hard"


@pytest.mark.parametrize(
    ("bounds", "accepted", "refused", "expected"),
    [
        ({"least": 0}, [0, 0.5, 1e9, np.float32(2)], [-1e-9, True, None, "1", math.inf, math.nan, 10**400], ">= 0"),
        ({"above": 0}, [1e-9, 1], [0, -1], "> 0"),
        ({"most": 1}, [1, -3], [1.5], "<= 1"),
        ({"below": 1}, [0.99], [1], "< 1"),
        ({"least": 0, "most": 1}, [0, 1], [-0.1, 1.1], "in [0, 1]"),
        ({"least": 0.5, "below": 1}, [0.5], [0.49, 1], "in [0.5, 1)"),
        ({"above": 0, "most": 1}, [1], [0, 2], "in (0, 1]"),
        ({"above": 0, "below": 0.5}, [0.25], [0, 0.5], "in (0, 0.5)"),
        ({"least": 0, "or_null": True}, [None, 0], [-1, False], ">= 0, or null"),
    ],
)
def test_in_range_accepts_and_reports_numbers(bounds, accepted, refused, expected):
    assert not [value for value in accepted if in_range("x#y", value, **bounds)]
    for value in refused:
        assert [*map(str, in_range("x#y", value, **bounds))] == [f"x#y: expected a number {expected}, found {value!r}"]


def test_whole_rejects_floats_and_booleans():
    assert not whole("x", 2, least=2) + whole("x", 32, least=2, most=32) + whole("x", None, or_null=True)
    for value in (1, 33, 2.0, True, "2", None):
        (problem,) = whole("x", value, "a number of pixels", least=2, most=32, hint="less")
        assert str(problem) == f"x: expected a number of pixels in [2, 32], found {value!r}; less"


def test_one_of_accepts_enum_and_list():
    assert not one_of("x", "soft", Word) + one_of("x", Word.HARD, Word) + one_of("x", 2, [1, 2])
    assert one_of("x", True, [1, 2])
    assert not one_of("x", True, ["auto", True])
    (near,), (far,) = one_of("x", "sofd", Word, "see docs"), one_of("x", None, [1, 2], "see docs")
    assert str(near) == "x: expected one of ['soft', 'hard'], found 'sofd'; did you mean 'soft'?"
    assert str(far) == "x: expected one of [1, 2], found None; see docs"


def test_missing_package_is_reported_with_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    [problem] = installed("av", "video", "a.mp4", "a video", "PyAV to read it with")
    assert str(problem) == "a.mp4: expected PyAV to read it with, found a video; pip install 'samfed-monai[video]'"
    assert installed("numpy", "", "", "", "") == []


def test_switch_accepts_only_booleans():
    assert not switch("x", False)
    assert [*map(str, switch("x", 1))] == ["x: expected true or false, found 1"]


def test_require_reports_all_problems_together():
    require([], in_range("x", 1, least=0))
    with pytest.raises(Refused, match=r"(?s)2 problems.*x: .*y: "):
        require(in_range("x", -1, least=0), [], switch("y", "no"))


SCHEMA = {
    "type": "object",
    "properties": {
        "rounds": {"type": "integer", "minimum": 1, "description": "federated rounds"},
        "share": {"type": ["number", "null"], "exclusiveMaximum": 1},
        "kind": {"enum": ["weights", "none"]},
        "sites": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {"name": {}}}},
    },
    "required": ["rounds"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "plan -> rounds: expected federated rounds, found no such key"),
        ({"rounds": 0}, "plan -> rounds: expected at least 1, found 0"),
        ({"rounds": True}, "plan -> rounds: expected a whole number, found True (bool)"),
        ({"rounds": 2.0}, "plan -> rounds: expected a whole number, found 2.0 (float); write 2"),
        ({"rounds": 1, "share": math.nan}, "plan -> share: expected a number or null, found nan (float)"),
        ({"rounds": 1, "share": 1}, "plan -> share: expected below 1, found 1"),
        ({"rounds": 1, "kind": "all"}, "plan -> kind: expected one of ['weights', 'none'], found 'all'"),
        ({"rounds": 1, "sites": ({"name": "a"}, {})}, "plan -> sites#1#name: expected a value, found no such key"),
        (
            {"rounds": 1, "round": 2},
            "plan -> round: expected one of ['kind', 'rounds', 'share', 'sites'], found an unknown key; "
            "did you mean 'rounds'?",
        ),
        ([], "plan: expected an object, found [] (list)"),
    ],
)
def test_schema_departure_is_reported_with_place(content, message):
    (problem,) = schema_problems(content, SCHEMA, "plan")
    assert str(problem) == message


def test_valid_content_has_no_departures():
    assert schema_problems({"rounds": 1, "share": None, "sites": ()}, SCHEMA, "plan") == []


UNQUOTED = "write true without quotes (True or False on MONAI's own command line)"


@pytest.mark.parametrize(
    ("value", "schema", "message"),
    [
        ("0.5", {"type": "number"}, "expected a number, found '0.5' (str); remove the quotes"),
        (2.0, {"type": ["integer", "null"]}, "expected a whole number or null, found 2.0 (float); write 2"),
        ("\u0663", {"type": "number"}, "expected a number, found '\u0663' (str)"),
        ((0, 5), {"type": "number"}, "expected a number, found (0, 5) (tuple); write decimals with a point, as 0.5"),
        ("0,05", {"type": "number"}, "expected a number, found '0,05' (str); write decimals with a point, as 0.5"),
        (True, {"type": ["string", "integer"]}, "expected a string or a whole number, found True (bool)"),
        ("nan", {"type": ["array", "number"]}, "expected a list or a number, found 'nan' (str)"),
        ("a, b", {"type": "array"}, 'expected a list, found \'a, b\' (str); write ["a", "b"]'),
        ("['a']", {"type": "array"}, 'expected a list, found "[\'a\']" (str); write ["a"]'),
        ("True", {"type": "boolean"}, "expected true or false, found 'True' (str); " + UNQUOTED),
        (3, {"type": "string"}, "expected a string, found 3 (int); put it in quotes"),
        (
            "x",
            {"anyOf": [{"type": "boolean"}, {"enum": ["auto"]}]},
            "expected true or false or 'auto', found 'x' (str)",
        ),
        ("of", {"enum": ["off", True]}, "expected one of ['off', True], found 'of'; did you mean 'off'?"),
        (
            "x",
            {"anyOf": [{"type": "integer"}, {"const": "auto"}]},
            "expected a whole number or 'auto', found 'x' (str)",
        ),
        (17, {"multipleOf": 16}, "expected a multiple of 16, found 17"),
        (10**400, {"type": "number"}, f"expected a number, found 1{'0' * 119}"),
    ],
)
def test_schema_departure_has_message_and_hint(value, schema, message):
    (problem,) = schema_problems({"x": value}, {"properties": {"x": schema}}, "plan")
    assert str(problem) == f"plan -> x: {message}"
