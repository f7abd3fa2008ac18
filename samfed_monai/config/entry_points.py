"""What other installed packages bring by entry points: methods, networks, terms, data sources, exporters.

Metadata of every installed package is looked through once in a process. Nothing of another package is imported but the
packages around its modules, until a component is asked for by its name; one that is broken names its owner and leaves
the others alone.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Refused, is_out_of_memory, refused
from samfed_monai.core.registry import Elsewhere
from samfed_monai.core.validators import one_of, require

GROUPS = {
    "methods": "a module with {name}.json, a variant, beside it",
    "networks": "package.module:builder, a function (in_channels, out_channels, **kwargs) -> nn.Module",
    "terms": "package.module:Class, a Term or Guide",
    "sources": "package.module:function, (root) -> list of Found",
    "exporters": "package.module:function, (network, path, images) -> how to run what was written",
}
"""Groups of entry points, ``samfed_monai.<name>`` each, with what one of it is."""


@dataclass(frozen=True)
class Brought:
    """What installed packages bring of one kind.

    Args:
        points: by name, the entry points that can be used; what they name has not been imported.
        broken: by name, what is wrong with the others, and whose they are.
    """

    points: dict[str, EntryPoint] = field(default_factory=dict)
    broken: dict[str, Problem] = field(default_factory=dict)

    @property
    def found(self) -> dict[str, Elsewhere]:
        """By name, where each is."""
        return {name: Elsewhere(f"{point.module}.{point.attr}", owner_of(point)) for name, point in self.points.items()}

    def named(self, name: str, known: Iterable[str], where: str) -> Any:
        """The component of that name, imported.

        Args:
            name: what is at ``where``.
            known: names that this package has itself, for the message.
            where: place of the name, for instance ``--to``.

        Raises:
            Refused: there is none, or the package that brings it is broken.
        """
        hint = "install the package that has it (docs/extending.md)"
        broken = [self.broken[name]] if name in self.broken else []
        require(broken or one_of(where, name, sorted({*known, *self.points}), hint))
        return self.found[name].load(where)


def owner_of(point: EntryPoint) -> str:
    """Name and version of the package that an entry point came with."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "the package"


@functools.cache
def brought(kind: str) -> Brought:
    """What installed packages bring of a kind, one of :data:`GROUPS`."""
    everything, group = Brought(), f"samfed_monai.{kind}"
    for point in entry_points(group=group):
        owner = owner_of(point)
        try:
            _require(kind, point)
            everything.points[point.name] = point
        except Exception as error:  # of another package: its import may raise anything
            if is_out_of_memory(error):
                raise
            reasons = error.problems if isinstance(error, Refused) else [f"{type(error).__name__}: {error}"]
            package = owner.partition(" ")[0] if point.dist else owner
            everything.broken[point.name] = Problem(
                f"{owner} -> entry point {point.name} = {point.value} of {group}",
                found="; ".join(map(str, reasons)),
                expected=GROUPS[kind].format(name=point.name),
                hint=f"update or uninstall {package}; the other {kind} work without it",
            )
    return everything


def _require(kind: str, point: EntryPoint) -> None:
    """Raises what it likes where an entry point cannot be used."""
    from samfed_monai.config.variants import read_method

    file = file_of_method(point)
    if kind == "methods":
        read_method(file, point.name)
    elif not point.attr:
        raise refused("value", found=repr(point.value), expected="package.module:name")


def file_of_method(point: EntryPoint) -> Path:
    """The JSON beside the module of an entry point.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    spec = importlib.util.find_spec(point.module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {point.module}")
    return Path(spec.origin).with_name(f"{point.name}.json")


def not_installed(target: str) -> str:
    """How to make a package of the current folder importable, where a ``_target_`` names one; else empty.

    ``samfed`` does not look for code in the current folder, where a bundle may have come with some that no one
    installed.
    """
    name = target.partition(".")[0]
    here = name.isidentifier() and ((Path.cwd() / name).is_dir() or (Path.cwd() / f"{name}.py").is_file())
    if not here or importlib.util.find_spec(name) is not None:
        return ""
    return (
        f"{name} is in this folder, where samfed does not look for code: if you trust it, "
        f"type PYTHONPATH=. SAMFED_ALLOW={name} before the command"
    )
