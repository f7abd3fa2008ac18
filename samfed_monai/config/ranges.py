"""What each knob does and which values it takes: ``knobs.json``, in the words of JSON Schema.

The tables of ``docs/options.md``, the schemas for editors (:mod:`samfed_monai.config.schema`) and the check of a bundle
are made of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from samfed_monai.config.components import wrong_kind
from samfed_monai.config.knobs import is_value
from samfed_monai.config.parse import MISSING, BundleConfig, lookup, split_id
from samfed_monai.core.errors import Problem, did_you_mean
from samfed_monai.core.io import read_json

Schema = dict[str, Any]
"""JSON Schema of one value."""

_BOUNDS = {
    "minimum": ("at least {}", lambda value, bound: value >= bound),
    "exclusiveMinimum": ("above {}", lambda value, bound: value > bound),
    "maximum": ("at most {}", lambda value, bound: value <= bound),
    "exclusiveMaximum": ("below {}", lambda value, bound: value < bound),
    "multipleOf": ("a multiple of {}", lambda value, bound: value % bound == 0),
}


_LARGEST = 2**53  # beyond it JSON's numbers lose digits, and torch takes none from 2**63


@functools.cache
def knob_texts() -> dict[str, dict[str, dict[str, Schema]]]:
    """By file, table of ``docs/options.md`` and id: keywords of JSON Schema, of which ``description`` is Markdown."""
    content: dict[str, dict[str, dict[str, Schema]]] = read_json(Path(__file__).with_name("knobs.json"))
    return content


def knobs_in(file: str) -> dict[str, Schema]:
    """Keywords of each knob of a file."""
    return {name: keywords for table in knob_texts().get(file, {}).values() for name, keywords in table.items()}


def check_ranges(config: BundleConfig) -> Iterator[Problem]:
    """Knobs whose value is out of the range, not among the words, or no number where they take a number.

    The optimizer takes what it is given: a quoted learning rate would be told by no annotation.
    """
    for file, _ in (config.layers[index] for index in config.own):
        for name, keywords in knobs_in(file).items():
            for parts, each in _with_parts(split_id(name), keywords):
                value = lookup(config.content, parts)
                if value is MISSING or not is_value(value):
                    continue
                whole = each.get("type") == "integer"
                number = whole or each.get("type") == "number" or bool(_BOUNDS.keys() & each.keys())
                kinds = (int, NoneType) if whole else (int, float, NoneType)
                if number and (isinstance(value, bool) or not isinstance(value, kinds)):
                    yield wrong_kind(config.where(parts), value, "a whole number" if whole else "a number")
                    continue
                expected = unfit(value, each)
                if isinstance(value, int) and abs(value) > _LARGEST:
                    expected = f"at most {_LARGEST:,}"
                if expected:
                    hint = did_you_mean(value, map(str, each["enum"])) if isinstance(value, str) else ""
                    yield Problem(config.where(parts), found=repr(value), expected=expected, hint=hint)


def _with_parts(parts: tuple[str, ...], keywords: Schema) -> Iterator[tuple[tuple[str, ...], Schema]]:
    yield parts, keywords
    for name, inner in keywords.get("properties", {}).items():
        yield from _with_parts((*parts, name), inner)


def unfit(value: Any, keywords: Mapping[str, Any]) -> str:
    """What is expected instead of a value; empty where it fits, and for a value of another kind, which is told as such.

    Args:
        value: of a knob; ``null`` stands for "not set" and fits.
        keywords: of JSON Schema.
    """
    if value is None:
        return ""
    if "enum" in keywords:
        return "" if value in keywords["enum"] else f"one of {keywords['enum']}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    bounds = {name: bound for name, bound in keywords.items() if name in _BOUNDS}
    fits = all(_BOUNDS[name][1](value, bound) for name, bound in bounds.items())
    return "" if fits else f"a number {' and '.join(_BOUNDS[name][0].format(bound) for name, bound in bounds.items())}"
