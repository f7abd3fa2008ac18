"""Checks components of a configuration: that ``_target_`` exists and takes the arguments, of these types."""

from __future__ import annotations

import inspect
import json
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Literal, Union

from samfed_monai.config.knobs import COMPONENT_KEYS, GROUPS
from samfed_monai.config.parse import COMMAND_LINE, MISSING, BundleConfig, follow, is_code, lookup, split_id, walk
from samfed_monai.config.targets import annotations_of, parameters_of, resolve_target
from samfed_monai.core.errors import Problem, Refused, did_you_mean

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


def hint_for(value: Any, expected: str, *, option: str = "") -> str:
    """What to do about a value of the wrong kind, where it is obvious; else an empty string.

    Args:
        value: what stands there.
        expected: what should.
        option: ``--id`` where the command line sets it.
    """
    if isinstance(value, str) and "number" in expected and _is_number(value.strip().lower()):
        return "remove the quotes"
    if isinstance(value, str) and "a list" in expected:
        items = [item.strip(" []'\"") for item in value.split(",")]
        return f'write {option} "{items}"' if option else f"write {json.dumps(items)}"
    if isinstance(value, str):
        word = value.strip().lower()
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
    kind = plain_kind(origin or annotation)
    if kind is None:
        return None
    return [] if _fits_plain(kind, value) else [_WORDS[kind]]


def plain_kind(annotation: Any) -> Any:
    """Which of Python's plain types the JSON values of an annotation have; ``None`` where it says nothing of them."""
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


class ComponentCheck:
    """Walks over every component of a configuration once.

    Args:
        config: the merged configuration.

    Attributes:
        judged: knobs whose kind some component's annotation has spoken about, right or wrong.
    """

    def __init__(self, config: BundleConfig) -> None:
        self.config = config
        self.judged: set[tuple[str, ...]] = set()

    def problems(self) -> Iterator[Problem]:
        """Unknown or forbidden components, unexpected, missing and wrongly typed arguments."""
        for parts, value in walk(self.config.content):
            if isinstance(value, dict) and "_target_" in value:
                try:
                    target = resolve_target(value["_target_"], "")
                except Refused as refused:
                    where = self.config.where((*parts, "_target_"))
                    yield from (replace(problem, where=where) for problem in refused.problems)
                else:
                    yield from self._arguments(parts, value, target)

    def _arguments(self, parts: Sequence[str], component: dict[str, Any], target: Any) -> Iterator[Problem]:
        named, anything = parameters_of(target)
        hints = annotations_of(target)
        for name, value in component.items():
            if name in COMPONENT_KEYS:
                continue
            if name not in named and not anything:
                short = component["_target_"].rpartition(".")[2]
                hint = did_you_mean(name, named) or f"it takes {', '.join(named) or 'no arguments'}"
                where = self.config.where((*parts, name))
                yield Problem(where, found="an unexpected argument", expected=f"an argument of {short}", hint=hint)
            elif name in named:
                yield from self._kind((*parts, name), value, named[name], hints.get(name, inspect.Parameter.empty))
        if component.get("_mode_", "default") == "default":
            yield from self._missing(parts, component, named)

    def _missing(self, parts: Sequence[str], component: dict[str, Any], named: dict[str, Any]) -> Iterator[Problem]:
        for name, parameter in named.items():
            if parameter.default is parameter.empty and name not in component:
                expected = f"the argument {name!r} of {component['_target_'].rpartition('.')[2]}"
                yield Problem(self.config.where(parts), found="nothing of that name", expected=expected)

    def _kind(
        self, parts: Sequence[str], value: Any, parameter: inspect.Parameter, annotation: Any
    ) -> Iterator[Problem]:
        place, value = follow(self.config.content, parts, value)
        if value is None and annotation is not inspect.Parameter.empty and unlike_annotation(None, annotation) == "":
            self.judged.add(place)  # where a number stood, null is "not set" by what reads it
        if value is None or value is MISSING or isinstance(value, dict):
            return
        if isinstance(value, str) and value.startswith(("$", "%")):
            return
        if annotation is inspect.Parameter.empty:
            default = None if parameter.default is parameter.empty else parameter.default
            expected: str | None = unlike_default(value, default) if default is not None else None
        else:
            expected = unlike_annotation(value, annotation)
        if expected is None or place in self.judged:
            return
        self.judged.add(place)
        if expected:
            yield wrong_kind(self.config.where(place), value, expected)


def check_override_kinds(config: BundleConfig, judged: set[tuple[str, ...]]) -> Iterator[Problem]:
    """Values of a layer whose kind differs from that of the value they replace.

    Args:
        config: the layers.
        judged: knobs that a component's annotation has spoken about already; it knows better than a default.
    """
    for index, (layer, pairs) in enumerate(config.layers[1:], start=1):
        below = config.below(index)
        for key, value in pairs.items():
            parts = split_id(key)
            default = lookup(below, parts)
            if parts in judged or default is MISSING or isinstance(default, (dict, list)):
                continue
            if value is None and len(parts) > 1 and parts[0] in GROUPS:
                continue  # whether a site's knob may be null, what reads it there says
            if is_code(default) or is_code(value):
                continue
            expected = unlike_default(value, default)
            if expected:
                yield wrong_kind(f"{layer} -> {key}", value, expected)


def wrong_kind(where: str, value: Any, expected: str) -> Problem:
    """A value of the wrong kind, reported in the usual form: expected a number, found '0.5' (str)."""
    layer, _, name = where.partition(" -> ")
    hint = hint_for(value, expected, option=f"--{name}" if layer == COMMAND_LINE else "")
    return Problem(where, found=describe(value), expected=expected, hint=hint)
