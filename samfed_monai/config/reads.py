"""What a command reads of a configuration, and the options that nothing in its run would read.

Whoever runs a workflow asks its configuration for some ids by name (:data:`~samfed_monai.config.knobs.MONAI_IDS` where
MONAI runs it). What these refer to is read, and nothing else: an option that they do not lead to is refused, with the
option that is read in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from typing import Any

from samfed_monai.config.knobs import FEDERATION_READS, GIVEN, GROUPS, OPTIONAL, SITES, TEACHER_GIVEN, lost
from samfed_monai.config.parse import DISABLED, MISSING, BundleConfig, flat, join_id, lookup, reached, split_id
from samfed_monai.core.errors import Problem

_LONGEST = 60  # characters of a value in a message


class Unread(Problem):
    """An option that nothing in a run reads. Of several runs on one command line, others may."""


def is_read(runs: Mapping[str, Any] | None, parts: Sequence[str]) -> bool:
    """Whether an id is among what a run reads (:func:`reached`); ``None`` reads all."""
    return runs is None or parts[-1] == DISABLED or lookup(runs, parts) is not MISSING


def unread(config: BundleConfig, reads: Set[str], asked: Collection[str] | None = None) -> Iterator[Problem]:
    """Overrides that a workflow does not read.

    Args:
        config: the layers, the command line on top; groups of a federation are left to :func:`unread_in_groups`.
        reads: ids that the command asks for by name.
        asked: ids that the user gave; ``None``: all overrides.
    """
    federate = config.layers[0][0] == "federate.json"
    runs = reached(config.content, reads) if any(split_id(name)[0] in config.content for name in reads) else None
    for key, value in config.layers[-1][1].items():
        parts = split_id(key)
        inside = federate and parts[0] in (*GROUPS, SITES)
        if (asked is not None and key not in asked) or is_read(runs, parts[:1] if inside else parts):
            continue
        yield Unread(
            f"{config.source} -> {join_id(parts)}",
            found=_short(value),
            expected="an option that this command reads",
            hint=_disabled(config.content, parts) or _elsewhere(config, parts),
        )


def _elsewhere(config: BundleConfig, parts: Sequence[str]) -> str:
    """The option of a federation for an id that its sites or its teacher read."""
    for group, file in GROUPS.items():
        if file == config.layers[0][0] and is_read(_runs(config, group), parts):
            return f"`samfed federate` reads it: --{group}#{join_id(parts)}"
    return "leave it out: nothing that is run refers to it"


def unread_in_groups(config: BundleConfig, groups: Mapping[str, BundleConfig], *, teacher: bool) -> Iterator[Problem]:
    """Options for the sites' training or the teacher that a federation does not read.

    Args:
        config: ``federate.json`` and the command line.
        groups: what the federation makes of the other files (:func:`.check.federated_configs`).
        teacher: whether the run has a teacher.
    """
    runs: dict[str, Any] = {}
    for group, name, option, value in _asked(config):
        if group not in groups:
            continue
        part, parts = groups[group], split_id(name)
        if group not in runs:
            common = groups.get("client", part).layers if group.startswith(SITES) else part.layers[:-1]
            part = BundleConfig.of_layers([*common, part.layers[-1]], part.source)
            runs[group] = part.content, _runs(part, group) if teacher or group != "teacher" else {}
        content, run = runs[group]
        if is_read(run, parts):
            continue
        if lost(part.below(len(part.layers) - 1), parts, value, imports=False) and parts[0] not in OPTIONAL:
            continue  # an unknown id is reported as such
        hint = _hint(group, parts) or _disabled(content, parts, f"{group}#")
        if group == "teacher" and not teacher:
            hint = "leave it out: this run has no teacher"
        hint = hint or "leave it out: nothing that is run refers to it"
        expected = f"an option that a run of the variant {config.content.get('variant')!r} reads"
        yield Unread(f"{config.source} -> {option}", found=_short(value), expected=expected, hint=hint)


def _runs(config: BundleConfig, group: str) -> dict[str, Any]:
    """What a federation reads of a file: it sets some ids itself, and leaves out what runs at a site on its own."""
    content = {**config.content, "standalone": {}}
    roots, own = (FEDERATION_READS[group], TEACHER_GIVEN) if group == "teacher" else (FEDERATION_READS["client"], GIVEN)
    if group.startswith(SITES):
        roots, own = roots - OF_SERVER, GIVEN - {"datalist", "data_root"}
        if isinstance(network := content.get("network_def"), Mapping):  # the server sends what it starts from
            content["network_def"] = {name: value for name, value in network.items() if name != "weights"}
    return {name: value for name, value in reached(content, roots).items() if name not in own}


OF_SERVER = frozenset(
    {"mixed_networks", "server_network", "strategy", "teacher_adapt", "warm_start", "encoder_weights"}
)
"""Ids on top of ``train.json`` that a federation asks for once, and no site has its own of."""


def _asked(config: BundleConfig) -> Iterator[tuple[str, str, str, Any]]:
    """What the command line says inside the groups: group, id, option, value."""
    for key, value in config.layers[-1][1].items():
        group, *inside = split_id(key)
        if group in GROUPS:
            yield from _pairs(group, inside, value)
        elif group == SITES and inside:
            yield from _pairs(join_id((SITES, inside[0])), inside[1:], value)
        elif group == SITES and isinstance(value, Mapping):
            for site, pairs in value.items():
                yield from _pairs(join_id((SITES, site)), [], pairs)


def _pairs(group: str, inside: Sequence[str], value: Any) -> Iterator[tuple[str, str, str, Any]]:
    pairs = {join_id(inside): value} if inside else flat(value) if isinstance(value, Mapping) else {}
    for name, each in pairs.items():
        known = "network_name" if name == "network" and group not in GROUPS else name  # as sites spell it
        yield group, known, f"{group}#{name}", each


def _hint(group: str, parts: Sequence[str]) -> str:
    name = parts[0]
    if group == "teacher" and name == "adapt":
        return "did you mean --client#teacher_adapt?"
    if group.startswith(SITES) and name in OF_SERVER:
        return f"all sites have the same: --client#{join_id(parts)}"
    if name in GIVEN or (group == "teacher" and name in TEACHER_GIVEN):
        return "leave it out: the federation sets it"
    return ""


def _disabled(content: Mapping[str, Any], parts: Sequence[str], before: str = "") -> str:
    for depth in range(1, len(parts) + 1):
        part, place = lookup(content, parts[:depth]), join_id(parts[:depth])
        if isinstance(part, Mapping) and part.get(DISABLED) is True:
            return f"{place} is disabled; --{before}{place}#{DISABLED} false enables it"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
