"""Ids of a bundle's configuration (``a#b#c``), looked up in plain nested dictionaries and lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MISSING = object()
_REFERENCE = re.compile(r"@(\w+(?:::\w+)*)")


def split_id(key: str) -> tuple[str, ...]:
    """``"a#b::0"`` as ``("a", "b", "0")``; a leading ``+`` (MONAI's "merge") is no part of the id."""
    return tuple(key.lstrip("+").replace("#", "::").split("::"))


def join_id(parts: Iterable[str]) -> str:
    return "#".join(parts)


def lookup(content: Any, parts: Iterable[str]) -> Any:
    """What stands at an id, or ``MISSING``."""
    for part in parts:
        if isinstance(content, dict) and part in content:
            content = content[part]
        elif isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        else:
            return MISSING
    return content


def flat(group: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as overrides by id: ``{"a": {"b": 1}}`` becomes ``{"a#b": 1}``; components stay whole.

    An override of ``a`` would replace all of ``a``; one of ``a#b`` changes just that.
    """
    pairs: dict[str, Any] = {}
    for name, value in group.items():
        if isinstance(value, Mapping) and value and "_target_" not in value:
            pairs |= flat(value, f"{prefix}{name}#")
        else:
            pairs[f"{prefix}{name}"] = value
    return pairs


def children(content: Any) -> Iterator[tuple[str, Any]]:
    """Names and values one level down; nothing for plain values."""
    if isinstance(content, dict):
        yield from content.items()
    elif isinstance(content, list):
        yield from ((str(index), value) for index, value in enumerate(content))


def walk(content: Any, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every id with its value, parents before children."""
    yield parts, content
    for name, value in children(content):
        yield from walk(value, (*parts, name))


def references(text: str) -> list[tuple[str, ...]]:
    """Ids that a string refers to with ``@``; relative ones (``@#sibling``) are left to MONAI."""
    if not text.startswith(("@", "$")):
        return []
    return [tuple(match.split("::")) for match in _REFERENCE.findall(text.replace("#", "::"))]
