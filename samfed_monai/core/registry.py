"""A registry of named builders for JSON files, which users can extend."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from samfed_monai.core.errors import did_you_mean, error_text, refused

T = TypeVar("T")


@dataclass(frozen=True)
class Deferred:
    """An object that is imported on first use.

    Args:
        place: ``package.module.name``.
        owner: the package that provides it, such as ``my-lab 1.0``, for messages.
    """

    place: str
    owner: str = ""

    def load(self, where: str) -> Any:
        """Imports and returns the object.

        Args:
            where: the place that names it, for the message.

        Raises:
            Refused: the import fails with any exception, or the object does not exist.
        """
        module, _, name = self.place.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)
        except Exception as error:  # of another package: its import may raise anything
            found = f"{self.place}, which cannot be imported: {error_text(error)}"
            owner = self.owner or module.partition(".")[0]
            hint = f"update or uninstall {owner.partition(' ')[0]}"
            raise refused(where, found=found, expected=f"an object of {owner}", hint=hint) from error


class Registry(Generic[T]):
    """Maps names to objects; an unknown name is refused with the list of known names.

    Args:
        kind: kind of the registered objects, for messages ("client network", "agreement rule").
        elsewhere: returns further objects by name, which are imported on first use.

    Example::

        NETWORKS: Registry[Callable[..., nn.Module]] = Registry("client network")

        @NETWORKS.register("my_unet")
        def my_unet(**kwargs): ...
    """

    def __init__(self, kind: str, *, elsewhere: Callable[[], Mapping[str, Deferred]] = dict) -> None:
        self.kind, self.elsewhere = kind, elsewhere
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers its object under ``name``; each name can be used only once."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already; choose another name")

        def add(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        return self.named(name, where=self.kind)

    def named(self, name: str, *, where: str) -> T:
        """Returns the entry of a name; ``where`` is the place for the error message.

        Raises:
            Refused: the name is unknown.
        """
        if name in self._entries:
            return self._entries[name]
        if name in (elsewhere := self.elsewhere()):
            found: T = elsewhere[name].load(where)
            return found
        hint = did_you_mean(str(name), self) or "choose one of the expected names"
        raise refused(where, found=repr(name), expected=f"one of {list(self)}", hint=hint)

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self.elsewhere()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._entries, *self.elsewhere()}))
