"""The allow-list of ``_target_``: only code that was installed on purpose, resolved without running it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import types
from collections.abc import Mapping
from typing import Any

from samfed_monai.config.entry_points import brought, not_installed, owner_of
from samfed_monai.config.parse import is_code
from samfed_monai.core.errors import Refused, closest, did_you_mean, is_out_of_memory, refused

ALLOWED_PREFIXES = ("samfed_monai.", "monai.", "torch.", "ignite.")
"""Packages whose components a bundle may name. A bundle's own ``scripts`` folder is not among them: code that comes
with a configuration is code that no one installed. Whoever starts the command (never the bundle) can add packages with
the environment variable ``SAMFED_ALLOW``, for instance ``SAMFED_ALLOW=my_lab.,torchvision.``"""

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
"""Inside the allowed packages, what downloads, compiles, unpickles or runs other code, and the audit's attacks."""


CATALOGUE = "samfed_monai.networks.client_network"
"""The component that builds a client network by its name."""


def in_catalogue(parser: Any) -> bool:
    """Whether a configuration builds its network from the catalogue, by name."""
    declared = parser.get().get("network_def")
    return isinstance(declared, Mapping) and declared.get("_target_") == CATALOGUE


_NO_ROOMS = ("monai._extensions.", "monai.apps.", "monai.auto3dseg.", "monai.bundle.", "monai.config.", "monai.fl.")
"""Packages of MONAI that hold no components, or import what need not be installed."""


def allowed_prefixes() -> tuple[str, ...]:
    """The allow-list, modules of methods and terms that installed packages bring, and what ``SAMFED_ALLOW`` adds."""
    added = (
        *outside_modules(),
        *(prefix for prefix in os.environ.get("SAMFED_ALLOW", "").split(",") if prefix),
    )
    return (*ALLOWED_PREFIXES, *(prefix.strip().rstrip(".") + "." for prefix in added))


def outside_modules() -> dict[str, str]:
    """Modules whose components a bundle may name as ``_target_``, each with its owner: of methods and of terms."""
    points = [point for kind in ("methods", "terms") for point in brought(kind).points.values()]
    return {point.module: owner_of(point) for point in points}


def owner_of_target(target: str) -> str:
    """Who brings the module that a ``_target_`` names; empty where no entry point does."""
    owners = (owner for module, owner in outside_modules().items() if target.startswith(f"{module}."))
    return next(owners, "")


def resolve_target(target: Any, where: str) -> Any:
    """The class or function that a ``_target_`` names; modules outside the allow-list are not even imported.

    Args:
        target: a full dotted path; a bare name is one of MONAI's, looked up as MONAI does.
        where: file and id, for the message.

    Raises:
        Refused: not a dotted path, outside the allow-list, or unknown.
    """
    if not isinstance(target, str) or not target or is_code(target):
        raise _outside(where, repr(target))
    path = target if "." in target else _monai_path(target, where)
    if not _allowed(path):
        raise _outside(where, repr(target))
    try:
        found = _locate(path, where)
    except Refused:
        raise
    except Exception as error:  # of another package: its import may raise anything
        if is_out_of_memory(error):
            raise
        found = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        owner = owner_of_target(path).partition(" ")[0]
        hint = f"update or uninstall {owner}, which brings it" if owner else ""
        raise refused(where, found=found, expected=f"{target!r} to be importable", hint=hint) from None
    real = f"{getattr(found, '__module__', None) or path.rpartition('.')[0]}.{getattr(found, '__qualname__', '')}"
    if not _allowed(real):  # torch.os.system is spelt like torch's, but is not
        raise _outside(where, f"{target!r} (really {real!r})")
    return found


def _allowed(path: str) -> bool:
    dotted = f"{path}."
    return path.startswith(allowed_prefixes()) and not dotted.startswith(DENIED_PREFIXES)


def _outside(where: str, found: str) -> Refused:
    expected = f"a component of {', '.join(prefix.rstrip('.') for prefix in allowed_prefixes())}"
    hint = "if you trust that package, name it in the environment variable SAMFED_ALLOW"
    hint = not_installed(found.strip("'")) or hint
    return refused(where, found=found, expected=expected, hint=hint)


def _unknown(where: str, target: str, parts: list[str], depth: int, found: Any) -> Refused:
    """A path that leads nowhere beyond its first ``depth`` parts, which are ``found``."""
    holder, known = ".".join(parts[:depth]), set(dir(found))
    known |= {info.name for info in pkgutil.iter_modules(getattr(found, "__path__", []))}
    meant = closest(parts[depth], known) if depth < len(parts) - 1 else None
    if meant is None:
        return _unknown_name(where, target, known, holder)
    hint = f"did you mean {'.'.join([*parts[:depth], meant, *parts[depth + 1 :]])!r}?"
    return refused(where, found=repr(target), expected=f"a component that exists in {holder}", hint=hint)


def _unknown_name(where: str, target: str, known: set[str], holder: str) -> Refused:
    name = target.rpartition(".")[2]
    hint = not_installed(target) or did_you_mean(name, known) or "check the spelling"
    return refused(where, found=repr(target), expected=f"a component that exists in {holder}", hint=hint)


@functools.cache
def _locator() -> Any:
    from monai.bundle import ComponentLocator

    return ComponentLocator()


def _names_of_monai() -> set[str]:
    """Classes that the packages of MONAI offer."""
    import monai

    packages = (f"monai.{info.name}" for info in pkgutil.iter_modules(monai.__path__) if info.ispkg)
    rooms = [importlib.import_module(name) for name in packages if not f"{name}.".startswith(_NO_ROOMS)]
    found = [*rooms, *(importlib.import_module(f"monai.networks.{name}") for name in ("blocks", "layers", "nets"))]
    return {name for room in found for name, value in vars(room).items() if inspect.isclass(value)}


def _monai_path(name: str, where: str) -> str:
    module = _locator().get_component_module_name(name)
    if module is None:
        raise _unknown_name(where, name, _names_of_monai(), "MONAI")
    return f"{module[0] if isinstance(module, list) else module}.{name}"


def _locate(path: str, where: str) -> Any:
    parts = path.split(".")
    found: Any = importlib.import_module(parts[0]) if _importable(parts[0]) else None
    if found is None:
        raise _unknown_name(where, path, {prefix.rstrip(".") for prefix in allowed_prefixes()}, "an installed package")
    for depth, part in enumerate(parts[1:], start=2):
        name = ".".join(parts[:depth])
        if isinstance(found, types.ModuleType) and not hasattr(found, part) and _importable(name):
            found = importlib.import_module(name)
        elif hasattr(found, part):
            found = getattr(found, part)
        else:
            raise _unknown(where, path, parts, depth - 1, found)
    if not callable(found):
        raise _unknown(where, path, parts, len(parts), found)
    return found


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
