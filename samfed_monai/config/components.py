"""Checks values against what the code takes, by one schema: of components' signatures, of options, of defaults."""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from typing import Any, Literal, Union

from samfed_monai.config.options import COMPONENT_KEYS, GROUPS, LARGEST, Schema, options_in
from samfed_monai.config.parse import MISSING, BundleConfig, follow, is_code, join_id, lookup, split_id, walk
from samfed_monai.config.targets import resolve_target
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
        return None if None in choices else {"anyOf": choices}
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
def parameters_of(target: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """Named parameters of a class or function, and whether it takes other names, too (``**kwargs``, or unknown)."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # built in C: it does not say
        return {}, True
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return named, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


@functools.lru_cache(maxsize=1024)
def annotations_of(target: Any) -> dict[str, Any]:
    """Annotations of a class's or function's parameters as types; those that cannot be resolved are left out."""
    function = inspect.unwrap(getattr(target, "__init__") if inspect.isclass(target) else target)  # noqa: B009 - mypy
    names, found = getattr(function, "__globals__", {}), dict[str, Any]()
    for name, text in getattr(function, "__annotations__", {}).items():
        with suppress(Exception):  # whatever evaluating it raises: it may be for a type checker alone
            found |= typing.get_type_hints(types.SimpleNamespace(__annotations__={name: text}), names)
    return found


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


def _of_option(keywords: Mapping[str, Any]) -> Schema:
    schema = {"maximum": LARGEST} | {key: value for key, value in keywords.items() if key != "description"}
    if "properties" in schema:
        schema["properties"] = {name: _of_option(inner) for name, inner in schema["properties"].items()}
    return {"type": ["number", "null"], **schema} if _BOUNDS & keywords.keys() else schema


_Place = tuple[str, ...]
_CLOSE, _ALIKE = 0.6, 0.8  # difflib's ratios from which an argument means another, where none or any is taken besides


def check_components(config: BundleConfig) -> Iterator[Problem]:
    """Unknown or forbidden components, unexpected and missing arguments, and values of another kind or range.

    What a value must be is what the annotation of the argument says that receives it, else the kind of value that it
    replaces; and what is said of a documented option. One schema holds all of it.
    """
    values, schemas = dict[_Place, Any](), dict[_Place, list[Schema]]()
    for parts, value in walk(config.content):
        if not isinstance(value, dict):
            continue
        if "_target_" in value:
            try:
                schema = component_schema(resolve_target(value["_target_"], ""))
            except Refused as refused:
                yield from (replace(each, where=config.where((*parts, "_target_"))) for each in refused.problems)
                continue
            yield from _of_names(config, parts, value, schema)
            for name, argument in value.items():
                place, found = follow(config.content, (*parts, name), argument)
                if schema["properties"].get(name) and not (found is MISSING or isinstance(found, dict)):
                    schemas.setdefault(place, [schema["properties"][name]])
                    values[place] = found
        elif parts and (wrong := closest("_target_", value, _ALIKE)):
            yield Problem(config.where((*parts, wrong)), "an unknown key", "a known key", "did you mean '_target_'?")
    for place, default in _replaced(config):
        schemas.setdefault(place, [like(default)])
        values[place] = lookup(config.content, place)
    for file, _ in (config.layers[index] for index in config.own):
        for name, keywords in options_in(file).items():
            value = _without_code(lookup(config.content, split_id(name)))
            if value is not None and value is not MISSING:
                schemas.setdefault(split_id(name), []).append(_of_option(keywords))
                values.setdefault(split_id(name), value)
    given = {join_id(place): value for place, value in values.items() if not (value is MISSING or is_code(value))}
    every: Schema = {join_id(place): {"allOf": each} for place, each in schemas.items()}
    for problem in departures(given, {"properties": every}, ""):
        yield replace(problem, where=config.where(split_id(problem.where.removeprefix(" -> "))))


def _of_names(config: BundleConfig, parts: _Place, given: Mapping[str, Any], schema: Schema) -> Iterator[Problem]:
    """Arguments that a component does not take, or lacks."""
    properties, short, meant = schema["properties"], given["_target_"].rpartition(".")[2], set[str | None]()
    for name in (name for name in given if name not in properties):
        closed = name.startswith("_") or not schema["additionalProperties"]
        right = closest(name, properties.keys() - given.keys(), _CLOSE if closed else _ALIKE)
        right = closest(name, properties) if right is None and closed else right
        if right is not None or closed:
            known = ", ".join(each for each in properties if each not in COMPONENT_KEYS) or "no arguments"
            hint = f"it takes {known}" if right is None else f"did you mean {right!r}?"
            yield Problem(config.where((*parts, name)), "an unexpected argument", f"an argument of {short}", hint)
        meant.add(right)
    for name in schema["required"] if given.get("_mode_", "default") == "default" else ():
        if name not in {*given, *meant}:
            yield Problem(config.where(parts), "nothing of that name", f"the argument {name!r} of {short}")


def _replaced(config: BundleConfig) -> Iterator[tuple[_Place, Any]]:
    """Ids that a layer replaces, each with the plain value that was there first; groups are checked on their own."""
    for index, (_, pairs) in enumerate(config.layers[1:], start=1):
        for parts in map(split_id, pairs):
            default = MISSING if parts[0] in GROUPS else lookup(config.below(index), parts)
            if not (default is MISSING or isinstance(default, (dict, list)) or is_code(default)):
                yield parts, default


def _without_code(value: Any) -> Any:
    """A value, and an object without what refers to something else, is computed, or is not set."""
    if isinstance(value, dict):
        parts = ((name, _without_code(part)) for name, part in value.items())
        return {name: part for name, part in parts if part is not MISSING and part is not None}
    return MISSING if is_code(value) or (isinstance(value, list) and any(map(is_code, value))) else value
