"""Ids that lead nowhere: overrides that name nothing, references without an aim, keys that nothing reads, and code."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from typing import Any

from samfed_monai.config.options import (
    COMPONENT_KEYS,
    GIVEN,
    GROUPS,
    MONAI_IDS,
    OF_VARIANTS,
    OPTIONAL,
    SITES,
    TEACHER,
    TEACHER_FILE,
    TEACHER_GIVEN,
    TEACHER_READS,
    TRAINING_READS,
    all_options,
    home_of,
    is_plain,
    is_value,
    shipped,
    shipped_plain,
)
from samfed_monai.config.parse import (
    COMMAND_LINE,
    DISABLED,
    FEDERATE,
    MISSING,
    WORKFLOWS,
    BundleConfig,
    children,
    flat,
    is_note,
    join_id,
    lookup,
    reached,
    references,
    split_id,
    walk,
)
from samfed_monai.config.targets import parameters_of, resolve_target
from samfed_monai.config.variants import packaged_methods
from samfed_monai.core.errors import Problem, Refused, closest, did_you_mean
from samfed_monai.core.io import read_json
from samfed_monai.core.words import clipped

_CODE = ("$", "%")
_MOST_NAMES = 12  # in a message that has no better guess
_ALIKE, _MORE_ALIKE = 0.7, 0.8  # ratios of difflib's from which a key is one that is missing, or one beside it
UNREAD = "leave it out: nothing that is run refers to it"


def check_code(config: BundleConfig) -> Iterator[Problem]:
    """Code where only values belong: in options of files and variants, anywhere on the command line.

    An option is what is above a file's ``imports``, and every id on top of a file whose value in the packaged bundles
    is plain, the rarely used ones below ``imports`` too.
    """
    known = all_options(config)
    for layer, pairs in config.layers:
        for key, item in pairs.items():
            if layer != config.source and not (key in known and is_plain(item)):
                continue
            for parts, value in walk(item, split_id(key)):
                if isinstance(value, str) and value.startswith(_CODE):
                    hint = f"a value that begins with {value[0]!r} would run code or read another file"
                    yield Problem(f"{layer} -> {join_id(parts)}", repr(value), "a plain value", hint)


def check_override_ids(config: BundleConfig, *, imports: Collection[str] | None = None) -> Iterator[Problem]:
    """Ids that a variant or the command line sets, and that nothing below them defines (MONAI would ignore them).

    Args:
        config: the layers.
        imports: names of the layers for which a component is imported to see whether it takes an argument that no
            layer below spells; in the others such an argument passes. ``None`` is all layers.
    """
    for index, (layer, pairs) in enumerate(config.layers):
        below = config.below(index)
        for key, value in pairs.items():
            parts = split_id(key)
            own = index == 0 or (index in config.own and len(parts) == 1)  # a workflow's files define their ids
            if own or is_note(parts[0]):  # and so a note, which MONAI passes over
                continue
            if config.federates and len(parts) > 1 and parts[0] in GROUPS and layer == COMMAND_LINE:
                continue  # ids of another workflow, checked against that one
            if len(parts) == 1 and _may_be_new(config, layer, parts[0]):
                continue
            asks = imports is None or layer in imports
            holder = lookup(below, parts[:-1])
            target = pairs.get(join_id([*parts[:-1], "_target_"]))
            if isinstance(target, str) and isinstance(holder, dict) and "_target_" in holder:
                holder = {**holder, "_target_": target}  # the layer replaces the component
                if lost(holder, parts[-1:], value, imports=asks) is None:
                    continue
            hint = lost(below, parts, value, imports=asks)
            if hint is not None:
                hint = _declared_by(parts[0]) or home_of(parts[0], config) or _of_the_teacher(config, parts) or hint
                if parts[0] not in below and len(parts) > 1 and lookup(below, parts[1:]) is not MISSING:
                    hint = f"did you mean {join_id(parts[1:])!r}?"  # a group that there is not
                yield Problem(f"{layer} -> {join_id(parts)}", "an unknown id", "an id that this workflow has", hint)


def _of_the_teacher(config: BundleConfig, parts: Sequence[str]) -> str:
    """The id of the teacher's fit that is meant on the command line of a federation."""
    if not config.federates:
        return ""
    if any(lookup(each, parts) is not MISSING for each in shipped(TEACHER_FILE)):
        return f"known in {TEACHER_FILE} (here: --{TEACHER}#{join_id(parts)})"
    others = set() if len(parts) > 1 else shipped_plain(TEACHER_FILE) - config.content.keys()
    meant = closest(parts[0], others | config.content.keys())
    return f"did you mean '{TEACHER}#{meant}'?" if meant in others else ""


def _may_be_new(config: BundleConfig, layer: str, name: str) -> bool:
    """Whether something reads an id on top that is in no layer below: the federation, or what a variant adds."""
    if layer == config.source:
        return config.layers[0][0] == "train.json" and name in OPTIONAL - OF_VARIANTS
    return name in OPTIONAL or any(target[0] == name for target, _ in _references(config.content))


def _declared_by(name: str) -> str:
    """Which packaged variants read an id of :data:`OF_VARIANTS`, as a hint; empty for any other id."""
    files = packaged_methods().items() if name in OF_VARIANTS else ()
    found = sorted(variant for variant, path in files if read_json(path).get(name) is not None)
    return f"variants that read it, and those that build on them: {', '.join(found)}" if found else ""


def lost(below: dict[str, Any], parts: Sequence[str], value: Any, *, imports: bool = True) -> str | None:
    """What to do about an id that leads nowhere, or ``None`` when it leads somewhere.

    Args:
        below: a merged configuration.
        parts: the id.
        value: what is to be there.
        imports: whether a component is imported to see if it takes an argument that is not spelt; else it does.
    """
    for depth, part in enumerate(parts):
        holder = lookup(below, parts[:depth])
        if lookup(holder, (part,)) is not MISSING:
            continue
        names = {name for name, _ in children(holder)}
        if isinstance(holder, dict) and depth == len(parts) - 1:
            if "_target_" in holder:
                if part in COMPONENT_KEYS or not imports:
                    return None
                arguments, anything = arguments_of(holder)
                if anything or part in arguments:
                    return None
                names |= arguments
            elif depth and isinstance(value, dict) and "_target_" in value:
                return None  # a new component in a group, for instance one more loss term
        if guess := closest(part, names):
            return f"did you mean {join_id([*parts[:depth], guess, *parts[depth + 1 :]])!r}?"
        shown = sorted(names)[:_MOST_NAMES]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        return f"known here: {', '.join(shown) or 'nothing'}{more}"
    return None


def arguments_of(component: dict[str, Any]) -> tuple[set[str], bool]:
    """Names of a component's arguments, and whether it takes any other, or cannot be asked."""
    try:
        named, anything = parameters_of(resolve_target(component["_target_"], ""))
    except Refused:  # reported where the component itself is checked
        return set(), True
    return set(named), anything


def _references(content: Any) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """What each text refers to, and where the text is."""
    for parts, value in walk(content):
        if isinstance(value, str) and parts[:1] != ("_meta_",):
            yield from ((target, parts) for target in references(value) if target[0] != "_meta_")


def check_reading(config: BundleConfig, runs: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """Keys on top of a file that nothing reads, references that lead nowhere, expressions that are not Python.

    A misspelt key is reported once, and not the references that it leaves without an aim.

    Args:
        config: the layers.
        runs: what the workflow reads, see :func:`samfed_monai.config.ids.runs_of`.
    """
    read, aims = set[str](), dict[tuple[str, ...], tuple[str, ...]]()
    for target, place in _references(config.content):
        read.add(target[0])
        if lookup(config.content, target) is MISSING:
            aims.setdefault(target, place)
    missing = {target[0] for target in aims if target[0] not in config.content}
    meant = set[tuple[str | None, ...]]()
    for index in config.own:
        file, pairs = config.layers[index]
        for name, value in pairs.items():
            hint, right = _unread(config, index, name, value, runs, read, missing)
            meant.add((right,))
            if hint:
                yield Problem(f"{file} -> {name}", "a key that nothing reads", "a known key", hint)
            for part, spelt in _misspelt_parts(file, name, value):
                meant.add((name, spelt))
                hint = f"did you mean '{name}#{spelt}'?"
                yield Problem(f"{file} -> {name}#{part}", "a key that nothing reads", "a known key", hint)
    for target, place in aims.items():
        if not meant.isdisjoint((target[:1], target[:2])):
            continue
        guess = lost(config.content, target, None) if len(target) > 1 else did_you_mean(target[0], config.content)
        homes = [file for file, _ in config.layers if target[0] in missing and target[0] in shipped_plain(file)]
        hint = f"add {target[0]} to {homes[0]}" if homes else guess or ""
        expected = "a reference to an id of this workflow"
        yield Problem(config.where(place), f"@{join_id(target)}, which does not exist", expected, hint)
    for parts, value in walk(config.content):
        if isinstance(value, str) and value.startswith("$") and not _is_python(value[1:]):
            yield Problem(config.where(parts), repr(value), "a Python expression after '$'")


def _unread(
    config: BundleConfig,
    index: int,
    name: str,
    value: Any,
    runs: Sequence[Mapping[str, Any]],
    read: set[str],
    missing: set[str],
) -> tuple[str, str | None]:
    """What to do about a key on top of a file, and the id that it means; empty where it may be there.

    A key of the first file that means nothing known may be there for another program. A file that is on another may set
    that one's ids as far as what it runs reads them; the packaged bundles' own keys may be there in any case, as a
    network of one's own has no use for some of them.
    """
    (bottom, below), (file, pairs) = config.layers[0], config.layers[index]
    packaged = {key for content in shipped(file) for key in content}
    above = index > 0 and "run" in config.content
    known = any(name in each for each in runs) if above else name in read | MONAI_IDS
    if is_note(name) or name in packaged or known:
        return "", None
    if name in read:
        return f"delete it: it counts in {bottom}" if name in below else UNREAD, None
    if is_value(value) and (home := home_of(name, config)):
        return home, None
    absent, there = (missing | packaged) - pairs.keys(), read & config.content.keys() if is_value(value) else set()
    right = closest(name, absent | there, _ALIKE)
    if right is None or (right not in absent and closest(name, [right], _MORE_ALIKE) is None):
        return UNREAD if above else "", None
    return f"did you mean {right!r}?", right


def _misspelt_parts(file: str, group: str, content: Any) -> Iterator[tuple[str, str]]:
    """Keys in a group that a federation asks for by their names, with the one that each means."""
    if group in TRAINING_READS and isinstance(content, dict) and "_target_" not in content:
        packaged = {key for each in shipped(file) for key in each.get(group, {})}
        for name in content:
            if name not in packaged and (right := closest(name, packaged - content.keys(), _ALIKE)):
                yield name, right


def _is_python(text: str) -> bool:
    try:
        ast.parse(text.replace("@", "").replace("#", "_").replace("::", "_"))
    except SyntaxError:
        return False
    return True


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
            yield Unread(
                f"{config.source} -> {join_id(parts)}", found=clipped(repr(value)), expected=expected, hint=hint
            )


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
            yield Unread(f"{config.source} -> {join_id(split_id(key))}", clipped(repr(value)), expected, hint)


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
        yield Unread(f"{config.source} -> {option}", found=clipped(repr(value)), expected=expected, hint=hint or UNREAD)


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
