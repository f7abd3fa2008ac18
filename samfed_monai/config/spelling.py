"""Misspelt ids: overrides that name nothing, references that lead nowhere, knobs that nobody reads."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from samfed_monai.config.ids import MISSING, children, join_id, lookup, references, split_id, walk
from samfed_monai.config.knobs import home_of, is_value, shipped_plain
from samfed_monai.config.layers import COMMAND_LINE, BundleConfig
from samfed_monai.config.targets import parameters_of, resolve_target
from samfed_monai.errors import Problem, Refused, did_you_mean

COMPONENT_KEYS = frozenset({"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"})
"""Keys of a component that MONAI reads itself; they are no arguments."""

GROUPS = frozenset({"client", "teacher"})
"""Groups of ``federate.json`` whose ids are those of ``train.json`` and ``teacher.json``."""

SITES = "sites"
"""The group of ``federate.json`` that holds one group for each site, whose ids are those of ``train.json``, too."""

_MOST_NAMES = 12  # in a message that has no better guess

_MEANS_THE_SAME = 0.8  # difflib ratio above which two knobs of one file are taken for one knob and its misspelling


def check_override_ids(config: BundleConfig, base_layers: int) -> Iterator[Problem]:
    """Ids that a variant or the command line sets, and that nothing below them defines (MONAI would ignore them)."""
    for index, (layer, pairs) in enumerate(config.layers):
        below = config.below(index)
        for key, value in pairs.items():
            parts = split_id(key)
            own = index == 0 or (index < base_layers and len(parts) == 1)  # a workflow's files define their ids
            if own or parts[0].startswith("_"):  # and so a note, which MONAI passes over
                continue
            if len(parts) > 1 and parts[0] in {*GROUPS, SITES} and layer == COMMAND_LINE:
                continue  # ids of another workflow, checked against that one
            mend = _lost(below, parts, value)
            if mend is not None:
                mend = home_of(parts[0], config.layers[0][0]) or mend
                expected = "an id that this workflow has"
                yield Problem(f"{layer} -> {join_id(parts)}", found="an unknown id", expected=expected, mend=mend)


def _lost(below: dict[str, Any], parts: Sequence[str], value: Any) -> str | None:
    """What to do about an id that leads nowhere, or ``None`` when it leads somewhere."""
    for depth, part in enumerate(parts):
        holder = lookup(below, parts[:depth])
        if lookup(holder, (part,)) is not MISSING:
            continue
        names = {name for name, _ in children(holder)}
        if isinstance(holder, dict) and depth == len(parts) - 1:
            if "_target_" in holder:
                arguments, anything = _arguments(holder)
                if anything or part in arguments | COMPONENT_KEYS:
                    return None
                names |= arguments
            elif depth and isinstance(value, dict) and "_target_" in value:
                return None  # a new component in a group, for instance one more loss term
        guess = difflib.get_close_matches(part, sorted(names), n=1)
        if guess:
            return f"did you mean {join_id([*parts[:depth], guess[0], *parts[depth + 1 :]])!r}?"
        shown = sorted(names)[:_MOST_NAMES]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        return f"known here: {', '.join(shown) or 'nothing'}{more}"
    return None


def _arguments(component: dict[str, Any]) -> tuple[set[str], bool]:
    try:
        named, anything = parameters_of(resolve_target(component["_target_"], ""))
    except Refused:  # told where the component itself is checked
        return set(), True
    return set(named), anything


def check_references(config: BundleConfig) -> Iterator[Problem]:
    """``@id`` that leads nowhere, and ``$`` expressions that are not Python."""
    for parts, value in walk(config.content):
        if not isinstance(value, str) or parts[:1] == ("_meta_",):
            continue
        for target in references(value):
            if target[0] != "_meta_" and lookup(config.content, target) is MISSING:
                yield Problem(
                    config.where(parts),
                    found=f"@{join_id(target)}, which does not exist",
                    expected="a reference to an id of this workflow",
                    mend=did_you_mean(target[0], config.content)
                    if len(target) == 1
                    else _lost_reference(config, target),
                )
        if value.startswith("$") and not _is_python(value[1:]):
            yield Problem(config.where(parts), found=repr(value), expected="a Python expression after '$'")


def _lost_reference(config: BundleConfig, target: Sequence[str]) -> str:
    return _lost(config.content, target, None) or ""


def _is_python(text: str) -> bool:
    try:
        ast.parse(text.replace("@", "").replace("#", "_").replace("::", "_"))
    except SyntaxError:
        return False
    return True


def check_unread_knobs(config: BundleConfig, base_layers: int) -> Iterator[Problem]:
    """Plain values on top of a file that nothing refers to, where they are misspelt or knobs of another file.

    Any other may be there for another program.
    """
    read = {target[0] for _, value in walk(config.content) if isinstance(value, str) for target in references(value)}
    files = config.layers[:base_layers]
    known = read.union(*(shipped_plain(layer) for layer, _ in files))
    for layer, pairs in files:
        for name in (name for name, value in pairs.items() if name not in known and is_value(value)):
            close = difflib.get_close_matches(name, sorted(read & config.content.keys()), n=1, cutoff=_MEANS_THE_SAME)
            mend = f"did you mean {close[0]!r}?" if close else home_of(name, layer)
            if mend:
                yield Problem(f"{layer} -> {name}", found="a key that nothing reads", expected="a known key", mend=mend)
