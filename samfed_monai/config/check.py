"""The complete check of a bundle: all problems of all files at once, before any component is built.

Only the packaged ``logging.conf`` is accepted in a bundle: Python's ``fileConfig`` evaluates some of its fields, and a
handler can open files and sockets.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from samfed_monai.config.bundles import packaged_bundles
from samfed_monai.config.ids import check_circles, check_code, check_override_ids, check_reading, networks_of, unread
from samfed_monai.config.method import read_method
from samfed_monai.config.options import GROUPS, LARGEST, MONAI_IDS, TEACHER, options_in, shipped, training_layers
from samfed_monai.config.parse import (
    COMMAND_LINE,
    DISABLED,
    FEDERATE,
    MISSING,
    SITES,
    SIZES,
    WORKFLOWS,
    BundleConfig,
    children,
    follow,
    is_code,
    is_component,
    is_disabled,
    join_id,
    lookup,
    numbers_at,
    reached,
    split_id,
    walk,
    workflow_files,
)
from samfed_monai.config.targets import COMPONENT_KEYS, Schema, component_schema, like, not_installed, resolve_target
from samfed_monai.config.variants import find_variant, methods
from samfed_monai.core.errors import Problem, Problems, Refused, closest, error_text
from samfed_monai.core.io import read_json, sha256_file
from samfed_monai.core.model_file import CATALOGUE
from samfed_monai.core.text import clipped
from samfed_monai.core.validators import schema_problems

WEIGHT_OPTIONS = ("adapter", "checkpoint", "encoder_weights", "initial_weights", "model", "weights")
"""Options with the path of a weights file or null; ``<option>_sha256``, if present and not null, is the file's hash.

``encoder_weights`` may also be a keyword (``pretrained``, ``teacher``) or a name that ``samfed weights`` knows."""

_Id = tuple[str, ...]
_Schemas = dict[_Id, list[Schema]]

FOLDER_OPTIONS = ("data_root", "dataset_dir")
"""Options with the path of an existing folder or null."""


_MADE_BY = {"adapter": ", or make it with `samfed teach`", "datalist": ", or make one with `samfed prepare`"}


def check_files(config: BundleConfig, bundle_root: Path, *, ready: bool = True) -> Iterator[Problem]:
    """Missing weights and folders, files with another hash, data lists that changed.

    Args:
        config: the layers.
        bundle_root: folder of the bundle; its ``models/`` may contain SAM's weights.
        ready: ``False`` treats values that equal those of a packaged bundle as placeholders.
    """
    content, problems = config.content, Problems()
    packaged = [each for layer, _ in config.layers for each in shipped(layer)]
    for name in (*WEIGHT_OPTIONS, *FOLDER_OPTIONS, "datalist"):
        with problems.collected():
            placeholder = not ready and any(each.get(name) == content.get(name) for each in packaged)
            path, folder = None if placeholder else _option_path(content, name), name in FOLDER_OPTIONS
            if path is None or (name == "model" and not ready and (path / "results.json").is_file()):  # a finished run
                continue
            if not (path.is_dir() if folder else path.is_file()):
                expected = "a folder" if folder else "a data list" if name == "datalist" else "a weights file"
                found = "a folder," if path.is_dir() else f"no {'folder' if folder else 'file'}"
                hint = f"check the path{_MADE_BY.get(name, '')}"
                problems.add(config.where((name,)), f"{found} {str(path)!r}", expected, hint)
            elif name == "datalist":
                from samfed_monai.data import DataList

                DataList.load(path)
            elif not folder:
                problems.extend(_hash_problems(config, name, path))
    yield from problems
    if ready:
        yield from check_base_weights(content, bundle_root)


_IMPORT = re.compile(r"\$(?:import|from) +([\w.]+)(?: +import +(\w+))?(?: +as +\w+)?\s*")


def check_imports(config: BundleConfig, *, ready: bool) -> Iterator[Problem]:
    """Modules in ``imports`` that are missing or fail, which MONAI would silently skip.

    Args:
        config: the layers.
        ready: whether the workflow is about to run, so that the modules are imported. ``False`` only looks for their
            packages and runs no code of theirs.
    """
    listed = config.content.get("imports")
    for index, text in enumerate(listed if isinstance(listed, list) else []):
        place = config.where(("imports", str(index)))
        if not (is_code(text) or isinstance(text, dict)):
            yield Problem(place, repr(text), "an import", "write $import MODULE")
        if not (isinstance(text, str) and text.startswith(("$import ", "$from "))):
            continue
        statement = _IMPORT.fullmatch(text)
        if statement is None:
            hint = "MONAI runs only the first import: write each import as its own list item"
            yield Problem(place, repr(text), "one import", hint)
            continue
        module, name = statement.groups()
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            hint = not_installed(module) or "correct the name, or install the package that provides it"
            yield Problem(place, f"no module {module}", "a module that Python can find", hint)
        elif ready:
            try:
                imported = importlib.import_module(module)
                found = f"{module}, which has no {name!r}" if name and not hasattr(imported, name) else ""
            except Exception as error:  # of another package: its import may raise anything
                found = f"{module}, which fails with {error_text(error)}"
            if found:
                yield Problem(place, found, "a module that can be imported", "correct it: MONAI would skip this import")


def _option_path(content: Mapping[str, Any], name: str) -> Path | None:
    """Returns the path in an option, or the path of the weights that a known name refers to."""
    value = content.get(name)
    if not isinstance(value, str) or not value or is_code(value):
        return None
    if name != "encoder_weights":
        return Path(value).expanduser()
    from samfed_monai.networks import find_checkpoint, known_weights, starts_from

    source = str(starts_from(str(content.get("network_name")), str(Path(value).expanduser())) or "")
    return find_checkpoint(source) if known_weights(source) else Path(source) if source else None


def _hash_problems(config: BundleConfig, name: str, path: Path) -> Iterator[Problem]:
    declared = config.content.get(f"{name}_sha256")
    if not isinstance(declared, str) or is_code(declared):
        return
    found = sha256_file(path)
    if found != declared.strip().lower():
        hint = "the file is damaged or not the expected one: copy it again, or correct the hash if you trust it"
        yield Problem(config.where((f"{name}_sha256",)), f"{found} in {str(path)!r}", f"SHA-256 {declared}", hint)


def check_copies(config: BundleConfig) -> Iterator[Problem]:
    """Sizes in training, and thresholds of masks, that differ from the option that is stored with the model or masks.

    The option of sizes is ``image_size``, a teacher's is ``size``; ``threshold`` is also used in calibration.
    """
    content, copies = config.content, list[tuple[str, _Id, float, str]]()
    name, kind = ("image_size", "Resize") if "image_size" in content else ("size", "Pad")
    for place, side in numbers_at(content, SIZES, ["train", "fit"]) if isinstance(content.get(name), int) else ():
        if kind in str(lookup(content, (*place[:-1], "_target_"))):
            copies.append((name, place, side, "stored with the model"))
    masks = numbers_at(content, ["threshold"], ["postprocessing", "handlers"])
    copies += [("threshold", place, value, "recorded beside the masks") for place, value in masks]
    for option, place, value, where in copies:
        if value != content.get(option, value):
            found, expected = repr(lookup(content, place)), f"{content[option]}, the {option} {where}"
            yield Problem(config.where(place), found, expected, f"write @{option} here, and set {option}")


_NEEDED = {"ModelLoader": {"CheckpointLoader"}, "MaskWriter": {"SaveImage", "SaveImaged"}}
"""Handlers that an inference needs, each with components of MONAI that also load weights or write masks."""


def check_handlers(config: BundleConfig) -> Iterator[Problem]:
    """An inference that would use random weights of the catalogue's network, or write no mask.

    A component of another package may do either, so with one nothing is refused.
    """
    place, handlers = follow(config.content, (), "@evaluator#val_handlers")
    used = walk(reached(config.content, ["evaluator"]))
    targets = {str(value) for parts, value in used if parts[-1:] == ("_target_",)}
    known = all(target.startswith(("samfed_monai.", "monai.", "torch.")) for target in targets)
    for name, others in _NEEDED.items() if known and CATALOGUE in targets and handlers is not MISSING else ():
        if not {target.rpartition(".")[2] for target in targets} & {name, *others}:
            yield Problem(config.where(place), f"no {name}", f"{name} or a handler like it", "keep it there")


def check_record(config: BundleConfig) -> Iterator[Problem]:
    """Arguments that a ``MaskWriter`` records beside the masks, with other values than those of the run."""
    content = config.content
    targets = (each for each in walk(reached(content, ["evaluator"])) if each[0][-1:] == ("_target_",))
    of = {str(target).rpartition(".")[2]: parts[:-1] for parts, target in targets}
    inferer, arguments = follow(content, (), "@evaluator#inferer")
    auto = "auto" if "AutocastInferer" in str(lookup(arguments, ("_target_",))) else False
    done: dict[str, tuple[_Id, Any]] = {"views": ((*inferer, "views"), 1), "amp": ((*inferer, "enabled"), auto)}
    loaded = {"model": (*of["ModelLoader"], "path"), "model_sha256": ("model_sha256",)} if "ModelLoader" in of else {}
    options = {name: (name,) for name in ("image_size", "classes", "runtime")}
    done |= {name: (place, None) for name, place in (options | loaded).items()}

    def value(place: _Id, default: Any) -> tuple[_Id, Any]:
        place, found = follow(content, place, lookup(content, place))
        return place, default if found is MISSING else found

    for name, (source, default) in done.items() if "MaskWriter" in of else ():
        _, used = value(source, default)
        place, recorded = value((*of["MaskWriter"], name), {"views": 1, "amp": False}.get(name, used))
        if recorded != used:
            found, hint = f"{clipped(repr(recorded))} to record beside the masks", "set the option that both refer to"
            yield Problem(config.where(place), found, f"{clipped(repr(used))}, as in the run", hint)


def check_classes(config: BundleConfig, bundle_root: Path, variant: Any, place: str) -> Iterator[Problem]:
    """Several classes with a method that supports only one.

    Args:
        config: merged ``train.json`` with the variant.
        bundle_root: folder of the bundle.
        variant: name of the variant; ``None`` for none.
        place: place of the variant's name, for the message.
    """
    from samfed_monai.data.classes import is_multiclass

    classes = config.content.get("classes")
    if variant is None or not (isinstance(classes, list) and is_multiclass(classes)):  # another type is refused as such
        return
    if (method := read_method(find_variant(bundle_root, variant))).classes != "several":
        suitable = sorted(method.name for method in methods().values() if method.classes == "several")
        expected = f"one of {suitable}, which learn {len(classes)} classes"
        found = f"{variant!r}" + (f", which leaves out {method.left_out.partition(';')[0]}" if method.left_out else "")
        yield Problem(place, found=found, expected=expected, hint="or use a data list with one class")


def check_base_weights(content: Mapping[str, Any], bundle_root: Path) -> Iterator[Problem]:
    """Missing checkpoints of SAM that the teacher or a term names (``base``), unless it has a path (``checkpoint``)."""
    from samfed_monai.networks import find_checkpoint

    terms, problems = content.get("terms"), Problems()
    parts = [content, *(terms.values() if isinstance(terms, dict) else ())]
    for part in (each for each in parts if isinstance(each, Mapping) and each.get("_disabled_") is not True):
        base = part.get("base")
        if isinstance(base, str) and not is_code(base) and _option_path(part, "checkpoint") is None:
            with problems.collected():
                find_checkpoint(base, bundle_root if part is content else None)  # a term knows no bundle
    yield from problems


def check_logging(bundle_root: Path) -> Iterator[Problem]:
    """Logging configurations of a bundle that differ from the packaged one, which only logs to the console."""
    known = {(folder / "configs" / "logging.conf").read_bytes() for folder in packaged_bundles().values()}
    for path in sorted((bundle_root / "configs").glob("logging*")):
        if path.is_file() and path.read_bytes() not in known:
            expected = "the logging.conf of the packaged bundles, which logs only to the console"
            hint = "delete it, and start the run with your own file: --logging_file FILE"
            yield Problem(path.name, "a different logging configuration", expected, hint)


def check_bundle(
    bundle_root: str | Path,
    workflow: str,
    *,
    variant: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    files: Sequence[Path] | None = None,
    ready: bool = True,
    reads: Set[str] = MONAI_IDS,
    given: Collection[str] | None = None,
) -> list[Problem]:
    """Returns all problems of one workflow of a bundle; nothing of the bundle is evaluated or instantiated.

    Images are not checked (see :func:`samfed_monai.data.check_datalist`). Values are checked for known names, types and
    valid references, not for whether they are sensible.

    Args:
        bundle_root: folder that contains ``configs/``.
        workflow: ``train``, ``teacher``, ``federate``, ``evaluate`` or ``inference``.
        variant: name of a variant (see :func:`samfed_monai.config.known_variants`); ``None`` for none.
        overrides: ids and values of the command line.
        files: config files to check instead of the workflow's own.
        ready: whether the workflow is about to run, so that all its files and folders must exist. ``False`` only checks
            paths and hashes that differ from the packaged bundle.
        reads: ids that the command reads by name; an override that none of them refers to is refused.
        given: ids of ``overrides`` that the user gave; ``None``: all of them.
    """
    root, federates = Path(bundle_root), workflow == "federate"
    overrides = {**(overrides or {}), **({"variant": variant} if federates and variant else {})}
    try:
        config = BundleConfig.of_workflow(root, workflow, overrides, variant=variant, files=files)
    except Refused as refused:
        where = f"{COMMAND_LINE if 'variant' in overrides else FEDERATE} -> variant"
        return [replace(p, where=where) if federates and p.where == "variant" else p for p in refused.problems]
    metadata = root / "configs" / "metadata.json"  # MONAI reads it with every workflow
    problems, teacher = Problems(), True
    problems.extend(check_logging(root))
    problems.extend(_problems(config, root, ready=ready, imports=ready))
    with problems.collected():
        if metadata.exists():
            content = read_json(metadata, byte_order_mark=False)
            problems.extend(schema_problems(content, {"type": "object"}, metadata.name))
    if config.problems:
        return list(dict.fromkeys(problems))
    groups = group_configs(config, root) if config.federates else []
    for group in groups:
        problems.extend(_problems(group, root, ready=False, imports=ready))
        if ready and group.group == (TEACHER,) and config.content.get("teacher_adapt", "off") != "off":
            problems.extend(check_base_weights(group.content, root))
    if config.federates:
        teacher = _has_teacher(config)
        problems.extend(check_classes(config, root, config.content.get("variant"), config.where(("variant",))))
        problems.extend(_misplaced_values(config))
    elif workflow == "train":
        problems.extend(check_classes(config, root, variant, "variant"))
    reported = {problem.where for problem in problems if not problem.found.startswith("no file")}
    for group in (each for each in (config, *groups) if not each.problems):
        options = unread(group, reads, given if group is config else None, teacher=teacher)
        problems.extend(problem for problem in options if problem.where not in reported)
    return list(dict.fromkeys(problems))


def _problems(config: BundleConfig, root: Path, *, ready: bool, imports: bool) -> list[Problem]:
    """Problems of one workflow or group; ``imports``: whether its modules are imported."""
    if problems := config.problems or list(check_circles(config)):  # further checks would depend on them
        return problems
    found: dict[str, Problem] = {}
    for problem in itertools.chain(
        check_override_ids(config),
        check_code(config),
        check_reading(config),
        check_imports(config, ready=imports),
        check_components(config),
        check_copies(config),
        check_handlers(config),
        check_record(config),
        check_files(config, root, ready=ready),
    ):
        found.setdefault(problem.where, _with_shell_syntax(problem))  # one place is reported once
    return list(found.values())


def _with_shell_syntax(problem: Problem) -> Problem:
    """Rewrites a hint about a list on the command line as it is typed there."""
    option = problem.where.removeprefix(f"{COMMAND_LINE} -> ")
    if option == problem.where or not problem.hint.startswith("write ["):
        return problem
    return replace(problem, hint=f"write --{option} '{problem.hint.removeprefix('write ')}'")


def group_configs(config: BundleConfig, bundle_root: Path) -> list[BundleConfig]:
    """Configurations of a federation's groups: ``teacher.json``, if the bundle has it, and each site's training."""
    teacher = BundleConfig(workflow_files(bundle_root, TEACHER))
    teacher_configs, site_layers = list[BundleConfig](), training_layers(config)
    if teacher.files[0].is_file():
        unused = {"evaluate_on": None} if "evaluate_on" in teacher.content else {}  # the sites score the teacher
        teacher_configs.append(config.of_group((TEACHER,), [*teacher.layers, (teacher.files[0].name, unused)]))
        teacher_configs[0].problems.extend(teacher.problems)
    return [*teacher_configs, *(config.of_group((SITES, site), site_layers) for site in config.sites)]


def _misplaced_values(config: BundleConfig) -> Iterator[Problem]:
    """Sites whose choices are not an object; values in ``job#train``, which the job takes from top-level ids."""
    place, hint = ("job", "train"), "set the ids of train.json at the top level: learning_rate, not job#train"
    for layer in (each for each in range(len(config.layers)) if config.sets_id(each, place, whole=True)):
        yield Problem(config.place(layer, place), "training values", "none: the ids of train.json set them", hint)
    sites = config.content.get(SITES)
    for site, choices in sites.items() if isinstance(sites, dict) else ():
        if not isinstance(choices, dict):
            expected = 'an object, for instance {"network": "basic_unet"}'
            yield Problem(config.where((SITES, site)), found=type(choices).__name__, expected=expected)


def _has_teacher(config: BundleConfig) -> bool:
    """Whether a run has a teacher, even if only its trunk is used, as the initial weights of networks."""
    from samfed_monai.networks.weights import TEACHER as OF_TEACHER
    from samfed_monai.networks.weights import takes_teacher

    has = config.content.get("teacher_adapt") != "off" and config.content.get("masks_from") is None
    if has or config.content.get("start_from") is not None:
        return has
    return config.content.get("encoder_weights") == OF_TEACHER and any(map(takes_teacher, networks_of(config.used)))


_BOUNDS = frozenset({"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"})


def _option_schema(keywords: Mapping[str, Any]) -> Schema:
    schema = {"maximum": LARGEST} | {key: value for key, value in keywords.items() if key != "description"}
    if "properties" in schema:
        schema["properties"] = {name: _option_schema(inner) for name, inner in schema["properties"].items()}
    return {"type": ["number", "null"], **schema} if _BOUNDS & keywords.keys() else schema


# difflib ratios of a misspelt argument if no other ones are accepted, and if any are
_SIMILARITY, _HIGH_SIMILARITY = 0.6, 0.8


_SPLITS = {
    "train": ("public", "unlabelled", "labelled"),
    "unlabelled": ("unlabelled", "labelled"),
    "validate": ("validation",),
    "test": ("test",),
}
"""Splits that each data set of train.json may use: no model is trained on, or selected by, images that measure it."""


_STEPS = ("transform", "transforms")
"""Arguments with at least one component, without which an image would be only a path."""

_OF_COMPONENTS = {"handlers": True, "guides": True, **dict.fromkeys(("train_handlers", "val_handlers", *_STEPS), False)}
"""Arguments with several components, and whether they may be nested, or null where one is disabled."""


def check_components(config: BundleConfig) -> Iterator[Problem]:
    """Unknown or forbidden components, unexpected and missing arguments, values of a wrong type or range.

    A value must match the annotation of the argument that receives it, or else the type of the value that it replaces,
    and the description of a documented option. All of this is one schema.
    """
    values, schemas = dict[_Id, Any](), _Schemas()
    for parts, value in walk(config.content):
        if is_component(value):
            yield from _component_problems(config, parts, value, values, schemas)
        elif isinstance(value, dict) and parts and (misspelt := closest("_target_", value, _HIGH_SIMILARITY)):
            yield Problem(config.where((*parts, misspelt)), "an unknown key", "a known key", "did you mean '_target_'?")
    for place, default in _replaced_values(config):
        values[place] = lookup(config.content, place)
        if is_component(default) and isinstance(values[place], list):  # even where a list of images would do
            schemas.setdefault(place, []).append(like(default))
        schemas.setdefault(place, [like(default)])
    options = (options_in(config.layers[index][0]) for index in config.own_layers)
    for place, keywords in ((split_id(name), each) for described in options for name, each in described.items()):
        value = _without_code(lookup(config.content, place))
        if value is not None and value is not MISSING:
            schemas.setdefault(place, []).append(_option_schema(keywords))
            values.setdefault(place, value)
    for name, splits in _SPLITS.items():
        schemas.get((name, "dataset", "split"), []).append({"enum": list(splits)})
    given = {join_id(place): value for place, value in values.items() if not (value is MISSING or is_code(value))}
    merged: Schema = {join_id(place): {"allOf": each} for place, each in schemas.items()}
    for problem in schema_problems(given, {"properties": merged}, ""):
        yield replace(problem, where=config.where(split_id(problem.where.removeprefix(" -> "))))


def _component_problems(
    config: BundleConfig, parts: _Id, component: Mapping[str, Any], values: dict[_Id, Any], schemas: _Schemas
) -> Iterator[Problem]:
    """Problems of one component; adds the values of its arguments, and their schemas, to those that are checked."""
    try:
        schema = component_schema(resolve_target(component["_target_"], ""))
    except Refused as refused:
        yield from (replace(each, where=config.where((*parts, "_target_"))) for each in refused.problems)
        return
    yield from _argument_problems(config, parts, component, schema)
    for name, argument in component.items():
        if name in _OF_COMPONENTS:
            yield from _item_problems(config, (*parts, name), argument, _OF_COMPONENTS[name])
        place, resolved = follow(config.content, (*parts, name), argument)
        expected = schema["properties"].get(name)
        if is_disabled(resolved) and (name in _STEPS or schema_problems(None, expected or {}, "")):
            needed = f"false, as {component['_target_']} needs {name!r}"
            yield Problem(config.where((*place, DISABLED)), "true", needed)
        elif expected and resolved is not MISSING and not is_component(resolved):
            schemas.setdefault(place, []).append(expected)
            values[place] = resolved
        elif is_component(resolved) and expected is not None and not schema_problems(resolved, expected, ""):
            schemas.setdefault(place, [{}])  # a component may replace a name


def _argument_problems(config: BundleConfig, parts: _Id, given: Mapping[str, Any], schema: Schema) -> Iterator[Problem]:
    """Unexpected and missing arguments of a component."""
    properties, component, suggestions = schema["properties"], given["_target_"].rpartition(".")[2], set[str | None]()
    for name in (name for name in given if name not in properties):
        closed = name.startswith("_") or not schema["additionalProperties"]
        suggestion = closest(name, properties.keys() - given.keys(), _SIMILARITY if closed else _HIGH_SIMILARITY)
        suggestion = closest(name, properties) if suggestion is None and closed else suggestion
        if suggestion is not None or closed:
            known = ", ".join(each for each in properties if each not in COMPONENT_KEYS) or "no arguments"
            hint = f"it takes {known}" if suggestion is None else f"did you mean {suggestion!r}?"
            yield Problem(config.where((*parts, name)), "an unexpected argument", f"an argument of {component}", hint)
        suggestions.add(suggestion)
    for name in schema["required"] if given.get("_mode_", "default") == "default" else ():
        if name not in {*given, *suggestions}:
            yield Problem(config.where(parts), "no such argument", f"the argument {name!r} of {component}")


def _item_problems(config: BundleConfig, parts: _Id, value: Any, nested: bool, item: bool = False) -> Iterator[Problem]:
    """Parts of an argument of components that are none; ``nested``: they may also be null, or in lists and objects."""
    place, resolved = follow(config.content, parts, value)
    listed, whole = nested or not item, resolved is None and (nested or not item)
    is_empty = resolved in (None, []) and parts[-1] in _STEPS
    is_group = isinstance(resolved, dict) and nested and not is_component(resolved)
    if (isinstance(resolved, list) and listed and not is_empty) or is_group:
        for name, part in children(resolved):
            yield from _item_problems(config, (*place, name), part, nested, item=True)
    elif is_empty or not (is_component(resolved) or is_code(resolved) or resolved is MISSING or whole):
        found, hint = clipped(repr(resolved)), 'write an object with _target_, or a reference to one, "@ID"'
        yield Problem(config.where(place), "null" if resolved is None else found, "a component", hint)


def _replaced_values(config: BundleConfig) -> Iterator[tuple[_Id, Any]]:
    """Yields ids that a layer replaces, each with the value below it; groups are checked separately."""
    for index, (_, pairs) in enumerate(config.layers[1:], start=1):
        for parts in map(split_id, pairs):
            _, default = follow(below := config.below(index), parts, lookup(below, parts))
            default = MISSING if parts[0] in GROUPS else default
            is_argument = isinstance(default, list) and len(parts) > 1  # which may also be a single item
            if not (default is MISSING or is_argument or is_code(default)):
                yield parts, default


def _without_code(value: Any) -> Any:
    """Returns a value, or ``MISSING`` for code; entries of an object that are code or null are left out."""
    if isinstance(value, dict):
        parts = ((name, _without_code(part)) for name, part in value.items())
        return {name: part for name, part in parts if part is not MISSING and part is not None}
    return MISSING if is_code(value) or (isinstance(value, list) and any(map(is_code, value))) else value


def workflows_of(bundle_root: str | Path) -> list[str]:
    """Workflows of a bundle, by its files, in the order of :data:`WORKFLOWS`."""
    return [name for name, files in WORKFLOWS.items() if (Path(bundle_root) / "configs" / files[-1]).is_file()]
