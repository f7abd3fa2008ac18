"""The whole check of a bundle: every problem of every file at once, before a single component is built.

A ``logging.conf`` that comes with a bundle, or from a server, is the packaged one: Python's ``fileConfig`` evaluates
some of its fields, and a handler can open files and sockets.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from samfed_monai.config.bundles import packaged_bundles
from samfed_monai.config.components import check_components, check_options, check_replaced_kinds
from samfed_monai.config.entry_points import not_installed
from samfed_monai.config.ids import (
    check_code,
    check_override_ids,
    check_reading,
    runs_of,
    unread,
    unread_in_groups,
    unread_without_teacher,
)
from samfed_monai.config.layers import groups_of, layered, training_layers
from samfed_monai.config.options import MONAI_IDS, SITES, TEACHER, shipped_options
from samfed_monai.config.parse import (
    COMMAND_LINE,
    FEDERATE,
    MISSING,
    WORKFLOWS,
    BundleConfig,
    flat,
    is_code,
    split_id,
    workflow_files,
)
from samfed_monai.config.variants import find_variant, methods, read_method
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import read_json, sha256_file

WEIGHT_OPTIONS = ("adapter", "checkpoint", "encoder_weights", "initial_weights", "model", "weights")
"""Options that hold the path of a weights file or null; ``<option>_sha256`` beside one, if not null, is its hash.

``encoder_weights`` may hold a word (``pretrained``, ``teacher``) or a name that ``samfed weights`` knows instead."""

FOLDER_OPTIONS = ("data_root", "dataset_dir")
"""Options that hold the path of an existing folder or null."""


def check_files(config: BundleConfig, bundle_root: Path, *, ready: bool = True) -> Iterator[Problem]:
    """Weights and folders that do not exist, files whose hash differs, data lists that changed.

    Args:
        config: the layers.
        bundle_root: folder of the bundle, whose ``models/`` may hold SAM's weights.
        ready: ``False`` takes values that are those of the packaged bundle for placeholders.
    """
    content = dict(config.content)
    for layer, _ in config.layers:
        for name, value in shipped_options(layer).items():
            of_teacher = config.federates and name == "encoder_weights"  # the teacher that the federation fits has them
            if (of_teacher or not ready) and content.get(name, MISSING) == value:
                del content[name]
    for name in WEIGHT_OPTIONS:
        path = _given(content, name)
        if name == "encoder_weights" and path is not None:
            try:
                path = _start(content, str(path))
            except Refused as refused:
                yield from refused.problems
                continue
        if path is not None and not path.is_file():
            hint = "check the path, or make it with `samfed teach`" if name == "adapter" else "check the path"
            yield Problem(config.where((name,)), found=f"no file {str(path)!r}", expected="a weights file", hint=hint)
        elif path is not None:
            yield from _hash(config, name, path)
    for name in FOLDER_OPTIONS:
        path = _given(content, name)
        if path is not None and not path.is_dir():
            where = config.where((name,))
            yield Problem(where, found=f"no folder {str(path)!r}", expected="a folder", hint="check the path")
    datalist = _given(content, "datalist")
    if datalist is not None and not datalist.is_file():
        found, hint = f"no file {str(datalist)!r}", "check the path, or make one with `samfed prepare`"
        yield Problem(config.where(("datalist",)), found=found, expected="a data list", hint=hint)
    elif datalist is not None:
        yield from _datalist(datalist)
    if ready:
        yield from check_base_weights(content, bundle_root)


_IMPORT = re.compile(r"\$(?:import|from) +([\w.]+)(?: +import +(\w+))?(?: +as +\w+)?\s*")


def check_imports(config: BundleConfig, *, ready: bool) -> Iterator[Problem]:
    """Modules of ``imports`` that are not there or fail: MONAI goes on without them, whatever they would add.

    Args:
        config: with a list ``imports``.
        ready: whether the workflow is about to run, so that they are imported, too. ``False`` looks for their packages
            and runs nothing of theirs.
    """
    listed = config.content.get("imports")
    for index, text in enumerate(listed if isinstance(listed, list) else []):
        if not (isinstance(text, str) and text.startswith(("$import ", "$from "))):
            continue
        place, statement = config.where(("imports", str(index))), _IMPORT.fullmatch(text)
        if statement is None:
            hint = "MONAI takes the first alone: give each a line of its own"
            yield Problem(place, repr(text), "one import", hint)
            continue
        module, name = statement.groups()
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            hint = not_installed(module) or "correct its name, or install the package that has it"
            yield Problem(place, f"{module}, which it does not", "a module that Python finds", hint)
        elif ready:
            try:
                imported = importlib.import_module(module)
                found = f"{module}, which has no {name!r}" if name and not hasattr(imported, name) else ""
            except Exception as error:  # of another package: its import may raise anything
                found = f"{module}, which ends in {type(error).__name__}: {error}"
            if found:
                hint = "correct it: MONAI would go on without it"
                yield Problem(place, found, "a module that can be imported", hint)


def _given(content: Mapping[str, Any], name: str) -> Path | None:
    value = content.get(name)
    if not isinstance(value, str) or not value or is_code(value):
        return None
    return Path(value).expanduser()


def _start(content: Mapping[str, Any], weights: str) -> Path | None:
    from samfed_monai.networks import find_checkpoint, named, starts_from

    begun = starts_from(str(content.get("network_name")), weights)
    if not begun:
        return None
    return find_checkpoint(str(begun)) if named(str(begun)) else Path(begun)


def _hash(config: BundleConfig, name: str, path: Path) -> Iterator[Problem]:
    declared = config.content.get(f"{name}_sha256")
    if not isinstance(declared, str) or is_code(declared):
        return
    found = sha256_file(path)
    if found != declared.strip().lower():
        yield Problem(
            config.where((f"{name}_sha256",)),
            found=f"{found} in {str(path)!r}",
            expected=f"SHA-256 {declared}",
            hint="it is another file, or a damaged one: fetch it again, or correct the hash if you trust the file",
        )


def _datalist(path: Path) -> Iterator[Problem]:
    from samfed_monai.data import DataList

    try:
        DataList.load(path)
    except Refused as refused:
        yield from refused.problems


def check_classes(config: BundleConfig, bundle_root: Path, variant: Any, place: str) -> Iterator[Problem]:
    """Several classes in a method that knows one alone.

    Args:
        config: merged ``train.json`` with the variant.
        bundle_root: folder of the bundle.
        variant: name of the variant; ``None`` is the bundle as it is.
        place: where the variant is named, for the message.
    """
    from samfed_monai.data.classes import several

    if variant is None or not several(config.content.get("classes")):
        return
    if read_method(find_variant(bundle_root, variant), variant).classes != "several":
        able = sorted(method.name for method in methods().values() if method.classes == "several")
        expected = f"one of {able}, which learn {len(config.content['classes'])} classes"
        yield Problem(place, found=repr(variant), expected=expected, hint="or make a list of one class")


def check_base_weights(content: Mapping[str, Any], bundle_root: Path) -> Iterator[Problem]:
    """SAM's checkpoint, which a teacher's configuration names (``base``) unless it gives a path (``checkpoint``)."""
    base = content.get("base")
    if not isinstance(base, str) or base.startswith(("$", "@")) or _given(content, "checkpoint") is not None:
        return
    from samfed_monai.networks import find_checkpoint

    try:
        find_checkpoint(base, bundle_root)
    except Refused as refused:
        yield from refused.problems


def check_logging(bundle_root: Path) -> Iterator[Problem]:
    """Logging configurations of a bundle other than that of the packaged ones, which writes to the console alone."""
    known = {(folder / "configs" / "logging.conf").read_bytes() for folder in packaged_bundles().values()}
    for path in sorted((bundle_root / "configs").glob("logging*")):
        if path.is_file() and path.read_bytes() not in known:
            expected = "that of the packaged bundles: a bundle logs to the console and nowhere else"
            hint = "delete it, and start the run with --logging_file and a file of your own"
            yield Problem(path.name, "another logging configuration", expected, hint)


def check_bundle(
    bundle_root: str | Path,
    workflow: str,
    *,
    variant: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    files: Sequence[Path] | None = None,
    ready: bool = True,
    reads: Set[str] = MONAI_IDS,
    asked: Collection[str] | None = None,
) -> list[Problem]:
    """Every problem of one workflow of a bundle; nothing of the bundle is evaluated or instantiated.

    It does not look at images (see :func:`samfed_monai.data.check_datalist`) and does not judge whether values are
    wise, only whether they are known, of the right kind, and lead somewhere.

    Args:
        bundle_root: folder that holds ``configs/``.
        workflow: ``train``, ``teacher``, ``federate``, ``evaluate`` or ``inference``.
        variant: name of a variant (see :func:`samfed_monai.config.known_variants`); ``None`` is the bundle as it is.
        overrides: ids and values of the command line.
        files: config files to check instead of the workflow's own.
        ready: whether the workflow is about to run, so that all it names on disk must be there. ``False`` only looks
            at paths and hashes that were changed from what the packaged bundle ships.
        reads: ids that the command asks for by name; an override that these do not lead to is refused.
        asked: ids of ``overrides`` that the user gave; ``None``: all of them.
    """
    root = Path(bundle_root)
    overrides = {**(overrides or {}), **({"variant": variant} if workflow == "federate" and variant else {})}
    try:
        layers, base = layered(root, workflow, overrides, variant=variant, files=files)
    except Refused as refused:
        said = COMMAND_LINE if "variant" in overrides else FEDERATE
        return [
            replace(each, where=f"{said} -> variant") if workflow == "federate" and each.where == "variant" else each
            for each in refused.problems
        ]
    config = BundleConfig(layers, overrides, base=base)
    problems = [*check_logging(root), *_problems(config, root, ready)]
    metadata = root / "configs" / "metadata.json"  # which MONAI reads with every workflow
    if metadata.exists():
        try:
            read_json(metadata, byte_order_mark=False)
        except Refused as refused:
            problems += refused.problems
    if config.problems:
        return list(dict.fromkeys(problems))
    reported = {problem.where for problem in problems}
    problems += [problem for problem in unread(config, reads, asked) if problem.where not in reported]
    if workflow == "train":
        problems += check_classes(config, root, variant, "variant")
    if config.federates:
        problems += check_classes(config, root, config.content.get("variant"), config.where(("variant",)))
        problems += _inside_a_federation(config, root, ready)
    return list(dict.fromkeys(problems))


def _problems(config: BundleConfig, root: Path, ready: bool, *, imports: bool | None = None) -> list[Problem]:
    """Of one workflow; ``imports`` says whether its modules are imported, by default where it is ready."""
    if config.problems:  # the rest would only guess at what the unreadable file says
        return config.problems
    judged, problems = set[tuple[str, ...]](), list[Problem]()
    for check in (
        check_override_ids(config),
        check_code(config),
        check_reading(config, runs_of(config)),
        check_imports(config, ready=ready if imports is None else imports),
        check_components(config, judged),
        check_replaced_kinds(config, judged),
        check_options(config),
        check_files(config, root, ready=ready),
    ):
        for problem in check:
            if all(problem.where != other.where for other in problems):  # one place is reported once
                problems.append(_typed(problem))
    return problems


def _typed(problem: Problem) -> Problem:
    """A problem of the command line with a list to write as one types it."""
    option = problem.where.removeprefix(f"{COMMAND_LINE} -> ")
    if option == problem.where or not problem.hint.startswith("write ["):
        return problem
    return replace(problem, hint=f"write --{option} '{problem.hint.removeprefix('write ')}'")


def grouped_configs(config: BundleConfig, bundle_root: Path) -> dict[str, BundleConfig]:
    """What a federation makes of its groups: the sites' training with one site's own values, and ``teacher.json``.

    Args:
        config: the layers of a federation.
        bundle_root: folder of the bundle.

    Returns:
        By the group whose values are the topmost layer, ``teacher`` or ``sites#<site>``; without a teacher where the
        bundle has no such file, and without sites whose choices are no object.
    """
    groups, configs = groups_of(config), dict[str, BundleConfig]()
    files = workflow_files(bundle_root, "teacher")
    if all(path.is_file() for path in files):
        plain = {name: value for name, value in flat(groups[TEACHER]).items() if not is_code(value)}
        configs[TEACHER] = BundleConfig(files, plain, f"{FEDERATE} -> {TEACHER}")
    for site, choices in groups[SITES].items():
        if isinstance(choices, Mapping):  # "network" is "network_name" there
            pairs = {("network_name" if key == "network" else key): value for key, value in choices.items()}
            source = f"{FEDERATE} -> {SITES}#{site}"
            layers = [*training_layers(config), (source, flat(pairs))]
            configs[f"{SITES}#{site}"] = BundleConfig.of_layers(layers, source)
    return configs


def _inside_a_federation(config: BundleConfig, root: Path, ready: bool) -> list[Problem]:
    """Problems of a federation's groups; and SAM's weights, if there is a teacher."""
    parts = grouped_configs(config, root)
    problems = [
        _where_said(config, group, part, problem)
        for group, part in parts.items()
        for problem in _problems(part, root, ready=False, imports=ready)
    ]
    sites = config.content.get(SITES)
    for site, choices in sites.items() if isinstance(sites, dict) else ():
        if not isinstance(choices, dict):
            expected = 'an object, for instance {"network": "basic_unet"}'
            problems.append(Problem(f"{FEDERATE} -> {SITES}#{site}", found=type(choices).__name__, expected=expected))
    reported = {problem.where for problem in problems}
    trunk = _has_teacher(config, parts)
    useless = [*unread_in_groups(config, parts, teacher=trunk), *unread_without_teacher(config, trunk=trunk)]
    problems += [problem for problem in useless if problem.where not in reported]
    if ready and config.content.get("teacher_adapt", "off") != "off" and TEACHER in parts:
        problems += check_base_weights(parts[TEACHER].content, root)
    return problems


def _has_teacher(config: BundleConfig, parts: Mapping[str, BundleConfig]) -> bool:
    """Whether a run has a teacher, if only for its trunk, which networks start from."""
    from samfed_monai.networks.weights import TEACHER as OF_TEACHER
    from samfed_monai.networks.weights import takes_teacher

    if config.content.get("teacher_adapt") != "off":
        return True
    contents = [config.content, *(part.content for part in parts.values())]
    names = [content.get(name) for content in contents for name in ("network_name", "server_network")]
    names += config.content.get("mixed_networks") or ()
    return config.content.get("encoder_weights") == OF_TEACHER and any(takes_teacher(str(name)) for name in names)


def _where_said(config: BundleConfig, group: str, part: BundleConfig, problem: Problem) -> Problem:
    """A problem of a group's values with the place in ``federate.json``, or the option, that says them."""
    before = f"{part.source} -> "
    if not problem.where.startswith(before):
        return problem
    name = problem.where.removeprefix(before)
    spelt = "network" if name == "network_name" and group != TEACHER else name
    return replace(problem, where=config.where((*split_id(group), *split_id(spelt))))


def workflows_of(bundle_root: str | Path) -> list[str]:
    """Workflows whose files a bundle has, in the order of :data:`WORKFLOWS`."""
    folder = Path(bundle_root) / "configs"
    return [name for name, files in WORKFLOWS.items() if (folder / files[-1]).is_file()]
