"""What of a configuration has any part in a workflow: what can be reached through references, and is not disabled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from samfed_monai.config.ids import MISSING, lookup, references, walk

DISABLED = "_disabled_"
_Path = tuple[str, ...]


def reached(content: Mapping[str, Any], roots: Iterable[str]) -> dict[str, Any]:
    """The ids that ``roots`` lead to, with their values; disabled components are ``None`` in them.

    What is left out can have any value without a change in what the roots compute: settings of a term that a variant
    disables, for instance, once nothing else refers to them, or one guide where ``@guides#sam`` names another.

    Args:
        content: a merged, unresolved configuration.
        roots: top-level ids to begin with; one that the configuration lacks is passed over.

    Returns:
        In the order of ``content``; of a dictionary of which only parts are referred to, these parts. All of
        ``content`` where MONAI's macros (``%``) stand in it, which may copy from anywhere.
    """
    enabled = {name: _enabled(value) for name, value in content.items()}
    found = set[_Path]()
    waiting: list[_Path] = [(name,) for name in roots]
    while waiting:
        path = _there(enabled, waiting.pop())
        if not path or any(path[:length] in found for length in range(1, len(path) + 1)):
            continue
        found.add(path)
        for _, text in walk(lookup(enabled, path)):
            if not isinstance(text, str):
                continue
            if text.startswith("%"):
                return enabled
            if "@#" in text:  # relative to where it stands: somewhere below the same id on top
                waiting.append(path[:1])
            waiting += references(text)
    return {name: _only(value, (name,), found) for name, value in enabled.items() if _has(found, (name,))}


def _there(content: Mapping[str, Any], path: _Path) -> _Path:
    """The part of ``path`` that leads through dictionaries to something that is there."""
    for length in range(1, len(path) + 1):
        value = lookup(content, path[:length])
        if value is MISSING:
            return path[: length - 1]
        if not isinstance(value, dict):
            return path[:length]
    return path


def _has(found: set[_Path], path: _Path) -> bool:
    return any(other[: len(path)] == path for other in found)


def _only(value: Any, path: _Path, found: set[_Path]) -> Any:
    if path in found:
        return value
    below = ((name, part, (*path, name)) for name, part in value.items())
    return {name: _only(part, inner, found) for name, part, inner in below if _has(found, inner)}


def _enabled(part: Any) -> Any:
    if isinstance(part, Mapping):
        return None if part.get(DISABLED) is True else {name: _enabled(value) for name, value in part.items()}
    return [_enabled(value) for value in part] if isinstance(part, list) else part
