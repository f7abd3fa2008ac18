"""Checks of arguments, one line each, and of JSON against a schema; all problems are raised together."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import Enum
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from samfed_monai.core.errors import Problem, Refused, did_you_mean


def require(*checks: Iterable[Problem], error: type[Refused] = Refused) -> None:
    """Raises the problems of several checks together.

    Args:
        checks: problems of each check.
        error: type of the exception.

    Raises:
        Refused: there is at least one problem.

    Example::

        require(
            in_range("client_algorithm#mu", mu, least=0),
            one_of("strategy#exchange", exchange, PublicExchange),
        )
    """
    problems = [problem for check in checks for problem in check]
    if problems:
        raise error(problems)


def in_range(
    where: str,
    value: Any,
    what: str = "a number",
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    or_null: bool = False,
    hint: str = "",
) -> list[Problem]:
    """A problem unless ``value`` is a finite number in the range; ``bool`` is not a number.

    Args:
        where: the argument's place in the bundle.
        value: the argument's value.
        what: meaning of the number, for the message.
        least, above: the lower bound, inclusive or exclusive.
        most, below: the upper bound, inclusive or exclusive.
        or_null: whether ``None`` is accepted.
        hint: how to fix it.
    """
    if or_null and value is None:
        return []
    start, end = above if least is None else least, below if most is None else most
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    fits = abs(number) <= sys.float_info.max and (start is None or number > start or number == least)
    if fits and (end is None or number < end or number == most):
        return []
    bounds = ""
    if start is not None and end is not None:
        bounds = f" in {'(' if least is None else '['}{start:g}, {end:g}{')' if most is None else ']'}"
    elif start is not None:
        bounds = f" {'>' if least is None else '>='} {start:g}"
    elif end is not None:
        bounds = f" {'<' if most is None else '<='} {end:g}"
    return [Problem(where, repr(value), f"{what}{bounds}{', or null' if or_null else ''}", hint)]


def whole(where: str, value: Any, what: str = "a whole number", **bounds: Any) -> list[Problem]:
    """A problem unless ``value`` is an ``int`` in the range; the arguments are those of :func:`in_range`."""
    number = value if type(value) is int or value is None else math.nan  # outside every range
    return [replace(problem, found=repr(value)) for problem in in_range(where, number, what, **bounds)]


FRACTION = partial(in_range, least=0, most=1)
BELOW_1 = partial(in_range, least=0, below=1)
NOT_NEGATIVE = partial(in_range, least=0)
POSITIVE = partial(in_range, above=0)
COUNT = partial(whole, least=1)


def one_of(where: str, value: Any, known: Iterable[Any], hint: str = "") -> list[Problem]:
    """A problem unless ``value`` is one of ``known``: words, an ``Enum`` or a registry.

    Args:
        where: the argument's place in the bundle.
        value: the argument's value.
        known: the accepted values.
        hint: how to fix it if no known word is similar.
    """
    values = [each.value if isinstance(each, Enum) else each for each in known]
    if any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values):  # True == 1
        return []
    return [Problem(where, repr(value), f"one of {values}", did_you_mean(str(value), map(str, values)) or hint)]


def installed(package: str, extra: str, where: str, found: str, expected: str) -> list[Problem]:
    """A problem unless an optional package is installed.

    Args:
        package: its import name.
        extra: the extra of this package that installs it.
        where: the place that needs it.
        found, expected: for the message.
    """
    is_installed, hint = importlib.util.find_spec(package) is not None, f"pip install 'samfed-monai[{extra}]'"
    return [] if is_installed else [Problem(where, found, expected, hint)]


def switch(where: str, value: Any) -> list[Problem]:
    """A problem unless ``value`` is ``True`` or ``False``."""
    return [] if isinstance(value, bool) else [Problem(where, repr(value), "true or false")]


def no_file_there(where: str, folder: Path) -> list[Problem]:
    """Returns a problem if ``folder``, to be written into, is a file."""
    is_file = folder.exists() and not folder.is_dir()
    return [Problem(where, f"the file {folder}", "a folder", "choose another name")] if is_file else []


_MOST_SHOWN = 120  # characters of a value


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float can hold: no NaN, infinity, or integer of hundreds of digits."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


_CHECKER = Draft202012Validator.TYPE_CHECKER.redefine_many(
    {
        "number": lambda _, value: is_number(value),
        "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
        "array": lambda _, value: isinstance(value, (list, tuple)),
        "object": lambda _, value: isinstance(value, Mapping),
    }
)
_Validator = extend(Draft202012Validator, type_checker=_CHECKER)


def schema_problems(content: Any, schema: Mapping[str, Any], where: str) -> list[Problem]:
    """Returns a problem for each mismatch of ``content`` with ``schema``.

    Numbers must be finite, whole numbers must be ``int``, and tuples count as arrays.

    Args:
        content: JSON content.
        schema: the schema; the ``description`` of a value is the expectation if it is missing or does not match.
        where: name of the file or message, for the messages.
    """
    problems = [_problems_of(error, where) for error in _Validator(schema).iter_errors(content)]
    return list(dict.fromkeys(problem for found in problems for problem in found))


_KINDS = {
    **{"number": "a number", "integer": "a whole number", "string": "a string", "boolean": "true or false"},
    **{"array": "a list", "object": "an object", "null": "null"},
}
_BOUNDS = {
    **{"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"},
    "multipleOf": "a multiple of",
}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII)


def _problems_of(error: ValidationError, where: str) -> list[Problem]:
    first, *rest = error.absolute_path or [None]
    place = where if first is None else f"{where} -> {'#'.join(map(str, [first, *rest]))}"
    below = f"{place}{' -> ' if first is None else '#'}"
    value, rule, known = error.instance, error.validator_value, error.schema.get("properties", {})
    shown = "null" if value is None else f"{value!r} ({type(value).__name__})"[:_MOST_SHOWN]
    described = error.schema.get("description")
    match error.validator:
        case "required":
            absent = {name: known.get(name, {}).get("description", "a value") for name in rule if name not in value}
            return [Problem(f"{below}{name}", "no such key", expected) for name, expected in absent.items()]
        case "additionalProperties" if rule is False:
            names, unknown = sorted(known), [str(name) for name in value if name not in known]
            expected = f"one of {names}"
            return [Problem(f"{below}{n}", "an unknown key", expected, did_you_mean(n, names)) for n in unknown]
        case "type" | "anyOf":
            expected = " or ".join(_descriptions({error.validator: rule}))
            return [Problem(place, shown, expected, _hint(value, expected))]
        case "enum":
            words = [each for each in rule if each is not None]
            close = did_you_mean(value, map(str, words)) if isinstance(value, str) else ""
            return [Problem(place, repr(value), f"one of {words}", close)]
        case "minLength":
            return [Problem(place, "an empty text", "a text", "is a shell variable empty? Otherwise leave it out")]
        case bound if bound in _BOUNDS and not (bound == "multipleOf" and described):
            return [Problem(place, str(value), f"{_BOUNDS[bound]} {rule}")]
    return [Problem(place, shown, str(described or error.message), _hint(value, str(described)))]


def _descriptions(schema: Mapping[str, Any]) -> list[str]:
    """Describes the types and values that a schema accepts."""
    kinds = schema.get("type", [])
    texts = [_KINDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    texts += [repr(value) for value in schema.get("enum", [schema["const"]] if "const" in schema else [])]
    texts += [schema["description"]] if "not" in schema else []
    return list(dict.fromkeys([*texts, *(text for each in schema.get("anyOf", ()) for text in _descriptions(each))]))


def _hint(value: Any, expected: str) -> str:
    """Returns a hint for a value of the wrong type, or an empty string if there is no obvious fix."""
    text = value.strip().lower() if isinstance(value, str) else ""
    if text and "number" in expected and _NUMBER.fullmatch(text):
        return "remove the quotes" if math.isfinite(float(text)) else "the largest number is 1.8e308"
    if text in ("true", "false") and "true or false" in expected:
        return f"write {text} without quotes (True or False on MONAI's own command line)"
    words = ",".join(map(str, value)) if isinstance(value, tuple) else text  # 0,5 on the command line is a tuple
    if "number" in expected and re.fullmatch(r"-?\d+,\d+", words):
        return "write decimals with a point, as 0.5"
    if text and "a list" in expected and "number" not in expected:
        return f"write {json.dumps([name for item in value.split(',') if (name := item.strip(_BRACKETS))])}"
    if isinstance(value, float) and value.is_integer() and "whole number" in expected:
        return f"write {int(value)}"
    if "a component" in expected:
        return 'write an object with _target_, or a reference to one, "@ID"'
    is_unquoted = isinstance(value, (bool, int, float)) and "a string" in expected and "number" not in expected
    return "put it in quotes" if is_unquoted else ""


_BRACKETS = " []'\""
