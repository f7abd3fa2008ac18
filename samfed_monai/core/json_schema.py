"""Checks JSON content against a JSON Schema (draft 2020-12) and reports every departure with its place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator, TypeChecker, ValidationError
from jsonschema.validators import extend

from samfed_monai.core.errors import Problem, did_you_mean

_MOST_SHOWN = 120  # characters of a value


def _is_number(_: TypeChecker, value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(_: TypeChecker, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_CHECKER = Draft202012Validator.TYPE_CHECKER.redefine_many(
    {
        "number": _is_number,
        "integer": _is_integer,
        "array": lambda _, value: isinstance(value, (list, tuple)),
        "object": lambda _, value: isinstance(value, Mapping),
    }
)
_Validator = extend(Draft202012Validator, type_checker=_CHECKER)


def departures(content: Any, schema: Mapping[str, Any], where: str) -> list[Problem]:
    """Every departure of ``content`` from ``schema``; an empty list when there is none.

    Numbers must be finite, whole numbers must be ``int``, and tuples count as arrays.

    Args:
        content: JSON content.
        schema: the schema; the ``description`` of a value is what is expected where it is absent, or does not match.
        where: name of the file or message, for the messages.
    """
    problems = [_problem(error, where) for error in _Validator(schema).iter_errors(content)]
    return list(dict.fromkeys(problem for found in problems for problem in found))


_KINDS = {
    **{"number": "a number", "integer": "a whole number", "string": "a text", "boolean": "true or false"},
    **{"array": "a list", "object": "an object", "null": "null"},
}
_BOUNDS = {
    **{"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"},
    "multipleOf": "a multiple of",
}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?")


def _problem(error: ValidationError, where: str) -> list[Problem]:
    first, *rest = error.absolute_path or [None]
    place = where if first is None else f"{where} -> {'#'.join(map(str, [first, *rest]))}"
    joint = " -> " if first is None else "#"
    value, rule = error.instance, error.validator_value
    shown = "null" if value is None else f"{value!r} ({type(value).__name__})"[:_MOST_SHOWN]
    if error.validator == "required":
        known = error.schema.get("properties", {})
        absent = [name for name in rule if name not in value]
        return [
            Problem(f"{place}{joint}{name}", "no such key", known.get(name, {}).get("description", "one"))
            for name in absent
        ]
    if error.validator == "additionalProperties" and rule is False:
        known = sorted(error.schema.get("properties", {}))
        unknown = [name for name in value if name not in known]
        return [
            Problem(f"{place}{joint}{name}", "an unknown key", f"one of {known}", did_you_mean(str(name), known))
            for name in unknown
        ]
    if error.validator in ("type", "anyOf"):
        expected = " or ".join(_words({error.validator: rule}))
        return [Problem(place, shown, expected, _hint(value, expected))]
    if error.validator == "enum":
        known = [each for each in rule if each is not None]
        close = did_you_mean(value, map(str, known)) if isinstance(value, str) else ""
        return [Problem(place, repr(value), f"one of {known}", close)]
    if error.validator in _BOUNDS and not (error.validator == "multipleOf" and "description" in error.schema):
        return [Problem(place, str(value), f"{_BOUNDS[error.validator]} {rule}")]
    return [Problem(place, shown, str(error.schema.get("description", error.message)))]


def _words(schema: Mapping[str, Any]) -> list[str]:
    """What a schema takes, in words: kinds of values, and values."""
    kinds = schema.get("type", [])
    words = [_KINDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    words += [repr(value) for value in schema.get("enum", ())]
    return list(dict.fromkeys([*words, *(word for each in schema.get("anyOf", ()) for word in _words(each))]))


def _hint(value: Any, expected: str) -> str:
    """What to do about a value of the wrong kind, where that is obvious; else an empty string."""
    word = value.strip().lower() if isinstance(value, str) else ""
    if word and "number" in expected and _NUMBER.fullmatch(word):
        return "remove the quotes"
    if word in ("true", "false") and "true or false" in expected:
        return f"write {word} without quotes (True or False on MONAI's own command line)"
    if word and "a list" in expected:
        return f"write {json.dumps([item.strip(_BRACKETS) for item in value.split(',')])}"
    if isinstance(value, float) and value.is_integer() and "whole number" in expected:
        return f"write {int(value)}"
    return "put it in quotes" if isinstance(value, (bool, int, float)) and "a text" in expected else ""


_BRACKETS = " []'\""
