"""What of a network is shared and what is personal, as patterns of its state dict's names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from samfed_monai.errors import Problems


@dataclass(frozen=True)
class KeyPatterns:
    """Two allow-lists; what neither names is frozen: it is the same everywhere and never sent.

    Args:
        shared: shell-style patterns (``*``, ``?``, ``[ab]``; ``*`` crosses dots) of names that are aggregated.
        personal: of names that never leave their site.
    """

    shared: tuple[str, ...]
    personal: tuple[str, ...]


@dataclass(frozen=True)
class KeySplit:
    """Names of one state dict, each in exactly one part, in the state dict's order."""

    shared: tuple[str, ...]
    personal: tuple[str, ...]
    frozen: tuple[str, ...]


def split_keys(names: Iterable[str], patterns: KeyPatterns, *, where: str = "network") -> KeySplit:
    """Sorts the names of a state dict by ``patterns``.

    Args:
        names: of the state dict.
        patterns: what is shared and what is personal.
        where: whose they are, for messages.

    Raises:
        Refused: a pattern that matches no name; a name that is both shared and personal; all at once.
    """
    listed, problems = list(names), Problems()
    parts = {
        part: _matched(listed, getattr(patterns, part), f"{where} -> {part}", problems)
        for part in ("shared", "personal")
    }
    for name in listed:
        if name in parts["shared"] and name in parts["personal"]:
            mend = "let one pattern alone match it"
            problems.add(where, found=f"{name!r} both shared and personal", expected="one of both", mend=mend)
    problems.refuse_if_any()
    shared, personal = (tuple(name for name in listed if name in parts[part]) for part in ("shared", "personal"))
    return KeySplit(shared, personal, tuple(name for name in listed if name not in {*shared, *personal}))


def _matched(names: Sequence[str], patterns: Sequence[str], where: str, problems: Problems) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            mend = "correct the pattern or leave it out"
            problems.add(where, found=f"no name like {pattern!r}", expected="at least one", mend=mend)
        found.update(matching)
    return found
