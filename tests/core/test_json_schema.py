from __future__ import annotations

import math

import pytest

from samfed_monai.core.validators import departures

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
        ({"rounds": 1, "sites": ({"name": "a"}, {})}, "plan -> sites#1#name: expected one, found no such key"),
        (
            {"rounds": 1, "round": 2},
            "plan -> round: expected one of ['kind', 'rounds', 'share', 'sites'], found an unknown key; "
            "did you mean 'rounds'?",
        ),
        ([], "plan: expected an object, found [] (list)"),
    ],
)
def test_a_departure_is_reported_with_its_place(content, message):
    (problem,) = departures(content, SCHEMA, "plan")
    assert str(problem) == message


def test_what_follows_the_schema_has_no_departure():
    assert departures({"rounds": 1, "share": None, "sites": ()}, SCHEMA, "plan") == []


@pytest.mark.parametrize(
    ("value", "schema", "message"),
    [
        ("0.5", {"type": "number"}, "expected a number, found '0.5' (str); remove the quotes"),
        (2.0, {"type": ["integer", "null"]}, "expected a whole number or null, found 2.0 (float); write 2"),
        ("a, b", {"type": "array"}, 'expected a list, found \'a, b\' (str); write ["a", "b"]'),
        ("['a']", {"type": "array"}, 'expected a list, found "[\'a\']" (str); write ["a"]'),
        ("True", {"type": "boolean"}, "expected true or false, found 'True' (str); write true without quotes"),
        (3, {"type": "string"}, "expected a text, found 3 (int); put it in quotes"),
        (
            "x",
            {"anyOf": [{"type": "boolean"}, {"enum": ["auto"]}]},
            "expected true or false or 'auto', found 'x' (str)",
        ),
        ("of", {"enum": ["off", True]}, "expected one of ['off', True], found 'of'; did you mean 'off'?"),
        ("all", {"anyOf": [{"type": "integer"}, {"const": "auto"}]}, "expected a whole number or 'auto', found 'all'"),
        (17, {"multipleOf": 16}, "expected a multiple of 16, found 17"),
    ],
)
def test_what_is_expected_is_in_words_with_what_to_do(value, schema, message):
    (problem,) = departures({"x": value}, {"properties": {"x": schema}}, "plan")
    assert str(problem).startswith(f"plan -> x: {message}")
