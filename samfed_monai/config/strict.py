"""The strict check: JSON without Python code, for untrusted bundles and for jobs that a server sends.

A strict bundle may name components of this package, and components of other packages that only compute: none that load,
fetch, compile, write or start something.

Nothing is evaluated or built. :func:`samfed_monai.config.check_bundle` checks whether a bundle is correct; this module
only checks whether it is harmless.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from samfed_monai.config.check import FOLDER_OPTIONS, WEIGHT_OPTIONS, check_logging
from samfed_monai.config.options import GROUPS, options_of
from samfed_monai.config.overrides import MONAI_OPTIONS
from samfed_monai.config.own_images import image_problems, short_repr
from samfed_monai.config.parse import SITES, join_id, lookup, split_id, walk
from samfed_monai.config.targets import ALLOWED_PREFIXES, allowed_prefixes, parameters_of, resolve_target
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import read_json, sha256_file
from samfed_monai.core.text import aligned

_PACKAGES = ("bundle", "federation", "handlers", "losses", "methods", "metrics", "networks", "reports", "teacher")
OURS = tuple(f"samfed_monai.{room}." for room in (*_PACKAGES, "transforms"))
"""Packages of ``samfed_monai`` whose classes a strict bundle may name."""

MODULES = (
    *("monai.data.dataset.", "monai.data.dataloader.", "monai.data.thread_buffer."),
    *("monai.engines.trainer.", "monai.engines.evaluator."),
    *("monai.inferers.", "monai.losses.", "monai.metrics.", "monai.optimizers."),
    *("monai.networks.blocks.", "monai.networks.layers.", "monai.networks.nets."),
    *(f"monai.handlers.{name}_handler." for name in ("stats", "validation", "lr_schedule", "earlystop")),
    *(f"monai.transforms.{room}." for room in ("compose", "croppad", "intensity", "post", "spatial", "utility")),
    *("torch.nn.modules.", "torch.optim."),
    *("ignite.handlers.tqdm_logger.", "ignite.metrics."),
)
"""Modules of other packages whose classes only compute. The module that defines a class counts, not the path in the
bundle (``monai.data.DataLoader`` is defined in ``monai.data.dataloader``)."""

FETCHING = (
    "ignite.metrics.gan.",
    "monai.losses.perceptual.",
    "monai.networks.layers.gmm.",
    "monai.networks.nets.transchex.",
)
"""Modules in :data:`MODULES` that fetch weights, read a folder or compile C++ without an argument for it."""

FORBIDDEN_ARGUMENTS = re.compile(
    r"pretrained.*|checkpoint|store|saver|filename|npzfile|kwargs_read_csv|.*_(?:cls|url|file|dir|folder|store)|(?!drop_path).*_path"
)
"""Arguments of constructors that fetch, load, write or import: pretrained weights, a file, a store, a class by name.
A class of another package with such an argument, in its own or an inherited constructor, is refused."""

FUNCTIONS = frozenset(
    {
        "samfed_monai.config.workflow.run_job",
        "samfed_monai.config.workflow.require_checked",
        "samfed_monai.data.image_folder.image_folder",
        "samfed_monai.handlers.rounds.steps_per_round",
        "samfed_monai.networks.catalogue.client_network",
        "samfed_monai.core.process_setup.best_device",
        *(f"samfed_monai.bundle.wiring.{name}" for name in ("model_path", "on_device", "parameters_of", "part_of")),
        "samfed_monai.teacher.training.mask_loss",
        "monai.data.meta_obj.set_track_meta",
    }
)
"""Allowed functions, listed one by one: a function's module does not show what it does."""

_HINT = "use a component that only computes; if you trust its package, name the package in SAMFED_ALLOW"


def strict_target(target: Any, where: str) -> list[Problem]:
    """Returns a problem unless a strict bundle may name ``target``.

    Packages in ``SAMFED_ALLOW``, set by the user who started the command, are also allowed.

    Args:
        target: the value of ``_target_``.
        where: file and id, for the message.
    """
    try:
        component = resolve_target(target, where)
    except Refused as refused:
        return refused.problems
    name = f"{getattr(component, '__module__', '')}.{getattr(component, '__qualname__', '')}"
    user_prefixes = tuple(prefix for prefix in allowed_prefixes() if prefix not in ALLOWED_PREFIXES)
    if name in FUNCTIONS or name.startswith(user_prefixes) or (inspect.isclass(component) and name.startswith(OURS)):
        return []
    computes = inspect.isclass(component) and name.startswith(MODULES) and not name.startswith(FETCHING)
    argument = forbidden_argument(component) if computes else ""
    if computes and not argument:
        return []
    note = ("" if name == target else f" (really {name!r})") + (f", which takes {argument!r}" if argument else "")
    expected = "a component of the strict allow-list (samfed_monai.config.strict)"
    return [Problem(where, found=f"{target!r}{note}", expected=expected, hint=_HINT)]


def forbidden_argument(component: type) -> str:
    """The first argument of a class or its bases that matches :data:`FORBIDDEN_ARGUMENTS`; empty if there is none."""
    names = (name for base in inspect.getmro(component) for name in parameters_of(base)[0])
    return next(filter(FORBIDDEN_ARGUMENTS.fullmatch, names), "")


ALLOWED_EXPRESSIONS = (
    re.compile(r"\$@[A-Za-z]\w*(?:(?:#|::)\w+)*\.(?:parameters|run)\(\)"),
    re.compile(r"\$@[A-Za-z]\w*(?:(?:#|::)\w+)*\.to\(@[A-Za-z]\w*\)"),
)
"""Expressions that a bundle's file may contain below its options: ``$@network.parameters()``, ``$@trainer.run()``,
``$@network_def.to(@device)``. The bundles of this package contain none."""

IMPORTS = re.compile(r"\$import (?:torch|monai|samfed_monai)(?:\.[a-z]\w*)*(?: as [A-Za-z]\w*)?")
"""Allowed entries of ``imports``: one module of packages that are always installed."""

PATH_IDS = frozenset({*WEIGHT_OPTIONS, *FOLDER_OPTIONS}) | {
    *("datalist", "output", "path", "file", "filename", "folder", "root", "store")
}
PATH_ENDINGS = ("_path", "_file", "_filename", "_dir", "_folder", "_root", "_store")
"""Ids of paths on a machine, and endings of further ones. Only a site's own file may set them, never a message."""

SENT_WORKFLOW = frozenset({"imports", "initialize", "run", "finalize", "_meta_"})
"""Ids that define what a workflow does, not its values."""

_LOGGING = re.compile(r"(?:.*[/\\])?logging[^/\\]*\.(?:conf|ini|cfg|json|ya?ml|toml)", re.IGNORECASE)
_REFERENCE = re.compile(r"@\w+(?:(?:#|::)\w+)*")


def strict_problems(content: Any, source: str = "what the server sent", *, file: bool = False) -> list[Problem]:
    """Returns a problem for everything in a mapping of ids that is, names or could become code.

    Refused are: a ``_target_`` outside the strict allow-list; expressions (``$``) and references to other files
    (``%``); a logging configuration, or any other option of MONAI's own command; the debugger; values that JSON does
    not have. *Sent* content may not contain any expression, ids of :data:`SENT_WORKFLOW`, paths on this machine, or
    settings of how images are read (:mod:`samfed_monai.config.own_images`). A *file* of a bundle may: there
    :data:`ALLOWED_EXPRESSIONS` and :data:`IMPORTS` are allowed below the options, and components may name paths below
    the folder of the run.

    Whether an id exists and a value fits is left to the ordinary check, which needs the bundle.

    Args:
        content: ids to values, parsed from JSON, for instance ``{"image_size": 256}``.
        source: name for messages, such as a file's name.
        file: whether it is a file of a bundle that is installed here.

    Example::

        problems = strict_problems({"learning_rate": "$1/3"}, "plan")
        # plan -> learning_rate: expected a plain value, found '$1/3'; ...
    """
    if not isinstance(content, Mapping):
        return [Problem(source, found=type(content).__name__, expected="an object of ids")]
    options = options_of(content) if file else {}
    problems: dict[Problem, None] = {}
    refused: list[tuple[str, ...]] = []
    for keys, value in walk(dict(content)):
        if not keys:
            continue
        parts = tuple(part for key in keys for part in split_id(str(key)))
        where = f"{source} -> {join_id(parts)}"
        found = list(_id_problems(parts, value, where, file))
        if file:
            found += _path_problems(content, parts, value, where)
        elif not found and not any(parts[: len(prefix)] == prefix for prefix in refused):
            found = list(image_problems(_workflow_id(parts), value, where))
            refused += [parts] * bool(found)
        problems |= dict.fromkeys(found)
        if isinstance(value, str) and parts[-1] != "_target_":
            problems |= dict.fromkeys(_text_problems(parts, value, where, file=file and parts[0] not in options))
    return list(problems)


def _id_problems(parts: tuple[str, ...], value: Any, where: str, file: bool) -> Iterator[Problem]:
    last = parts[-1]
    if not (value is None or isinstance(value, (dict, list, str, bool, int, float))):
        yield Problem(where, found=type(value).__name__, expected="a JSON value")
    if last == "_target_":
        yield from strict_target(value, where)
    if last == "_debug_" or (last == "_mode_" and value not in ("default", "callable")):
        yield Problem(where, short_repr(value), "'default' or 'callable'", "a debugger waits for input")
    workflow_id = _workflow_id(parts)  # ids in a group reach MONAI's command like those of the file
    if last in ("logging_file", "logging_config") or (len(workflow_id) == 1 and workflow_id[0] in MONAI_OPTIONS):
        hint = "delete it; the user who starts the run sets logging and input files"
        yield Problem(where, found="an option of the command line", expected="ids of a configuration", hint=hint)
        return
    if file:
        return
    if workflow_id[0] in SENT_WORKFLOW:
        hint = "delete it; the bundle that is installed here defines the workflow"
        yield Problem(where, found="steps of the workflow", expected="values for ids", hint=hint)
    if _is_path(last, value):
        hint = "set the path on this machine, in the site's own file"
        yield Problem(where, found=short_repr(value), expected="no path of a file or folder", hint=hint)


def _workflow_id(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The id within ``train.json`` or ``teacher.json``, without its group in ``federate.json``."""
    depth = 2 if parts[0] == SITES else 1 if parts[0] in GROUPS else 0
    return parts[depth:] or parts


def _path_problems(content: Mapping[Any, Any], parts: tuple[str, ...], value: Any, where: str) -> Iterator[Problem]:
    """A path outside the folder of the run, in a file's component or in an id that the component refers to."""
    if isinstance(value, str) and value.startswith("@"):
        target = split_id(value[1:])  # an option for a path is visible to the user
        value = None if _names_path(target[-1]) else lookup(content, target)
    if len(_workflow_id(parts)) < 2 or not _names_path(parts[-1]) or not isinstance(value, str):
        return
    path = PureWindowsPath(value)  # accepts both kinds of slashes
    if path.anchor or ".." in path.parts or value.startswith("~"):
        hint = "refer to an option with a path, for instance @output_dir"
        yield Problem(where, found=short_repr(value), expected="a path inside the run's folder", hint=hint)


def _is_path(name: str, value: Any) -> bool:
    """Whether a sent value is a path, other than a reference to an id of a path, which cannot itself be sent."""
    is_reference = isinstance(value, str) and _REFERENCE.fullmatch(value) and _names_path(split_id(value[1:])[-1])
    if not _names_path(name) or value is None or is_reference:
        return False
    if name == "encoder_weights":
        return not (isinstance(value, str) and value.isidentifier())
    return name in PATH_IDS or not isinstance(value, (int, float))  # `drop_path: 0.1` is not a path


def _names_path(name: str) -> bool:
    return name in PATH_IDS or name.endswith(PATH_ENDINGS)


def _text_problems(parts: tuple[str, ...], value: str, where: str, *, file: bool) -> Iterator[Problem]:
    """Problems of one text; ``file``: whether :data:`ALLOWED_EXPRESSIONS` and :data:`IMPORTS` are allowed there."""
    expected = "a plain value"
    if value.startswith("%"):
        hint = "'%' would read another file"
    elif value.startswith("$") and not file:
        hint = "'$' would run code: write the result instead"
    elif value.startswith("$") and parts[0] == "imports":
        hint = "" if IMPORTS.fullmatch(value) else "delete it, or name components by _target_"
        expected = "`$import` of a module of torch, monai or samfed_monai"
    elif value.startswith("$"):
        is_allowed = any(expression.fullmatch(value) for expression in ALLOWED_EXPRESSIONS)
        hint = "" if is_allowed else "use a component: see samfed_monai.bundle"
        expected = "no expression, or $@id.parameters(), $@id.run(), $@id.to(@id)"
    else:
        hint = "delete it; the user who starts the run sets the logging" if _LOGGING.fullmatch(value.strip()) else ""
        expected = "no logging configuration"
    if hint:
        yield Problem(where, found=short_repr(value), expected=expected, hint=hint)


KINDS = frozenset((".json", ".md", ".rst", ".txt", ".csv", ".safetensors", ".png", ".jpg", ".jpeg", ".svg", ".pdf"))
"""Extensions of files that a strict bundle may contain."""

NAMES = frozenset(("LICENSE", "NOTICE", "CITATION.cff", ".gitkeep", ".gitattributes", ".gitignore"))
"""Allowed files without such an extension, besides a ``configs/logging.conf`` that logs to the console."""

_PYTHON = frozenset((".py", ".pyc", ".pyo", ".pyw", ".pyi", ".pyx", ".ipynb"))
_TORCH = frozenset((".pt", ".pth", ".ckpt", ".bin", ".ts", ".tar"))
_ARCHIVE = b"PK\x03\x04"
_MAGIC = {
    "an archive (archives of torch.save contain a pickle)": (_ARCHIVE,),
    "an archive": (b"PK\x05\x06",),
    "a pickle": (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
    "machine code": (b"\x7fELF", b"MZ\x90", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"),
    "a script": (b"#!",),
    "a compressed file": (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"),
}
"""Kinds of files by their first bytes."""
_SHIPPED = "models/model.pt"
"""Name of the weights in MONAI's bundles: the only torch file that is allowed, if it builds only tensors."""
_SAFE = "convert the weights with `safetensors.torch.save_file`, and replace the file by model.safetensors"


def strict_files(bundle_root: Path) -> Iterator[Problem]:
    """Files that a strict bundle may not contain, by extension and first bytes; symbolic links."""
    root = Path(bundle_root).resolve()
    for path in sorted(root.rglob("*")):
        where = path.relative_to(root).as_posix()
        if path.is_symlink():
            yield Problem(where, found="a symbolic link", expected="a file", hint="put the file itself there")
        elif path.is_file() and (found := _file_refusal(path, where)):
            expected = f"only JSON, text, images, safetensors and a {_SHIPPED} of tensors"
            yield Problem(where, found=found, expected=expected, hint=_hint(path))
    yield from check_logging(root)


def _file_refusal(path: Path, where: str) -> str:
    """Why a file is refused; empty if it is allowed."""
    suffix = path.suffix.lower()
    if suffix in _PYTHON:
        return "Python code"
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"
    if suffix == ".safetensors":  # the length of the header, which may be any bytes, then JSON
        return "" if head[8:] == b"{" else "content that is not safetensors"
    if where == _SHIPPED and head.startswith(_ARCHIVE):
        return _pickle_problem(path)
    if kinds := [kind for kind, magic in _MAGIC.items() if head.startswith(magic)]:
        return kinds[0]
    if suffix in KINDS or path.name in NAMES or where == "configs/logging.conf":
        return ""
    return f"a file that ends with {path.suffix!r}" if path.suffix else "a file without a suffix"


def _pickle_problem(path: Path) -> str:
    """Describes what a torch file would build besides tensors; empty if nothing. It is not unpickled."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        unsafe = get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # an untrusted archive may raise anything
        return f"a file that torch cannot inspect ({type(error).__name__})"
    return f"a pickle that builds {short_repr(sorted(unsafe)[0])}" if unsafe else ""


def _hint(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in _PYTHON:
        return "delete it; install the code as a package, and name the package in SAMFED_ALLOW"
    return _SAFE if suffix in _TORCH else "delete it"


def strict_bundle_problems(bundle_root: str | Path) -> list[Problem]:
    """Returns a problem for everything in a bundle's folder that is, names or could become code.

    Nothing is evaluated or built. All ``.json`` files are checked, in any folder and letter case, also those that no
    workflow names, since MONAI reads any given file. Outside ``configs/`` a file without an object is not a
    configuration and passes. Checks of :func:`samfed_monai.config.check_bundle` are not repeated.

    Args:
        bundle_root: folder that contains ``configs/``.
    """
    root = Path(bundle_root)
    problems = dict.fromkeys(strict_files(root))
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name.lower().endswith(".json")):
        problems |= dict.fromkeys(_file_problems(path, path.relative_to(root)))
    return list(problems)


def _file_problems(path: Path, name: Path) -> list[Problem]:
    configs = name.parts[0] == "configs"
    try:
        content = read_json(path, byte_order_mark=not configs)
    except Refused as refused:
        return refused.problems
    if not (configs or isinstance(content, dict)):
        return []
    return strict_problems(content, (name.relative_to("configs") if configs else name).as_posix(), file=True)


_DATA_LICENCE = "docs/data_license.txt"


def inventory(bundle_root: str | Path, variants: Iterable[Path] = ()) -> str:
    """Lists the modules and packages in a bundle's ``_target_`` values, and all files with hash and licence, as text.

    Args:
        bundle_root: folder that contains ``configs/``.
        variants: further JSON files whose components are listed, such as a variant's.

    Raises:
        Refused: an unreadable JSON file, or a component outside the allow-list.
    """
    root = Path(bundle_root)
    files = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    modules: dict[str, set[str]] = defaultdict(set)
    for path in [*(path for path in files if path.suffix == ".json"), *variants]:
        values = walk(read_json(path, byte_order_mark=path.parent.name != "configs"))
        for target in (value for parts, value in values if parts[-1:] == ("_target_",) and isinstance(value, str)):
            component = resolve_target(target, path.name)
            module = getattr(component, "__module__", None) or target.rpartition(".")[0]
            modules[module].add(getattr(component, "__qualname__", target.rpartition(".")[2]))
    packages = sorted({module.partition(".")[0] for module in modules})
    distributions = importlib.metadata.packages_distributions()
    prefixes = [(f"{module}.", ", ".join(sorted(names))) for module, names in sorted(modules.items())]
    installed = [_package(distributions.get(package, [package])[0]) for package in packages]
    listed = [
        (path.relative_to(root).as_posix(), str(path.stat().st_size), sha256_file(path), _licence(path, root))
        for path in files
    ]
    sections: tuple[list[tuple[str, ...]], ...] = (
        [("target prefix", "components"), *prefixes],
        [("package", "version", "licence"), *installed],
        [("file", "bytes", "SHA-256", "licence"), *listed],
    )
    return "\n".join(map(aligned, sections))


def _package(name: str) -> tuple[str, str, str]:
    """Name, version and licence of an installed package, from its metadata."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return name, "not installed as a package", "unknown"
    stated = [text for key in ("License-Expression", "License") for text in metadata.get_all(key) or () if text]
    return metadata["Name"], metadata["Version"], stated[0].strip().partition("\n")[0] if stated else "unknown"


def _licence(path: Path, root: Path) -> str:
    """The licence in the bundle's ``LICENSE``, and for weights also the file with the licence of their data."""
    text = root / "LICENSE"
    stated = text.read_text(encoding="utf-8").split() if text.is_file() else []
    apache = stated[:4] == ["Apache", "License", "Version", "2.0,"]
    licence = "Apache-2.0" if apache else "see LICENSE" if stated else "none stated"
    data = path.parent.name == "models" and (root / _DATA_LICENCE).is_file()
    return f"{licence}; data: {_DATA_LICENCE}" if data else licence
