"""Knobs: the plain values on top of a bundle's file; which file each belongs to, and misspelt ones."""

from __future__ import annotations

import ast
import difflib
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from samfed_monai.config.bundles import packaged_bundles
from samfed_monai.config.parse import (
    COMMAND_LINE,
    MISSING,
    WORKFLOWS,
    BundleConfig,
    children,
    is_code,
    is_note,
    join_id,
    lookup,
    references,
    split_id,
    walk,
)
from samfed_monai.config.targets import parameters_of, resolve_target
from samfed_monai.config.variants import packaged_methods
from samfed_monai.core.errors import Problem, Refused, closest, did_you_mean
from samfed_monai.core.io import read_json

_CODE = ("$", "%")


def is_plain(value: Any) -> bool:
    """Text, number, true, false, null, or a list of these."""
    if isinstance(value, list):
        return all(is_plain(item) and not isinstance(item, list) for item in value)
    return value is None or isinstance(value, (str, bool, int, float))


def is_value(value: Any) -> bool:
    """A plain value that is no expression and refers to nothing."""
    return is_plain(value) and not _holds_code(value)


def knobs_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of one file: the plain values on top, down to ``imports`` or to the first object.

    An expression below the last plain value belongs to the computed part; one amid the plain values is a knob with
    code in it. An ``imports`` above all knobs is stepped over, and so are notes (:func:`is_note`).
    """
    knobs: dict[str, Any] = {}
    waiting: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) or (name == "imports" and knobs):
            break
        if name == "imports" or is_note(name) or not is_plain(value):
            continue
        waiting[name] = value
        if not _holds_code(value):
            knobs |= waiting
            waiting = {}
    return knobs


def _holds_code(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return any(map(is_code, texts))


def check_knobs(config: BundleConfig) -> Iterator[Problem]:
    """Code where only values belong: in a file's knobs and a variant's, anywhere on the command line.

    A knob is what stands above a file's ``imports``, and every id on top of a file whose value in the packaged bundles
    is plain, the rarely turned ones below ``imports`` too.
    """
    known = all_knobs(config)
    for layer, pairs in config.layers:
        if layer == config.source:
            suspects = {id_: value for key, item in pairs.items() for id_, value in _texts(key, item)}
        else:
            knobs = {key: item for key, item in pairs.items() if key in known and is_plain(item)}
            suspects = {id_: value for key, item in knobs.items() for id_, value in _texts(key, item)}
        for key, value in suspects.items():
            if value.startswith(_CODE):
                yield Problem(
                    f"{layer} -> {key}",
                    found=repr(value),
                    expected="a plain value",
                    hint=f"a value that begins with {value[0]!r} would run code or read another file",
                )


def shipped_knobs(file: str) -> dict[str, Any]:
    """Knobs of the packaged bundles' own file of that name, with the values they ship with."""
    return {name: value for content in shipped(file) for name, value in knobs_of(content).items()}


def home_of(name: str, config: BundleConfig) -> str:
    """Where an id that a workflow does not have belongs, as a hint; empty where it has it, or no packaged file."""
    files = [config.layers[index][0] for index in config.own]
    homes = [each[-1] for each in WORKFLOWS.values() if each[-1] not in files and name in shipped_plain(each[-1])]
    if not homes or any(name in shipped_plain(file) for file in files):
        return ""
    here = f"{TEACHER_FILE} (here: --{TEACHER}#{name})" if config.federates else TEACHER_FILE
    homes = [here if home == TEACHER_FILE else home for home in homes]
    own = "; the side of SAM's input is size" if (name, *files) == ("image_size", TEACHER_FILE) else ""
    return f"known in {' and '.join(homes)}{own}"


def shipped(file: str) -> list[Any]:
    """What the packaged bundles' own files of that name hold; one that cannot be read is told elsewhere."""
    found: list[Any] = []
    for folder in packaged_bundles().values():
        path = folder / "configs" / file
        with suppress(Refused, OSError):
            found.append(_read(path, path.stat().st_mtime_ns))
    return found


@functools.lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> Any:
    """A packaged file, read once; ``changed`` is its time, for a checkout in which it is edited."""
    return read_json(path)


def all_knobs(config: BundleConfig) -> set[str]:
    """Names of the knobs of every file of a configuration, the rarely turned ones below ``imports`` too."""
    files = [(layer, pairs) for layer, pairs in config.layers if layer != config.source]
    return {name for layer, pairs in files for name in (*knobs_of(pairs), *shipped_plain(layer))} | OPTIONAL


def shipped_plain(file: str) -> set[str]:
    """Ids on top of the packaged bundles' own file of that name whose value there is plain, wherever they stand."""
    items = (item for content in shipped(file) for item in content.items())
    return {name for name, value in items if is_value(value) and not is_note(name)} - {"imports"}


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    for parts, item in walk(value, split_id(key)):
        if isinstance(item, str):
            yield join_id(parts), item


COMPONENT_KEYS = frozenset({"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"})
"""Keys of a component that MONAI reads itself; they are no arguments."""

MONAI_IDS = frozenset({"imports", "initialize", "run", "finalize"})
"""Ids on top of a file that MONAI's own command reads."""

TEACHER, TEACHER_FILE = "teacher", WORKFLOWS["teacher"][-1]
SITES = "sites"
GROUPS = frozenset({TEACHER, SITES})
"""Groups of ``federate.json``: ids of ``teacher.json``, and for a site, those of ``train.json``."""

OPTIONAL = frozenset(
    {"mixed_networks", "personal", "server_network", "sharing", "statistics", "strategy", "warm_start"}
)
"""Ids on top of ``train.json`` that a federation reads where they are there; the file need not spell them out."""

FEDERATION_ALONE = frozenset({"score", "self_training"})
"""Ids on top of ``teacher.json`` that a federation reads and ``samfed teach`` does not."""

USE_OF_TEACHER = frozenset(
    {"base", "adapt", "checkpoint", "size", "views", "bf16", "peak"}
    | {"refine", "refine_with", "refine_size", "refine_least_iou", "refine_least_agreement"}
)
"""Ids on top of ``teacher.json`` that say how an adapter that is there is used."""

TRAINING_READS = (
    OPTIONAL
    | {"train", "unlabelled", "validate", "test", "network_def", "network_name", "encoder_weights"}
    | {"image_size", "batch_size", "classes", "limit", "oracle", "teacher_adapt"}
)
"""Ids on top of ``train.json`` that a federation asks for by their names."""

TEACHER_READS = FEDERATION_ALONE | USE_OF_TEACHER | {"fit", "public_limit"}
"""Ids on top of ``teacher.json`` that a federation asks for by their names."""

OF_VARIANTS = frozenset({"mixed_networks", "server_network", "sharing", "statistics"})
"""Of these, those that only some variants read, which declare them; elsewhere the command line may not set them."""

GIVEN = frozenset(
    {
        *("bundle_root", "datalist", "data_root", "output_dir", "seed", "site", "store_dir", "teacher_sha256"),
        *("epochs", "val_interval"),  # a round is one epoch, and every round is validated
    }
)
"""Ids of ``train.json`` that a federated job sets for every site."""

TEACHER_GIVEN = frozenset({"bundle_root", "datalist", "data_root", "output", "adapt"})
"""The same of ``teacher.json``, whatever ``teacher`` says; ``adapt`` is ``teacher_adapt`` of ``train.json``."""

_MOST_NAMES = 12  # in a message that has no better guess

MEANS_THE_SAME = 0.8
"""difflib's ratio above which two knobs of one file are taken for one knob and its misspelling."""


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
            holder = lookup(below, parts[:-1])
            target = pairs.get(join_id([*parts[:-1], "_target_"]))
            if isinstance(target, str) and isinstance(holder, dict) and "_target_" in holder:
                holder = {**holder, "_target_": target}  # another component stands there from here on
                if lost(holder, parts[-1:], value, imports=imports is None or layer in imports) is None:
                    continue
            hint = lost(below, parts, value, imports=imports is None or layer in imports)
            if hint is not None:
                hint = _declared_by(parts[0]) or home_of(parts[0], config) or _of_the_teacher(config, parts) or hint
                if parts[0] not in below and len(parts) > 1 and lookup(below, parts[1:]) is not MISSING:
                    hint = f"did you mean {join_id(parts[1:])!r}?"  # a group that there is not
                expected = "an id that this workflow has"
                yield Problem(f"{layer} -> {join_id(parts)}", found="an unknown id", expected=expected, hint=hint)


def _of_the_teacher(config: BundleConfig, parts: Sequence[str]) -> str:
    """The id of the teacher's fit that is meant on the command line of a federation."""
    if not config.federates:
        return ""
    if any(lookup(each, parts) is not MISSING for each in shipped(TEACHER_FILE)):
        return f"known in {TEACHER_FILE} (here: --{TEACHER}#{join_id(parts)})"
    others = {} if len(parts) > 1 else {knob: f"{TEACHER}#{knob}" for knob in shipped_plain(TEACHER_FILE)}
    meant = closest(parts[0], others | {name: name for name in config.content})
    return f"did you mean {others[meant]!r}?" if meant in others and meant not in config.content else ""


def _may_be_new(config: BundleConfig, layer: str, name: str) -> bool:
    """Whether something reads an id on top that is in no layer below: the federation, or what a variant adds."""
    if layer == config.source:
        return config.layers[0][0] == "train.json" and name in OPTIONAL - OF_VARIANTS
    texts = (value for _, value in walk(config.content) if isinstance(value, str))
    return name in OPTIONAL or any(target[0] == name for text in texts for target in references(text))


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
        value: what is to stand there.
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
        guess = difflib.get_close_matches(part, sorted(names), n=1)
        if guess:
            return f"did you mean {join_id([*parts[:depth], guess[0], *parts[depth + 1 :]])!r}?"
        shown = sorted(names)[:_MOST_NAMES]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        return f"known here: {', '.join(shown) or 'nothing'}{more}"
    return None


def arguments_of(component: dict[str, Any]) -> tuple[set[str], bool]:
    """Names of a component's arguments, and whether it takes any other, or cannot be asked."""
    try:
        named, anything = parameters_of(resolve_target(component["_target_"], ""))
    except Refused:  # told where the component itself is checked
        return set(), True
    return set(named), anything


def check_references(config: BundleConfig) -> Iterator[Problem]:
    """``@id`` that leads nowhere, and ``$`` expressions that are not Python.

    A knob that is gone is told once, however many components read it.
    """
    gone: dict[tuple[str, str], list[str]] = {}
    read: set[str] = set()
    for parts, value in walk(config.content):
        if not isinstance(value, str) or parts[:1] == ("_meta_",):
            continue
        for target in references(value):
            read.add(target[0])
            if target[0] != "_meta_" and lookup(config.content, target) is MISSING:
                home = _home(config, target[0]) if len(target) == 1 else None
                if home is not None:
                    gone.setdefault((home, target[0]), []).append(config.where(parts))
                    continue
                yield Problem(
                    config.where(parts),
                    found=f"@{join_id(target)}, which does not exist",
                    expected="a reference to an id of this workflow",
                    hint=did_you_mean(target[0], config.content)
                    if len(target) == 1
                    else _lost_reference(config, target),
                )
        if value.startswith("$") and not _is_python(value[1:]):
            yield Problem(config.where(parts), found=repr(value), expected="a Python expression after '$'")
    for (file, name), places in gone.items():
        known, own = shipped_plain(file), next(pairs for layer, pairs in config.layers if layer == file)
        known |= read | MONAI_IDS
        unread = [repr(key) for key, value in own.items() if is_value(value) and not is_note(key) and key not in known]
        renamed = f"; nothing reads {' or '.join(unread)}, which may be its new name" if unread else ""
        expected = f"this knob, which {places[0]} reads{' and others do' if len(places) > 1 else ''}"
        yield Problem(f"{file} -> {name}", found="none", expected=expected, hint=f"add it again{renamed}")


def _home(config: BundleConfig, name: str) -> str | None:
    """The file of a configuration whose packaged form has a knob; ``None`` where that of none has it."""
    return next((layer for layer, _ in config.layers if layer != config.source and name in shipped_plain(layer)), None)


def _lost_reference(config: BundleConfig, target: Sequence[str]) -> str:
    return lost(config.content, target, None) or ""


def _is_python(text: str) -> bool:
    try:
        ast.parse(text.replace("@", "").replace("#", "_").replace("::", "_"))
    except SyntaxError:
        return False
    return True


def check_unread_knobs(config: BundleConfig, runs: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """Values on top of a file that nothing refers to, where they are misspelt or belong to another file.

    Any other in the first file may be there for another program. A file that is on another may set that one's ids as
    far as what it runs reads them, or where nothing does: a network of one's own has no use for the bundle's options.

    Args:
        config: the layers.
        runs: what the workflow reads, see :func:`samfed_monai.config.reads.runs_of`.
    """
    read = {target[0] for _, value in walk(config.content) if isinstance(value, str) for target in references(value)}
    files = [config.layers[index] for index in config.own]
    known = read.union(*(shipped_plain(layer) for layer, _ in files))
    bottom, below = files[0]
    for layer, pairs in files:
        for name in (name for name, value in pairs.items() if is_value(value)):
            above = pairs is not below and not any(name in each for each in runs)
            if name not in known:
                meant = (read & config.content.keys()) | (shipped_plain(layer) - pairs.keys())
                close = closest(name, meant, cutoff=MEANS_THE_SAME)
                hint = home_of(name, config) or (f"did you mean {close!r}?" if close else "")
            else:
                hint = f"delete it: it counts in {bottom}" if above and name in below.keys() & read else ""
            if hint:
                yield Problem(f"{layer} -> {name}", found="a key that nothing reads", expected="a known key", hint=hint)
        for name in pairs.keys() - known if pairs is not below else ():
            inside = pairs[name]
            if isinstance(inside, Mapping) and below.keys() & {split_id(key)[0] for key in inside}:
                hint = f"write its ids on top of the file: {', '.join(inside)}"
                yield Problem(f"{layer} -> {name}", found="a key that nothing reads", expected="a known key", hint=hint)
