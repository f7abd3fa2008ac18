"""Knobs: the plain values on top of a bundle's file, which a clinician turns and which never run code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from samfed_monai.config.ids import join_id, split_id, walk
from samfed_monai.config.layers import COMMAND_LINE, BundleConfig
from samfed_monai.errors import Problem

_CODE = ("$", "%")


def is_plain(value: Any) -> bool:
    """Text, number, true, false, null, or a list of these."""
    if isinstance(value, list):
        return all(is_plain(item) and not isinstance(item, list) for item in value)
    return value is None or isinstance(value, (str, bool, int, float))


def knobs_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of one file: its entries from the top down to ``imports`` or to the first object, whichever is first.

    Ids that begin with ``_`` are notes, not knobs, and an ``imports`` on the very top is stepped over.
    """
    knobs: dict[str, Any] = {}
    for name, value in content.items():
        if name.startswith("_") or (name == "imports" and not knobs):
            continue
        if name == "imports" or not is_plain(value):
            break
        knobs[name] = value
    return knobs


def check_knobs(config: BundleConfig) -> Iterator[Problem]:
    """Code where only values belong: in a file's knobs, in a variant's plain values, anywhere on the command line."""
    for index, (layer, pairs) in enumerate(config.layers):
        if layer == COMMAND_LINE:
            suspects = {id_: value for key, item in pairs.items() for id_, value in _texts(key, item)}
        elif index == 0:
            suspects = {name: value for name, value in knobs_of(pairs).items() if isinstance(value, str)}
        else:
            known = _all_knobs(config)
            suspects = {key: value for key, value in pairs.items() if isinstance(value, str) and key in known}
        for key, value in suspects.items():
            if value.startswith(_CODE):
                yield Problem(
                    f"{layer} -> {key}",
                    found=repr(value),
                    expected="a plain value",
                    mend=f"a value that begins with {value[0]!r} would run code or read another file",
                )


def _all_knobs(config: BundleConfig) -> set[str]:
    return {name for layer, pairs in config.layers if layer != COMMAND_LINE for name in knobs_of(pairs)}


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    for parts, item in walk(value, split_id(key)):
        if isinstance(item, str):
            yield join_id(parts), item
