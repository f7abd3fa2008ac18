"""What a command reads of a configuration, and the options that nothing in its run would read.

A command asks a workflow's configuration for some ids by name (:data:`~samfed_monai.config.options.MONAI_IDS` where
MONAI runs it). What these refer to is read, and nothing else: an option that they do not lead to is refused, with the
option that is read in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from typing import Any

from samfed_monai.config.ids import UNREAD, lost
from samfed_monai.config.options import (
    GIVEN,
    GROUPS,
    MONAI_IDS,
    OPTIONAL,
    SITES,
    TEACHER,
    TEACHER_FILE,
    TEACHER_GIVEN,
    TEACHER_READS,
    TRAINING_READS,
)
from samfed_monai.config.parse import (
    DISABLED,
    FEDERATE,
    MISSING,
    WORKFLOWS,
    BundleConfig,
    flat,
    join_id,
    lookup,
    reached,
    split_id,
)
from samfed_monai.core.errors import Problem

_LONGEST = 60  # characters of a value in a message
_SET = "leave it out: the federation sets it"

OF_SERVER = frozenset(
    {"mixed_networks", "server_network", "strategy", "teacher_adapt", "warm_start", "encoder_weights"}
)
"""Ids on top of ``train.json`` that a federation asks for once, and no site has its own of."""


class Unread(Problem):
    """An option that nothing in a run reads. Of several runs on one command line, others may."""


def runs_of(config: BundleConfig, reads: Set[str] = MONAI_IDS) -> list[dict[str, Any]]:
    """What a workflow reads: what MONAI or a command asks for, and in a federation what the sites' training does.

    Args:
        config: the layers.
        reads: ids that the command asks for by name.
    """
    runs = [reached(config.content, reads)]
    return [*runs, of_training(config.content)] if config.federates else runs


def of_training(content: Mapping[str, Any], *, site: bool = False) -> dict[str, Any]:
    """What a federation reads of ``train.json``, or a site of its own values; ids that it sets itself are left out."""
    roots, given = (TRAINING_READS - OF_SERVER, GIVEN - {"datalist", "data_root"}) if site else (TRAINING_READS, GIVEN)
    content = {**content, "standalone": {}}  # what a site runs on its own
    if site and isinstance(network := content.get("network_def"), Mapping):  # the server sends what it starts from
        content["network_def"] = {name: value for name, value in network.items() if name != "weights"}
    return {name: value for name, value in reached(content, roots).items() if name not in given}


def of_teacher(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a federation reads of ``teacher.json``."""
    return {name: value for name, value in reached(content, TEACHER_READS).items() if name not in TEACHER_GIVEN}


def is_read(runs: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> bool:
    """Whether an id is among what a run reads (:func:`runs_of`)."""
    return parts[-1] == DISABLED or any(lookup(each, parts) is not MISSING for each in runs)


def unread(config: BundleConfig, reads: Set[str], asked: Collection[str] | None = None) -> Iterator[Problem]:
    """Overrides that a workflow does not read.

    Args:
        config: the layers, the command line on top; groups of a federation are left to :func:`unread_in_groups`.
        reads: ids that the command asks for by name.
        asked: ids that the user gave; ``None``: all overrides.
    """
    if not any(split_id(name)[0] in config.content for name in reads):
        return
    runs = runs_of(config, reads)
    for key, value in config.layers[-1][1].items():
        parts = split_id(key)
        inside = config.federates and parts[0] in GROUPS
        if asked is not None and key not in asked:
            continue
        expected, hint = "", ""
        if not is_read(runs, parts[:1] if inside else parts):
            of_variant = f"an option that a run of the variant {config.content.get('variant')!r} reads"
            expected = of_variant if config.federates else "an option that this command reads"
            hint = _disabled(config.content, parts)
        if config.federates and not hint:
            expected, hint = _instead(config, join_id(parts), value) or (expected, hint)
        if expected:
            hint = hint or _elsewhere(config, parts)
            yield Unread(f"{config.source} -> {join_id(parts)}", found=_short(value), expected=expected, hint=hint)


def _instead(config: BundleConfig, name: str, value: Any) -> tuple[str, str] | None:
    """What a federation reads in place of an option, and what to do about it; ``None`` where it has nothing."""
    if name in ("epochs", "val_interval"):
        hint = "set local_steps, the steps of a site in a round, or rounds" if name == "epochs" else "leave it out"
        return "none: the federation gives every site its own", hint
    if name == "network_name" and config.content.get("mixed_networks") and config.content.get("server_network"):
        variant = config.content.get("variant")
        expected = f"an id that the variant {variant!r} reads: sites take theirs from mixed_networks"
        return expected, f"set --mixed_networks \"['{value}']\" and --server_network {value}"
    return None


def _elsewhere(config: BundleConfig, parts: Sequence[str]) -> str:
    """The option of a federation for an id that its sites or its teacher read."""
    file, option = config.layers[0][0], join_id(parts)
    if config.federates:
        return _SET if parts[0] in GIVEN else UNREAD
    if file == TEACHER_FILE and is_read([of_teacher(config.content)], parts):
        return f"`samfed federate` reads it: --{TEACHER}#{option}"
    if file == WORKFLOWS[FEDERATE.removesuffix(".json")][0] and is_read([of_training(config.content)], parts):
        return f"`samfed federate` reads it: --{option}"
    return UNREAD


def unread_without_teacher(config: BundleConfig, *, trunk: bool) -> Iterator[Problem]:
    """``adapter`` on the command line of a run that has no use for it.

    Args:
        config: of a federation, the command line on top.
        trunk: whether the run has a teacher, if only for the trunk that networks start from.
    """
    adapt = config.content.get("teacher_adapt")
    useless = {"adapter"} if adapt == "none" or not trunk else set[str]()
    expected = f"an option that a run of the variant {config.content.get('variant')!r} reads"
    for key, value in config.layers[-1][1].items():
        name = split_id(key)[0]
        if name in useless and value is not None:
            hint = "leave it out: this run takes SAM as it is" if adapt == "none" else "leave it out: no teacher here"
            yield Unread(f"{config.source} -> {join_id(split_id(key))}", _short(value), expected, hint)


def unread_in_groups(config: BundleConfig, groups: Mapping[str, BundleConfig], *, teacher: bool) -> Iterator[Problem]:
    """Options for one site's training or for the teacher that a federation does not read.

    Args:
        config: a federation's layers, the command line on top.
        groups: what the federation makes of the groups (:func:`.check.grouped_configs`).
        teacher: whether the run has a teacher.
    """
    for group, name, option, value in _asked(config):
        if group not in groups:
            continue
        part, parts = groups[group], split_id(name)
        site = group != TEACHER
        run = of_training(part.content, site=True) if site else of_teacher(part.content) if teacher else {}
        if is_read([run], parts):
            continue
        if lost(part.below(len(part.layers) - 1), parts, value, imports=False) and parts[0] not in OPTIONAL:
            continue  # an unknown id is reported as such
        hint = _hint(site, parts) or _disabled(part.content, parts, f"{group}#")
        if not site and not teacher:
            hint = "leave it out: this run has no teacher"
        expected = f"an option that a run of the variant {config.content.get('variant')!r} reads"
        yield Unread(f"{config.source} -> {option}", found=_short(value), expected=expected, hint=hint or UNREAD)


def _asked(config: BundleConfig) -> Iterator[tuple[str, str, str, Any]]:
    """What the command line says inside the groups: group, id, option, value."""
    for key, value in config.layers[-1][1].items():
        group, *inside = split_id(key)
        if group == TEACHER:
            yield from _pairs(group, inside, value)
        elif group == SITES and inside:
            yield from _pairs(join_id((SITES, inside[0])), inside[1:], value)
        elif group == SITES and isinstance(value, Mapping):
            for site, pairs in value.items():
                yield from _pairs(join_id((SITES, site)), [], pairs)


def _pairs(group: str, inside: Sequence[str], value: Any) -> Iterator[tuple[str, str, str, Any]]:
    pairs = {join_id(inside): value} if inside else flat(value) if isinstance(value, Mapping) else {}
    for name, each in pairs.items():
        known = "network_name" if name == "network" and group != TEACHER else name  # as sites spell it
        yield group, known, f"{group}#{name}", each


def _hint(site: bool, parts: Sequence[str]) -> str:
    name = parts[0]
    if not site and name == "adapt":
        return "did you mean --teacher_adapt?"
    if site and name in OF_SERVER:
        return f"all sites have the same: --{join_id(parts)}"
    return _SET if name in (GIVEN if site else TEACHER_GIVEN) else ""


def _disabled(content: Mapping[str, Any], parts: Sequence[str], before: str = "") -> str:
    for depth in range(1, len(parts) + 1):
        part, place = lookup(content, parts[:depth]), join_id(parts[:depth])
        if isinstance(part, Mapping) and part.get(DISABLED) is True:
            return f"{place} is disabled; --{before}{place}#{DISABLED} false enables it"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
