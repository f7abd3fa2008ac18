"""Checks values against what the code takes: arguments of components, options, and values that replace others."""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Literal, Union

from samfed_monai.config.options import COMPONENT_KEYS, GROUPS, LARGEST, Schema, options_in
from samfed_monai.config.parse import MISSING, BundleConfig, follow, is_code, lookup, split_id, walk
from samfed_monai.config.targets import annotations_of, parameters_of, resolve_target
from samfed_monai.core.errors import Problem, Refused, closest
from samfed_monai.core.validators import departures

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

    One that takes any others may hand them to its bases, whose names are known, too. To a base of this package it
    does: what that does not take is unknown.
    """
    named, anything = parameters_of(component)
    hints, arguments = annotations_of(component), dict[str, Schema]()
    for name, parameter in named.items():
        default = None if parameter.default is parameter.empty else parameter.default
        typed = typed_as(hints[name]) if name in hints else like(default)
        arguments[name] = {"anyOf": [typed, {"type": "null"}]} if typed and parameter.default is None else typed or {}
    required = [name for name, parameter in named.items() if parameter.default is parameter.empty]
    bases = inspect.getmro(component)[1:] if anything and inspect.isclass(component) else ()
    for base in (base for base in bases if "__init__" in vars(base)):
        if not parameters_of(base)[1]:
            anything = not base.__module__.startswith("samfed_monai.")
            break
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


_Place = tuple[str, ...]
_CLOSE, _ALIKE = 0.6, 0.8  # difflib's ratios from which an argument means another, where none or any is taken besides


def check_components(config: BundleConfig, judged: set[_Place]) -> Iterator[Problem]:
    """Unknown or forbidden components, unexpected, missing and wrongly typed arguments.

    Args:
        config: the layers.
        judged: takes up the ids of whose kind an annotation has said something, right or wrong.
    """
    for parts, value in walk(config.content):
        if not isinstance(value, dict):
            continue
        if "_target_" in value:
            try:
                target = resolve_target(value["_target_"], "")
            except Refused as refused:
                yield from (replace(each, where=config.where((*parts, "_target_"))) for each in refused.problems)
            else:
                yield from _of_arguments(config, parts, value, component_schema(target), judged)
        elif parts and (wrong := closest("_target_", value, _ALIKE)):
            yield Problem(config.where((*parts, wrong)), "an unknown key", "a known key", "did you mean '_target_'?")


def _of_arguments(
    config: BundleConfig, parts: _Place, component: dict[str, Any], schema: dict[str, Any], judged: set[_Place]
) -> Iterator[Problem]:
    places, given, properties = dict[str, _Place](), dict[str, Any](), dict(schema["properties"])
    for name, value in component.items():
        place, found = follow(config.content, (*parts, name), value)
        if found is MISSING or isinstance(found, dict) or is_code(found) or place in judged:
            properties |= {name: {}} if name in properties else {}  # what it is shows when it is built
        elif properties.get(name):
            judged.add(place)
        places[name], given[name] = place, found
    short, meant = component["_target_"].rpartition(".")[2], set[str | None]()
    for name in (name for name in given if name not in properties):
        closed = name.startswith("_") or not schema["additionalProperties"]
        right = closest(name, properties.keys() - given.keys(), _CLOSE if closed else _ALIKE)
        right = closest(name, properties) if right is None and closed else right
        if right is not None or closed:
            known = ", ".join(each for each in properties if each not in COMPONENT_KEYS) or "no arguments"
            hint = f"it takes {known}" if right is None else f"did you mean {right!r}?"
            yield Problem(config.where((*parts, name)), "an unexpected argument", f"an argument of {short}", hint)
        meant.add(right)
    for name in schema["required"] if component.get("_mode_", "default") == "default" else ():
        if name not in {*given, *meant}:
            yield Problem(config.where(parts), "nothing of that name", f"the argument {name!r} of {short}")
    for problem in departures(given, {"properties": properties}, ""):
        yield replace(problem, where=config.where(places[problem.where.partition(" -> ")[2]]))


def check_options(config: BundleConfig) -> Iterator[Problem]:
    """Options whose value is out of the range, not among the words, or no number where they take a number."""
    for file, _ in (config.layers[index] for index in config.own):
        for name, schema in option_schemas(file).items():
            value = _without_code(lookup(config.content, split_id(name)))
            if value is None or value is MISSING:
                continue
            for problem in departures({name: value}, {"properties": {name: schema}}, ""):
                yield replace(problem, where=config.where(split_id(problem.where.partition(" -> ")[2])))


def _without_code(value: Any) -> Any:
    """A value, and an object without what refers to something else, is computed, or is not set."""
    if isinstance(value, dict):
        parts = ((name, _without_code(part)) for name, part in value.items())
        return {name: part for name, part in parts if part is not MISSING and part is not None}
    return MISSING if is_code(value) or (isinstance(value, list) and any(map(is_code, value))) else value


def check_replaced_kinds(config: BundleConfig, judged: set[_Place]) -> Iterator[Problem]:
    """Values of a layer whose kind differs from that of the value they replace.

    Args:
        config: the layers.
        judged: ids that an annotation has said something about already; it knows better than a default.
    """
    for index, (layer, pairs) in enumerate(config.layers[1:], start=1):
        below = config.below(index)
        for key, value in pairs.items():
            parts = split_id(key)
            default = lookup(below, parts)
            if parts in judged or default is MISSING or isinstance(default, (dict, list)):
                continue
            if value is None and len(parts) > 1 and parts[0] in GROUPS:
                continue  # whether a site's option may be null, what reads it there says
            if not (is_code(default) or is_code(value)):
                yield from (replace(each, where=f"{layer} -> {key}") for each in departures(value, like(default), ""))
