"""Kinds of plain JSON values, compared with an annotation or with a default, in words a clinician reads."""

from __future__ import annotations

import json
import os
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def describe(value: Any) -> str:
    """``'0.5' (str)``: what stands there, for the "found" of a message."""
    return "null" if value is None else f"{value!r} ({type(value).__name__})"


def mend_for(value: Any, expected: str, *, option: str = "") -> str:
    """What to do about a value of the wrong kind, where it is obvious; else an empty string.

    Args:
        value: what stands there.
        expected: what should.
        option: ``--id`` where the command line sets it.
    """
    if isinstance(value, str) and "a list" in expected:
        items = [item.strip() for item in value.split(",")]
        return f'write {option} "{items}"' if option else f"write {json.dumps(items)}"
    if isinstance(value, str):
        word = value.strip().lower()
        if "number" in expected and _is_number(word):
            return "remove the quotes"
        if "true or false" in expected and word in {"true", "false"}:
            return f"write {word} without quotes (True or False on MONAI's own command line)"
    if "whole number" in expected and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if "a text" in expected and isinstance(value, (bool, int, float)):
        return "put it in quotes"
    return ""


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def unlike_default(value: Any, default: Any) -> str:
    """What is expected instead of ``value``, going by the kind of ``default``; empty when they fit.

    A default of ``null`` says nothing; ``null`` stands for "not set" wherever the default is a text or a list.
    """
    if default is None or (value is None and not isinstance(default, (bool, int, float))):
        return ""
    kind = type(default)
    return "" if _fits_plain(kind, value) else _WORDS.get(kind, "")


def unlike_annotation(value: Any, annotation: Any) -> str | None:
    """What is expected instead of ``value``, going by a parameter's annotation.

    Returns:
        an empty string when the value fits; ``None`` when the annotation says nothing about plain JSON values.
    """
    words = _expected(value, annotation)
    return None if words is None else " or ".join(dict.fromkeys(words))


def _expected(value: Any, annotation: Any) -> list[str] | None:
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        verdicts = [_expected(value, choice) for choice in typing.get_args(annotation)]
        if [] in verdicts:
            return []
        said = [words for words in verdicts if words is not None]
        return [word for words in said for word in words] if len(said) == len(verdicts) else None
    if origin is Literal:
        return [] if value in typing.get_args(annotation) else [repr(item) for item in typing.get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        names = [item.value for item in annotation]
        return [] if value in names else [repr(name) for name in names]
    kind = _plain(origin or annotation)
    if kind is None:
        return None
    return [] if _fits_plain(kind, value) else [_WORDS[kind]]


def _plain(annotation: Any) -> Any:
    if annotation is None or annotation is type(None):
        return type(None)
    if annotation in (bool, int, float, str, list, dict):
        return annotation
    if annotation in (tuple, Sequence, set, frozenset):
        return list
    if annotation is Mapping:
        return dict
    if isinstance(annotation, type) and issubclass(annotation, os.PathLike):
        return str
    return None


def _fits_plain(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
