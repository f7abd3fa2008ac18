"""Checks of ids: unknown overrides, broken references, keys that nothing reads, and code in place of values."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from typing import Any

from samfed_monai.config.options import (
    FEDERATION_ONLY,
    GROUPS,
    JOB_IDS,
    MONAI_IDS,
    OPTIONAL,
    TEACHER,
    TEACHER_FILE,
    USE_OF_TEACHER,
    all_options,
    is_plain,
    is_value,
    shipped,
    shipped_plain,
)
from samfed_monai.config.parse import (
    COMMAND_LINE,
    DISABLED,
    MISSING,
    SITES,
    WORKFLOWS,
    BundleConfig,
    children,
    follow,
    is_disabled,
    is_note,
    join_id,
    lookup,
    reached,
    references,
    resolve,
    split_id,
    walk,
)
from samfed_monai.config.targets import CATALOGUE, COMPONENT_KEYS, parameters_of, resolve_target
from samfed_monai.config.variants import packaged_methods
from samfed_monai.core.errors import Problem, Refused, closest, did_you_mean
from samfed_monai.core.io import read_json
from samfed_monai.core.text import clipped

FITTED_BY = {
    **dict.fromkeys(("rank", "lora_learning_rate"), ("lora",)),
    "cached_views": ("decoder",),
    **dict.fromkeys(("epochs", "learning_rate", "batch_size"), ("lora", "decoder")),
}
"""Top-level ids of ``teacher.json`` that are used only with some values of ``adapt``, and these values."""

USED_WITH: dict[str, tuple[Sequence[str], Callable[[Any], bool]]] = {
    "evaluate_limit": (["evaluate_on"], bool),
    "fraction": (["schedule", "label_schedule"], lambda name: name != "constant"),
    "passes": (["steps"], lambda steps: steps is None),
    "store": (["masks_for"], lambda guide: not is_disabled(guide)),
    "teacher_sha256": (["store"], bool),
    "warm_start_held_out": (["warm_start_steps"], bool),
}
"""Arguments that are used only with some values of the arguments beside them, of any component, and the test of such a
value."""

TRAINING_READS = (
    OPTIONAL
    | {"train", "unlabelled", "validate", "test", "network_def", "network_name", "encoder_weights"}
    | {"image_size", "batch_size", "classes", "limit", "oracle", "teacher_adapt"}
)
"""Top-level ids of ``train.json`` that a federation reads by name."""

TEACHER_READS = FEDERATION_ONLY | USE_OF_TEACHER | {"fit", "public_limit", "start_from"}
"""Top-level ids of ``teacher.json`` that a federation reads by name."""

VARIANT_IDS = frozenset({"mixed_networks", "server_network", "client_algorithm", "statistics"})
"""Ids of :data:`OPTIONAL` that only variants that declare them read; for others the command line may not set them."""

TEACHER_JOB_IDS = frozenset({"bundle_root", "datalist", "data_root", "output", "adapt"})
"""Ids of ``teacher.json`` that a federation always sets; ``adapt`` is ``teacher_adapt`` of ``train.json``."""

_CODE = ("$", "%")
_MOST_NAMES, _MOST_MEANT = 12, 3  # listed in a message without a better hint; ids with an argument of that name
# difflib ratios of a misspelt key that is missing, and of one that is present as well
_SIMILARITY, _HIGH_SIMILARITY = 0.7, 0.8
UNREAD = "leave it out: nothing in this run reads it"
_SET_HINT = "leave it out: the federation sets it"


def check_code(config: BundleConfig) -> Iterator[Problem]:
    """Code where only values are allowed: in options of files and variants, and on the command line.

    Options are the ids above a file's ``imports``, and all top-level ids whose value in the packaged bundles is plain,
    including rarely used ones below ``imports``.
    """
    known = all_options(config)
    for index, (_, pairs) in enumerate(config.layers):
        for key, item in pairs.items():
            if not (config.is_given(index) or (key in known and is_plain(item))):
                continue
            for parts, value in walk(item, split_id(key)):
                if isinstance(value, str) and value.startswith(_CODE):
                    hint = f"a value that starts with {value[0]!r} would run code or read another file"
                    yield Problem(config.place(index, parts), repr(value), "a plain value", hint)


def check_override_ids(config: BundleConfig, *, lazy: bool = False) -> Iterator[Problem]:
    """Ids of a variant or the command line that no lower layer defines (MONAI would ignore them).

    Args:
        config: the layers.
        lazy: imports no components to check arguments that a file sets and no lower layer has; these are accepted.
    """
    for index in range(1, len(config.layers)):  # the first file defines its ids
        for key, value in config.layers[index][1].items():
            parts = split_id(key)
            hint = None if _may_be_new(config, index, parts) else _override_hint(config, index, parts, value, lazy)
            if hint is not None:
                yield UnknownId(config.place(index, parts), "an unknown id", "an id of this workflow", hint)


def _may_be_new(config: BundleConfig, layer: int, parts: Sequence[str]) -> bool:
    """Whether an id that no lower layer has is read or ignored, or is checked elsewhere."""
    name = parts[0]
    if is_note(name):
        return True
    if len(parts) > 1:  # ids of another workflow are checked there
        return config.federates and name in GROUPS and config.layers[layer][0] == COMMAND_LINE
    if layer in config.own_layers:  # a workflow's files define their ids
        return True
    if config.is_given(layer):
        return config.layers[0][0] == "train.json" and name in OPTIONAL - VARIANT_IDS
    return name in OPTIONAL or any(target[0] == name for target, _ in _references(config.content))


def _override_hint(config: BundleConfig, layer: int, parts: Sequence[str], value: Any, lazy: bool) -> str | None:
    """Returns a hint for an id of a layer that no lower layer has, or ``None`` if it exists or may be added."""
    below, accept_new = config.below(layer), lazy and not config.is_given(layer)
    parent, target = lookup(below, parts[:-1]), config.layers[layer][1].get(join_id([*parts[:-1], "_target_"]))
    if isinstance(target, str) and isinstance(parent, dict) and "_target_" in parent:
        parent = {**parent, "_target_": target}  # the layer replaces the component
        if unknown_hint(parent, parts[-1:], value, lazy=accept_new) is None:
            return None
    hint = unknown_hint(below, parts, value, lazy=accept_new)
    if hint is None:
        return None
    if parts[0] not in below and len(parts) > 1 and lookup(below, parts[1:]) is not MISSING:
        return f"did you mean {join_id(parts[1:])!r}?"  # an unknown group
    return _variants_hint(parts[0]) or files_hint(parts, config) or _teacher_hint(config, parts) or hint


def _variants_hint(name: str) -> str:
    """Returns a hint with the packaged variants that read an id of :data:`VARIANT_IDS`; empty for any other id."""
    files = packaged_methods().items() if name in VARIANT_IDS else ()
    variants = sorted(variant for variant, path in files if read_json(path).get(name) is not None)
    return f"read only by these variants and variants based on them: {', '.join(variants)}" if variants else ""


def files_hint(parts: Sequence[str], config: BundleConfig) -> str:
    """Returns a hint with the files that an id belongs to; empty if this workflow or no packaged file has it."""
    own = {config.layers[index][0] for index in config.own_layers}
    matching = [
        files[-1]
        for files in WORKFLOWS.values()
        if any(lookup(content, parts) is not MISSING for content in shipped(files[-1]))
    ]
    if not own.isdisjoint(matching):
        return ""
    command_line = f" (here: --{TEACHER}#{join_id(parts)})" if config.federates else ""
    names = " and ".join(f"{file}{command_line if file == TEACHER_FILE else ''}" for file in matching)
    return f"this id belongs to {names}" if names else ""


def _teacher_hint(config: BundleConfig, parts: Sequence[str]) -> str:
    """Returns a hint with the option of the teacher's fit that an unknown option resembles; empty if there is none."""
    others = shipped_plain(TEACHER_FILE) - config.content.keys() if config.federates and len(parts) == 1 else set()
    meant = closest(parts[0], others | config.content.keys())
    return f"did you mean '{TEACHER}#{meant}'?" if meant in others else ""


def unknown_hint(below: dict[str, Any], parts: Sequence[str], value: Any, *, lazy: bool = False) -> str | None:
    """Returns a hint for an id that does not exist, or ``None`` if it exists or may be added.

    Args:
        below: a merged configuration.
        parts: the id.
        value: the value to set.
        lazy: accepts new arguments of components without importing these.
    """
    depth = next((depth for depth in range(len(parts)) if lookup(below, parts[: depth + 1]) is MISSING), None)
    if depth is None:
        return None
    parent, part = lookup(below, parts[:depth]), parts[depth]
    names = {name for name, _ in children(parent)}
    if isinstance(parent, dict) and depth == len(parts) - 1:
        if "_target_" in parent:
            arguments = None if lazy else _argument_names(parent["_target_"])
            if arguments is None or part in arguments or part in COMPONENT_KEYS:
                return None
            names |= arguments
        elif depth and isinstance(value, dict) and "_target_" in value:
            return None  # a new component in a group, for instance another loss term
    if suggestion := closest(part, names):
        return f"did you mean {join_id([*parts[:depth], suggestion, *parts[depth + 1 :]])!r}?"
    places = (follow(below, place, found)[0] for place, found in walk(below) if place[-1:] == tuple(parts))
    if deeper := sorted(set(map(join_id, places))):
        return f"did you mean {' or '.join(map(repr, deeper[:_MOST_MEANT]))}?"
    shown = sorted(name for name in names if not is_note(name))
    more = f" and {len(shown) - _MOST_NAMES} more" if len(shown) > _MOST_NAMES else ""
    return f"known here: {', '.join(shown[:_MOST_NAMES]) or 'nothing'}{more}"


def _argument_names(target: Any) -> set[str] | None:
    """Returns the arguments of a component; ``None`` if it takes any, or if its own check refuses it."""
    try:
        parameters, accepts_any = parameters_of(resolve_target(target, ""))
    except Refused:
        return None
    return None if accepts_any else set(parameters)


def _references(content: Any) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yields each referenced id and the place of the reference."""
    for parts, value in walk(content):
        if parts[:1] != ("_meta_",):
            yield from ((target, parts) for target in references(value) if target[0] != "_meta_")


def check_circles(config: BundleConfig) -> Iterator[Problem]:
    """References that lead back to where they are, which MONAI cannot resolve."""
    content = config.content
    targets = dict.fromkeys(target for target, _ in _references(content))
    links = {target: [each for each, _ in _references(lookup(content, target))] for target in targets}
    try:
        TopologicalSorter(links).prepare()
    except CycleError as error:
        found = f"a circle of references, {' -> '.join(map(join_id, error.args[1][::-1]))}"
        yield Problem(config.where(error.args[1][-1]), found, "a reference to a value", "write a value in one of them")


def check_reading(config: BundleConfig) -> Iterator[Problem]:
    """Top-level keys that nothing reads, references to missing ids, expressions that are not Python.

    A misspelt key is reported once, without the references that it breaks.
    """
    content, read, missing_ids = config.content, set[str](), dict[tuple[str, ...], tuple[str, ...]]()
    for target, place in _references(content):
        read.add(target[0])
        if lookup(content, target) is MISSING:
            missing_ids.setdefault(target, place)
    missing = {target[0] for target in missing_ids if target[0] not in content}
    unread = list(_unread_keys(config, read, missing))
    yield from (problem for problem, _ in unread)
    suggestions = {suggestion for _, suggestion in unread}
    for target, place in missing_ids.items():
        if not suggestions.isdisjoint((target[:1], target[:2])):
            continue
        guess = unknown_hint(content, target, None) if len(target) > 1 else did_you_mean(target[0], content)
        files = [file for file, _ in config.layers if target[0] in missing and target[0] in shipped_plain(file)]
        hint = f"add {target[0]} to {files[0]}" if files else guess or ""
        expected = "a reference to an id of this workflow"
        yield Problem(config.where(place), f"@{join_id(target)}, which does not exist", expected, hint)
    for parts, value in walk(content):
        if isinstance(value, str) and value.startswith("$") and not _is_python(value[1:]):
            yield Problem(config.where(parts), repr(value), "a Python expression after '$'")


def _unread_keys(
    config: BundleConfig, read: set[str], missing: set[str]
) -> Iterator[tuple[Problem, tuple[str | None, ...]]]:
    """Yields a problem for each key that nothing reads, with the id that it probably means.

    A later file may set ids of the first if its run reads them. Keys of the packaged bundles are always allowed, since
    a user's own network may not use all of them.
    """
    found, expected = "a key that nothing reads", "a known key"
    for index in config.own_layers if config.group[:1] != (SITES,) else []:  # a site's are checked with the federation
        file, pairs = config.layers[index]
        packaged = {key for content in shipped(file) for key in content}
        has_own_run = index > 0 and "run" in config.content
        allowed = packaged.union(*read_contents(config)) if has_own_run else packaged | read | MONAI_IDS
        for name, value in pairs.items():
            if not is_note(name) and name not in allowed:
                hint, suggestion = _unread_key(config, index, name, read, (missing | packaged) - pairs.keys())
                if hint or has_own_run:
                    yield Problem(f"{file} -> {name}", found, expected, hint or UNREAD), (suggestion,)
            for part, spelling in _misspelt_parts(file, name, value):
                hint = f"did you mean '{name}#{spelling}'?"
                yield Problem(f"{file} -> {name}#{part}", found, expected, hint), (name, spelling)


def _unread_key(
    config: BundleConfig, index: int, name: str, read: set[str], addable: set[str]
) -> tuple[str, str | None]:
    """Returns a hint for an unused top-level key and the id that it probably means; an unknown key of the first file
    without a hint may be for another program."""
    (first_file, first_pairs), (_, pairs) = config.layers[0], config.layers[index]
    if name in read:
        return f"delete it: only {first_file} sets it" if name in first_pairs else UNREAD, None
    if is_value(pairs[name]) and (hint := files_hint((name,), config)):
        return hint, None
    present = read & config.content.keys() if is_value(pairs[name]) else set()
    suggestion = closest(name, addable | present, _SIMILARITY)
    if suggestion is None or (suggestion not in addable and closest(name, [suggestion], _HIGH_SIMILARITY) is None):
        return "", None
    return f"did you mean {suggestion!r}?", suggestion


def _misspelt_parts(file: str, group: str, content: Any) -> Iterator[tuple[str, str]]:
    """Yields misspelt keys in a group that a federation reads by name, each with its probable spelling."""
    if group in TRAINING_READS and isinstance(content, dict) and "_target_" not in content:
        packaged = {key for each in shipped(file) for key in each.get(group, {})}
        for name in content:
            if name not in packaged and (suggestion := closest(name, packaged - content.keys(), _SIMILARITY)):
                yield name, suggestion


def _is_python(text: str) -> bool:
    try:
        ast.parse(text.replace("@", "").replace("#", "_").replace("::", "_"))
    except SyntaxError:
        return False
    return True


SERVER_IDS = frozenset(
    {"mixed_networks", "server_network", "strategy", "teacher_adapt", "warm_start", "encoder_weights", "personal"}
)
"""Top-level ids of ``train.json`` that apply to a whole federation, never to a single site."""


_MASK_IDS = frozenset({"size", "views", "bf16", *FEDERATION_ONLY})
"""Top-level ids of ``teacher.json`` that are used when a trained model predicts the masks."""


class UnknownId(Problem):
    """An id that no lower layer defines."""


class UnreadOption(Problem):
    """An option that a run does not read; other runs of the same command may read it."""


def read_contents(config: BundleConfig, reads: Set[str] = MONAI_IDS, *, teacher: bool = True) -> list[dict[str, Any]]:
    """Returns the parts of a workflow that are read: by MONAI or a command, and by a federation from its groups.

    Args:
        config: the layers, possibly of a group.
        reads: ids that the command reads by name.
        teacher: whether a federation has a teacher.
    """
    if config.group == (TEACHER,):
        run, known = config.federation.content, frozenset(config.content if teacher else ())
        if run.get("teacher_adapt") == "off":  # only the trunk is used; masks are at most made for the fit's record
            known -= {"score"} if config.content.get("evaluate_on") else {"score", "views"}
        elif not teacher and run.get("masks_from") is not None:
            known = _MASK_IDS
        return [{name: value for name, value in _teacher_part(config.content).items() if name in known}]
    content = config.used
    if config.group:
        return [_training_part(content, site=True)]
    runs = [reached(content, reads)]
    return [*runs, _training_part(content)] if config.federates else runs


def _training_part(content: Mapping[str, Any], *, site: bool = False) -> dict[str, Any]:
    """The part of ``train.json`` that a federation, or a site, reads, without the ids that the federation sets."""
    roots = TRAINING_READS - SERVER_IDS if site else TRAINING_READS
    given = JOB_IDS - {"datalist", "data_root"} if site else JOB_IDS
    content = {name: value for name, value in content.items() if name != "standalone"}  # for a site that trains alone
    if site and isinstance(network := content.get("network_def"), Mapping):  # the server sends initial weights
        content["network_def"] = {name: value for name, value in network.items() if name != "weights"}
    return {name: value for name, value in reached(content, roots).items() if name not in given}


def _teacher_part(content: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``teacher.json`` that a federation reads."""
    return {name: value for name, value in reached(content, TEACHER_READS).items() if name not in TEACHER_JOB_IDS}


def is_read(runs: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> bool:
    """Whether a run (:func:`runs_of`) reads an id."""
    return parts[-1] == DISABLED or any(lookup(each, parts) is not MISSING for each in runs)


def unread(
    config: BundleConfig, reads: Set[str], given: Collection[str] | None = None, *, teacher: bool = True
) -> Iterator[Problem]:
    """Options of the command line, or those of a group, that nothing reads.

    Args:
        config: the layers, possibly of a group.
        reads: ids that the command reads by name.
        given: ids that the user gave; ``None``: all overrides.
        teacher: whether a federation has a teacher, even if only its trunk is used, as networks' initial weights.
    """
    if not any(split_id(name)[0] in config.federation.content for name in reads):
        return
    runs, top = read_contents(config, reads, teacher=teacher), len(config.layers) - 1
    federation, federates = config.federation.used, config.federation.federates
    reader = f"a run of the variant {federation.get('variant')!r}" if federates else "this command"
    for key, value in config.layers[top][1].items():
        if given is not None and key not in given:
            continue
        parts = split_id(key)
        expected, hint = f"an option that {reader} reads", _unused_option_hint(config, runs, parts, value, teacher)
        if federates and not config.group:
            expected, hint = _replaced_option(federation, join_id(parts), value, teacher) or (expected, hint)
        if hint:
            yield UnreadOption(config.place(top, parts), clipped(repr(value)), expected, hint)


def _unused_option_hint(
    config: BundleConfig, runs: Sequence[Mapping[str, Any]], parts: Sequence[str], value: Any, teacher: bool
) -> str:
    """Returns a hint for an option that nothing reads, or with a value without effect; empty for other options."""
    in_group = config.federates and parts[0] in GROUPS
    if not is_read(runs, parts[:1] if in_group else parts):
        return _unread_option_hint(config, parts, teacher)
    if join_id(parts) == "oracle" and value is True and not _uses_labels(config.content):
        return "leave it out, or use --variant oracle: nothing in this run learns from these labels"
    if not in_group and value != lookup(config.below(len(config.layers) - 1), parts):
        return _unused_value_hint(config, parts)
    return ""


def _uses_labels(content: Mapping[str, Any]) -> bool:
    """Whether a guide or term may read labels of unlabelled images: if it names them, or is of another package."""
    items = (each for each in walk(reached(content, ("guides", "terms"))) if each[0][:1] in (("guides",), ("terms",)))
    ours = "samfed_monai."
    return any(text == "label" or (parts[-1] == "_target_" and not str(text).startswith(ours)) for parts, text in items)


def _replaced_option(content: Mapping[str, Any], name: str, value: Any, teacher: bool) -> tuple[str, str] | None:
    """Returns the expectation and the hint for an option that a federation replaces; ``None`` for other options."""
    expected = f"that the variant {content.get('variant')!r} reads"
    if name in ("epochs", "val_interval"):
        hint = "set local_steps (steps of a site in each round) or rounds" if name == "epochs" else "leave it out"
        return "no such option: the federation sets it for every site", hint
    mixed, server = (content.get(each) for each in ("mixed_networks", "server_network"))
    if name == "network_name" and mixed and mixed is not MISSING and server:
        hint = f"set --mixed_networks \"['{value}']\""
        hint += "" if server is MISSING else f" and --server_network {value}"
        return f"an id {expected}: mixed_networks sets the networks of the sites", hint
    reason = "uses SAM without an adapter" if content.get("teacher_adapt") == "none" else "has no teacher"
    if name == "adapter" and value is not None and (content.get("teacher_adapt") == "none" or not teacher):
        return f"an option {expected}", f"leave it out: this run {reason}"
    if name == "encoder_weights" and content.get("start_from") is not None:
        return f"an option {expected}", "leave it out: start_from sets all weights of the network"
    if name == "encoder_learning_rate" and value is not None and not _has_pretrained_encoder(content):
        return "null: no network here has an encoder that starts from pretrained weights", "set learning_rate"
    return None


def networks_of(content: Mapping[str, Any]) -> list[str]:
    """Names of all networks that a federation may build, among other texts in its choices for sites."""
    places = {name: content.get(name) for name in ("network_name", "server_network", "mixed_networks", SITES)}
    return [text for _, text in walk(places) if isinstance(text, str)]


def _has_pretrained_encoder(content: Mapping[str, Any]) -> bool:
    """Whether the encoder of a network may start from pretrained weights; a network of your own may."""
    from samfed_monai.networks.weights import starts_from

    weights, target = content.get("encoder_weights"), lookup(content, ("network_def", "_target_"))
    return target != CATALOGUE or any(starts_from(name, weights) is not None for name in networks_of(content))


def _disabling_argument(content: Mapping[str, Any], place: tuple[str, ...]) -> str:
    """Returns the argument beside a place with a value that does not use the place (:data:`USED_WITH`); else empty."""
    related, is_used = USED_WITH.get(place[-1], ((), bool))
    arguments = lookup(content, place[:-1]) if related else {}
    if "_target_" in arguments:
        with suppress(Refused):  # an unknown component, which its own check refuses
            parameters, _ = parameters_of(resolve_target(arguments["_target_"], ""))
            arguments = {name: parameter.default for name, parameter in parameters.items()} | arguments
    values = {name: resolve(content, arguments[name]) for name in related if name in arguments}
    texts = ((name, arguments[name] if isinstance(value, dict) else value) for name, value in values.items())
    shown = (f"{name} {'null' if value is None else value}" for name, value in texts)
    return "" if any(map(is_used, values.values())) else next(shown, "")


def _unused_value_hint(config: BundleConfig, parts: Sequence[str]) -> str:
    """Returns a hint for a value that a value beside it makes useless, or for an option of the teacher's fit if there
    is no fit, or ``adapt`` does not use the option."""
    places = [place for target, place in _references(config.content) if target == tuple(parts)]
    places += [tuple(parts)] if len(parts) > 1 or not places else []  # a top-level id is used where it is referred to
    if all(disabling := [_disabling_argument(config.content, place) for place in places]):
        return f"leave it out: {disabling[0]} does not use it"
    name = parts[0] if config.layers[0][0] == TEACHER_FILE else ""
    federation, of_teacher = config.federation.content, config.group == (TEACHER,)
    adapt = federation.get("teacher_adapt") if of_teacher else config.content.get("adapt")
    source = "SAM" if adapt == "none" else "the given adapter" if federation.get("adapter") is not None else ""
    used = {"base", "checkpoint"} if federation.get("teacher_adapt") == "off" else USE_OF_TEACHER | FEDERATION_ONLY
    if of_teacher and source and name not in used:
        return f"leave it out: this run uses {source} without further training"
    if name == "views" and not of_teacher and config.content.get("evaluate_on") is None:
        return "leave it out: evaluate_on null does not use it"
    adapts = FITTED_BY.get(name, ())
    return f"leave it out: adapt {adapt} does not use it" if adapts and adapt not in (*adapts, "off") else ""


def _unread_option_hint(config: BundleConfig, parts: Sequence[str], teacher: bool) -> str:
    """Returns a hint for an option that nothing reads."""
    name, option, content, file = parts[0], join_id(parts), config.content, config.layers[0][0]
    of_teacher = config.group == (TEACHER,)
    if of_teacher and not teacher:
        student = config.federation.content.get("masks_from") is not None
        return f"leave it out: {'masks_from makes the masks' if student else 'this run has no teacher'}"
    places = (parts[: depth + 1] for depth in range(len(parts)))
    if place := next((place for place in places if is_disabled(lookup(content, place))), None):
        return f"{join_id(place)} is disabled; --{join_id((*config.group, *place))}#{DISABLED} false enables it"
    if of_teacher and name == "adapt":
        return "did you mean --teacher_adapt?"
    if config.group and not of_teacher and name in SERVER_IDS:
        return f"set it for all sites: --{option}"
    if config.group or config.federates:
        return _SET_HINT if name in (TEACHER_JOB_IDS if of_teacher else JOB_IDS) else UNREAD
    if file == TEACHER_FILE and is_read([_teacher_part(content)], parts):
        return f"`samfed federate` reads it: --{TEACHER}#{option}"
    if file == "train.json" and is_read([_training_part(content)], parts):
        return f"`samfed federate` reads it: --{option}"
    return UNREAD
