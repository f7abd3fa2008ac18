"""Components that a bundle may name: the allow-list, their arguments, and the entry points of other packages.

Other packages add methods, networks, terms, data sources and exporters by entry points. The metadata of all installed
packages are read once in a process. A module of another package is imported (its parent packages earlier) only when
a component is requested by name. A broken entry point is reported with its package and does not affect the others.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, Union

from samfed_monai.config.method import read_method
from samfed_monai.core.errors import Problem, Refused, closest, did_you_mean, error_text, refused
from samfed_monai.core.model_file import CATALOGUE
from samfed_monai.core.registry import Deferred
from samfed_monai.core.validators import one_of, require

Schema = dict[str, Any]
"""JSON Schema of one value."""

ALLOWED_PREFIXES = ("samfed_monai.", "monai.", "torch.", "ignite.")
"""Packages whose components a bundle may name. A bundle's own ``scripts`` folder is excluded, since its code was not
installed by the user. The user who starts the command (never the bundle) can add packages with the environment variable
``SAMFED_ALLOW``, for instance ``SAMFED_ALLOW=my_lab.,torchvision.``"""

DENIED_PREFIXES = (
    "ignite.distributed.",
    "monai.apps.utils.",
    "monai.bundle.",
    "monai.utils.misc.run_cmd.",
    "monai.utils.module.",
    "samfed_monai.attacks.",
    "torch._ops.",
    "torch.distributed.",
    "torch.hub.",
    "torch.jit._serialization.",
    "torch.load",
    "torch.multiprocessing.",
    "torch.package.",
    "torch.serialization.",
    "torch.utils.cpp_extension.",
)
"""Modules of the allowed packages that download, compile, unpickle or run other code, and the audit's attacks."""


def is_from_catalogue(parser: Any) -> bool:
    """Whether a configuration builds its network from the catalogue, by name."""
    declared = parser.get().get("network_def")
    return isinstance(declared, Mapping) and declared.get("_target_") == CATALOGUE


_EXCLUDED = ("monai._extensions.", "monai.apps.", "monai.auto3dseg.", "monai.bundle.", "monai.config.", "monai.fl.")
"""Packages of MONAI without components, or with optional dependencies."""


def allowed_prefixes() -> tuple[str, ...]:
    """The allow-list, modules of other packages' methods and terms, and the packages in ``SAMFED_ALLOW``."""
    user_prefixes = (prefix for prefix in os.environ.get("SAMFED_ALLOW", "").split(",") if prefix)
    return (*ALLOWED_PREFIXES, *(prefix.strip().rstrip(".") + "." for prefix in (*_plugin_modules(), *user_prefixes)))


def _plugin_modules() -> dict[str, str]:
    """Modules of other packages' methods and terms, which a ``_target_`` may name, each with its owner."""
    points = (point for kind in ("methods", "terms") for point in entry_points_of(kind).points.values())
    return {point.module: owner_of(point) for point in points}


def resolve_target(target: Any, where: str) -> Any:
    """Returns the class or function that a ``_target_`` names; modules outside the allow-list are not imported.

    Args:
        target: a full dotted path, or the bare name of a MONAI component, looked up as MONAI does.
        where: file and id, for the message.

    Raises:
        Refused: not a dotted path, outside the allow-list, or unknown.
    """
    if not isinstance(target, str) or not target or target.startswith(("$", "@", "%")):
        raise _not_allowed(where, repr(target))
    path = target if "." in target else _monai_path(target, where)
    if not _allowed(path):
        raise _not_allowed(where, repr(target))
    try:
        found = _locate(path, where)
    except Refused:
        raise
    except Exception as error:  # of another package: its import may raise anything
        failure = error_text(error)  # raises the error again if memory ran out
        found = str(error) if isinstance(error, ImportError) else failure
        owners = [owner for module, owner in _plugin_modules().items() if path.startswith(f"{module}.")]
        hint = f"update or uninstall {owners[0].partition(' ')[0]}, which provides it" if owners else ""
        raise refused(where, found=found, expected=f"{target!r} to be importable", hint=hint) from None
    module = getattr(found, "__module__", None) or path.rpartition(".")[0]
    defined = f"{module}.{getattr(found, '__qualname__', '')}"
    if not _allowed(defined):  # torch.os.system looks like torch's, but is not
        raise _not_allowed(where, f"{target!r} (really {defined!r})")
    return found


def _allowed(path: str) -> bool:
    return path.startswith(allowed_prefixes()) and not f"{path}.".startswith(DENIED_PREFIXES)


def _not_allowed(where: str, found: str) -> Refused:
    expected = f"a component of {', '.join(prefix.rstrip('.') for prefix in allowed_prefixes())}"
    hint = "if you trust that package, name it in the environment variable SAMFED_ALLOW"
    return refused(where, found=found, expected=expected, hint=not_installed(found.strip("'")) or hint)


def _unknown(where: str, target: str, known: Iterable[str], parent: str, missing: Sequence[str] = ()) -> Refused:
    """Error for a path that does not exist below ``parent``; ``known``: its names; ``missing``: the missing parts."""
    suggestion = closest(missing[0], known) if len(missing) > 1 else None
    hint = f"did you mean {'.'.join([parent, suggestion, *missing[1:]])!r}?" if suggestion else not_installed(target)
    hint = hint or did_you_mean(target.rpartition(".")[2], known) or "check the spelling"
    return refused(where, found=repr(target), expected=f"a component that exists in {parent}", hint=hint)


@functools.cache
def _locator() -> Any:
    from monai.bundle import ComponentLocator

    return ComponentLocator()


def _monai_class_names() -> set[str]:
    """Names of the classes in MONAI's packages."""
    import monai

    packages = (f"monai.{info.name}" for info in pkgutil.iter_modules(monai.__path__) if info.ispkg)
    names = [name for name in packages if not f"{name}.".startswith(_EXCLUDED)]
    names += ["monai.networks.blocks", "monai.networks.layers", "monai.networks.nets"]
    modules = map(importlib.import_module, names)
    return {name for module in modules for name, value in vars(module).items() if inspect.isclass(value)}


def _monai_path(name: str, where: str) -> str:
    module = _locator().get_component_module_name(name)
    if module is None:
        raise _unknown(where, name, _monai_class_names(), "MONAI")
    return f"{module[0] if isinstance(module, list) else module}.{name}"


def _locate(path: str, where: str) -> Any:
    parts = path.split(".")
    if not _importable(parts[0]):
        raise _unknown(where, path, {prefix.rstrip(".") for prefix in allowed_prefixes()}, "an installed package")
    found: Any = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], start=1):
        name = ".".join(parts[: depth + 1])
        if isinstance(found, types.ModuleType) and not hasattr(found, part) and _importable(name):
            found = importlib.import_module(name)
        elif hasattr(found, part):
            found = getattr(found, part)
        else:
            raise _unknown(where, path, _names_in(found), ".".join(parts[:depth]), parts[depth:])
    if not callable(found):
        raise _unknown(where, path, _names_in(found), path)
    return found


def _names_in(found: Any) -> set[str]:
    return {*dir(found), *(info.name for info in pkgutil.iter_modules(getattr(found, "__path__", [])))}


def _importable(name: str) -> bool:
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec(name) is not None
    return False


_BOOLEAN: Schema = {"type": "boolean"}  # MONAI accepts any value and treats most as false
COMPONENT_KEYS = {**dict.fromkeys(("_target_", "_requires_", "_desc_", "_mode_"), Schema()), "_disabled_": _BOOLEAN}
"""Keys of a component that MONAI reads itself, which are not arguments, with their schemas."""

NAMES: dict[Any, str] = {
    **{bool: "boolean", int: "integer", float: "number", str: "string"},
    **dict.fromkeys((list, tuple, set, frozenset, Sequence, Iterable, Sized), "array"),
    **{dict: "object", Mapping: "object", type(None): "null", None: "null"},
}
"""JSON Schema types of Python's types."""


def annotation_schema(annotation: Any) -> Schema | None:
    """Returns the schema of the JSON values that an annotation allows; ``None`` if it does not restrict them."""
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        choices = [annotation_schema(choice) for choice in typing.get_args(annotation)]
        return None if None in choices else {"anyOf": choices}
    if origin is Literal:
        return {"enum": list(typing.get_args(annotation))}
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return {"enum": [item.value for item in annotation]}
    kind = origin or annotation
    if kind in NAMES:
        return {"type": NAMES[kind]}
    is_class = isinstance(kind, type) and kind not in (Any, object)
    if is_class and (issubclass(kind, os.PathLike) or (kind.__module__, kind.__name__) in _WRITTEN_AS_TEXT):
        return {"type": "string"}
    if not is_class or kind.__module__ in _ARRAYS:
        return None
    with suppress(TypeError):  # a protocol: only a component has its methods
        if fitting := [name for name, value in _EXAMPLES.items() if isinstance(value, kind)]:
            return {"type": fitting}
    return COMPONENT


_WRITTEN_AS_TEXT = {("torch", "device"), ("torch", "dtype"), ("numpy", "dtype")}
_ARRAYS = ("torch", "numpy")  # modules of arrays and tensors, for which MONAI also takes lists and numbers
_EXAMPLES = {"boolean": True, "integer": 1, "number": 0.5, "string": "", "array": [], "object": {}, "null": None}
COMPONENT: Schema = {"not": {"not": {"type": "object", "required": ["_target_"]}}, "description": "a component"}
"""Schema of a component, also of an argument for which no plain value can be given, such as a network."""


def like(value: Any) -> Schema:
    """Returns the schema of values of the same type; ``null`` allows any value, text and lists also allow ``null``. A
    component may only be replaced by a component."""
    name = NAMES.get(type(value))
    if name in (None, "null"):
        return {}
    if isinstance(value, dict) and "_target_" in value:
        return {"anyOf": [COMPONENT, {"type": "null"}]}
    return {"type": name if isinstance(value, (bool, int, float)) else [name, "null"]}


@functools.lru_cache(maxsize=1024)
def parameters_of(target: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """Named parameters of a class or function, and whether it accepts other names (``**kwargs``, or unknown)."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # built in C: no signature
        return {}, True
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return named, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


@functools.lru_cache(maxsize=1024)
def annotations_of(target: Any) -> dict[str, Any]:
    """Annotations of a class's or function's parameters as types; unresolvable ones are left out."""
    function = inspect.unwrap(getattr(target, "__init__") if inspect.isclass(target) else target)  # noqa: B009 - mypy
    names, annotations = dict(getattr(function, "__globals__", {})), dict[str, Any]()
    for base in inspect.getmro(target) if inspect.isclass(target) else ():  # a data class has their annotations
        names = vars(sys.modules[base.__module__]) | names
    for name, text in getattr(function, "__annotations__", {}).items():
        with suppress(Exception):  # an annotation for type checkers only may raise anything
            annotations |= typing.get_type_hints(types.SimpleNamespace(__annotations__={name: text}), names)
    return annotations


@functools.lru_cache(maxsize=1024)
def component_schema(component: Any) -> Schema:
    """Returns the schema of the arguments of a class or function, by annotations, or else by defaults.

    Other arguments (``**kwargs``) may be for its base classes, whose names are included. If the first base without
    ``**kwargs`` is in this package, other names are not accepted.
    """
    parameters, accepts_any = parameters_of(component)
    hints, arguments = annotations_of(component), dict[str, Schema]()
    for name, parameter in parameters.items():
        default = None if parameter.default is parameter.empty else parameter.default
        typed = annotation_schema(hints[name]) if name in hints else like(default)
        arguments[name] = {"anyOf": [typed, {"type": "null"}]} if typed and parameter.default is None else typed or {}
        arguments[name] |= {"minimum": 0, "maximum": 1} if name == "prob" else {}  # MONAI clamps it silently
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    bases = inspect.getmro(component)[1:] if accepts_any and inspect.isclass(component) else ()
    for base in (base for base in bases if "__init__" in vars(base)):
        if not parameters_of(base)[1]:
            accepts_any = not base.__module__.startswith("samfed_monai.")
            break
    others = {name: Schema() for base in bases for name in parameters_of(base)[0]} | COMPONENT_KEYS
    return {"properties": others | arguments, "required": required, "additionalProperties": accepts_any}


ENTRY_POINT_KINDS = {
    "methods": "a module with {name}.json, a variant, in its folder",
    "networks": "package.module:builder, a function (in_channels, out_channels, **kwargs) -> nn.Module",
    "terms": "package.module:Class, a Term or Guide",
    "sources": "package.module:function, (root) -> list of Found",
    "exporters": "package.module:function, (network, path, images) -> function that runs the file",
}
"""Groups of entry points, each ``samfed_monai.<name>``, with the form of their entries."""


@dataclass(frozen=True)
class EntryPoints:
    """Entry points of one kind in the installed packages.

    Args:
        points: usable entry points by name; their objects are not imported yet.
        broken: problems of the others by name, each with the package.
    """

    points: dict[str, EntryPoint] = field(default_factory=dict)
    broken: dict[str, Problem] = field(default_factory=dict)

    @property
    def found(self) -> dict[str, Deferred]:
        """Import path and owner of each entry point, by name."""
        return {name: Deferred(f"{point.module}.{point.attr}", owner_of(point)) for name, point in self.points.items()}

    def named(self, name: str, known: Iterable[str], where: str) -> Any:
        """Imports and returns the component of a name.

        Args:
            name: the name at ``where``.
            known: names of this package's own components, for the message.
            where: place of the name, for instance ``--to``.

        Raises:
            Refused: the name is unknown, or its package is broken.
        """
        hint = "install the package that provides it (docs/extending.md)"
        broken = [self.broken[name]] if name in self.broken else []
        require(broken or one_of(where, name, sorted({*known, *self.points}), hint))
        return self.found[name].load(where)


def owner_of(point: EntryPoint) -> str:
    """Name and version of an entry point's package."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "the package"


@functools.cache
def entry_points_of(kind: str) -> EntryPoints:
    """Finds the entry points of a kind in :data:`ENTRY_POINT_KINDS`, usable and broken ones."""
    result, group = EntryPoints(), f"samfed_monai.{kind}"
    for point in entry_points(group=group):
        owner = owner_of(point)
        try:
            _require_usable(kind, point)
            result.points[point.name] = point
        except Exception as error:  # of another package: its import may raise anything
            reasons = error.problems if isinstance(error, Refused) else [error_text(error)]
            package = owner.partition(" ")[0] if point.dist else owner
            where = f"{owner} -> entry point {point.name} = {point.value} of {group}"
            expected = ENTRY_POINT_KINDS[kind].format(name=point.name)
            hint = f"update or uninstall {package}; the other {kind} work without it"
            result.broken[point.name] = Problem(where, "; ".join(map(str, reasons)), expected, hint)
    return result


def _require_usable(kind: str, point: EntryPoint) -> None:
    """Raises any exception if an entry point cannot be used."""
    file = file_of_method(point)
    if kind == "methods":
        read_method(file)
    elif not point.attr:
        raise refused("value", found=repr(point.value), expected="package.module:name")


def file_of_method(point: EntryPoint) -> Path:
    """Path of the JSON file beside an entry point's module.

    Raises:
        ModuleNotFoundError: the module does not exist.
    """
    spec = importlib.util.find_spec(point.module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {point.module}")
    return Path(spec.origin).with_name(f"{point.name}.json")


def not_installed(target: str) -> str:
    """Returns a hint if the package of a ``_target_`` is in the current folder but not importable; else empty.

    ``samfed`` does not import code from the current folder, where an untrusted bundle may have brought some.
    """
    name = target.partition(".")[0]
    is_local = name.isidentifier() and ((Path.cwd() / name).is_dir() or (Path.cwd() / f"{name}.py").is_file())
    if not is_local or importlib.util.find_spec(name) is not None:
        return ""
    return (
        f"{name} is in this folder, where samfed does not look for code: if you trust it, "
        f"type PYTHONPATH=. SAMFED_ALLOW={name} before the command"
    )
