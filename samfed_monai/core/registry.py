"""A registry of named builders, which a JSON file may name and a user may extend."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from samfed_monai.core.errors import did_you_mean, failure_of, refused

T = TypeVar("T")


@dataclass(frozen=True)
class Elsewhere:
    """An object that is imported when it is asked for.

    Args:
        place: ``package.module.name``.
        owner: who brings it, ``my-lab 1.0``, for messages.
    """

    place: str
    owner: str = ""

    def load(self, where: str) -> Any:
        """The object.

        Args:
            where: the place that names it, for the message.

        Raises:
            Refused: it cannot be imported, whatever its package raises, or is not there.
        """
        module, _, name = self.place.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)
        except Exception as error:  # of another package: its import may raise anything
            found = f"{self.place}, which fails: {failure_of(error)}"
            owner = self.owner or module.partition(".")[0]
            hint = f"update or uninstall {owner.partition(' ')[0]}"
            raise refused(where, found=found, expected=f"what {owner} brings", hint=hint) from error


class Registry(Generic[T]):
    """Maps a name to an object, and answers an unknown name with the names that exist.

    Args:
        kind: what is registered, for messages ("client network", "agreement rule").
        elsewhere: gives names of further objects and where they are; imported when asked for.

    Example::

        NETWORKS: Registry[Callable[..., nn.Module]] = Registry("client network")

        @NETWORKS.register("my_unet")
        def my_unet(**kwargs): ...
    """

    def __init__(self, kind: str, *, elsewhere: Callable[[], Mapping[str, Elsewhere]] = dict) -> None:
        self.kind, self.elsewhere = kind, elsewhere
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files its object under ``name``; a name can be taken only once."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already; choose another name")

        def add(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        return self.named(name, where=self.kind)

    def named(self, name: str, *, where: str) -> T:
        """The entry of that name, named at ``where``.

        Raises:
            Refused: there is none.
        """
        if name in self._entries:
            return self._entries[name]
        if name in (elsewhere := self.elsewhere()):
            found: T = elsewhere[name].load(where)
            return found
        hint = did_you_mean(str(name), self) or "see the names expected"
        raise refused(where, found=repr(name), expected=f"one of {list(self)}", hint=hint)

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self.elsewhere()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._entries, *self.elsewhere()}))
