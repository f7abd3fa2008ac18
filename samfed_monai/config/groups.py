"""Groups of ``federate.json`` whose ids are those of another workflow: put together whole, handed on unread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samfed_monai.config.ids import join_id, split_id, walk
from samfed_monai.config.layers import BundleConfig
from samfed_monai.config.spelling import GROUPS, SITES

_GROUPED = GROUPS | {SITES}
_QUOTED = "_json_"


def whole_groups(files: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides with those inside ``client``, ``teacher`` and each of ``sites`` put together into the whole group.

    MONAI sets an id only where everything above it exists, and ``client#terms#sam_kd#weight`` has no ``terms`` above
    it in ``federate.json``: the ids below a group are those of another workflow. For the same reason MONAI must not
    build a component that stands there, which it does with whatever it finds below an id; such a value travels as
    text, and :func:`unquoted` reads it at the other end.
    """
    plain = {key: value for key, value in overrides.items() if split_id(key)[0] not in _GROUPED or key in _GROUPED}
    content = BundleConfig(files, plain).content
    for key, value in overrides.items():
        group, *inside = split_id(key)
        if key in plain:
            continue
        whole = plain[group] = dict(plain.get(group, content.get(group)) or {})
        if group == SITES and len(inside) > 1:
            site, *inside = inside
            whole[site] = {**(whole.get(site) or {}), join_id(inside): value}
        else:
            whole[join_id(inside)] = value
    for group in _GROUPED:
        given = plain.get(group, content.get(group))
        if isinstance(given, Mapping) and _has_component(given):
            plain[group] = {name: _quoted(value, deep=group == SITES) for name, value in given.items()}
    return plain


def unquoted(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group as it was written, of one that :func:`whole_groups` made."""
    return {name: _read(value) for name, value in group.items()}


def _has_component(content: Any) -> bool:
    return any(isinstance(value, Mapping) and "_target_" in value for _, value in walk(content))


def _quoted(value: Any, *, deep: bool) -> Any:
    if not _has_component(value):
        return value
    if deep and isinstance(value, Mapping):  # one site's choices, each by itself
        return {name: _quoted(choice, deep=False) for name, choice in value.items()}
    return {_QUOTED: json.dumps(value)}


def _read(value: Any) -> Any:
    return json.loads(value[_QUOTED]) if isinstance(value, Mapping) and set(value) == {_QUOTED} else value
