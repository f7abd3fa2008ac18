"""JSON Schema (draft 2020-12) of what code takes: annotations, and arguments of components."""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union

from samfed_monai.config.options import COMPONENT_KEYS, LARGEST, Schema, options_in
from samfed_monai.config.targets import annotations_of, parameters_of

NAMES: dict[Any, str] = {
    **{bool: "boolean", int: "integer", float: "number", str: "string"},
    **{list: "array", tuple: "array", Sequence: "array", set: "array", frozenset: "array"},
    **{dict: "object", Mapping: "object", type(None): "null", None: "null"},
}
"""Kinds of Python's values in the words of JSON Schema."""

_BOUNDS = frozenset({"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"})


def typed_as(annotation: Any) -> Schema | None:
    """The schema of the JSON values that an annotation takes; ``None`` where it says nothing about them."""
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        choices = [typed_as(choice) for choice in typing.get_args(annotation)]
        known = [choice for choice in choices if choice is not None]
        if len(known) < len(choices):
            return None
        if all(choice.keys() == {"type"} for choice in known):
            names = list(dict.fromkeys(choice["type"] for choice in known))
            return {"type": names if len(names) > 1 else names[0]}
        return {"anyOf": known}
    if origin is Literal:
        return {"enum": list(typing.get_args(annotation))}
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return {"enum": [item.value for item in annotation]}
    kind = origin or annotation
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return {"type": "string"}
    name = NAMES.get(kind) if isinstance(kind, (type, types.NoneType)) else None
    return None if name is None else {"type": name}


def like(value: Any) -> Schema:
    """The schema of values of the same kind; ``null``, which says nothing, takes any, and a text or a list takes it."""
    name = NAMES.get(type(value))
    if name in (None, "null"):
        return {}
    return {"type": name if isinstance(value, (bool, int, float)) else [name, "null"]}


@functools.lru_cache(maxsize=1024)
def component_schema(component: Any) -> Schema:
    """What a class or function takes, as an object of its arguments, by its annotations and else its defaults.

    One that takes any others may hand them to its bases, whose names are known, too.
    """
    named, anything = parameters_of(component)
    hints, arguments = annotations_of(component), dict[str, Schema]()
    for name, parameter in named.items():
        default = None if parameter.default is parameter.empty else parameter.default
        typed = typed_as(hints[name]) if name in hints else like(default)
        arguments[name] = {"anyOf": [typed, {"type": "null"}]} if typed and parameter.default is None else typed or {}
    required = [name for name, parameter in named.items() if parameter.default is parameter.empty]
    bases = inspect.getmro(component)[1:] if anything and inspect.isclass(component) else ()
    others = {name: Schema() for base in bases for name in parameters_of(base)[0]} | {key: {} for key in COMPONENT_KEYS}
    return {"properties": {**others, **arguments}, "required": required, "additionalProperties": anything}


def option_schemas(file: str) -> dict[str, Schema]:
    """By id, what each documented option of a file takes: a number where it has bounds, none above :data:`LARGEST`."""
    return {name: _of_option(keywords) for name, keywords in options_in(file).items()}


def _of_option(keywords: Mapping[str, Any]) -> Schema:
    schema = {"maximum": LARGEST} | {key: value for key, value in keywords.items() if key != "description"}
    if "properties" in schema:
        schema["properties"] = {name: _of_option(inner) for name, inner in schema["properties"].items()}
    return {"type": ["number", "null"], **schema} if _BOUNDS & keywords.keys() else schema
