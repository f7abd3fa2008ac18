"""Which of a network's tensors are shared and which stay at the site: patterns, declared once."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from samfed_monai.errors import Problems

_T = TypeVar("_T")


class SharedKeys:
    """Splits a network's names into ``shared`` and ``personal`` ones.

    Patterns are those of a shell (``*``, ``?``, ``[abc]``), matched against whole names, upper and lower case apart.
    FedPer keeps a head (``personal=["head.*"]``), FedBN its batch norms (``personal=["*.bn?.*"]``), pFedSAM its local
    experts.

    Args:
        names: of the network's state dict.
        personal: patterns of names that never leave the site.
        shared: patterns of names that do; ``None`` shares whatever is not personal.

    Raises:
        Refused: a pattern that matches nothing, which is a misspelt one; a name that is both, or, with ``shared``,
            neither; nothing left to share.

    Example::

        SharedKeys(network.state_dict(), personal=["experts.local.*"]).shared
    """

    def __init__(
        self, names: Iterable[str], *, personal: Sequence[str] = (), shared: Sequence[str] | None = None
    ) -> None:
        self.names = tuple(names)
        problems = Problems()
        stays = self._matched(personal, "personal", problems)
        goes = set(self.names) - stays if shared is None else self._matched(shared, "shared", problems)
        for name in sorted(goes & stays):
            problems.add(f"keys -> {name}", found="both shared and personal", expected="one of the two")
        for name in sorted(set(self.names) - goes - stays):
            problems.add(f"keys -> {name}", found="neither shared nor personal", expected="one of the two")
        if not goes:
            problems.add("keys -> shared", found="no name", expected="at least one that leaves the site")
        problems.refuse_if_any()
        #: In the network's own order.
        self.shared: tuple[str, ...] = tuple(name for name in self.names if name in goes)
        self.personal: tuple[str, ...] = tuple(name for name in self.names if name in stays)

    def only_shared(self, state: Mapping[str, _T]) -> dict[str, _T]:
        """The shared part of ``state``."""
        return {name: state[name] for name in self.shared if name in state}

    def only_personal(self, state: Mapping[str, _T]) -> dict[str, _T]:
        """The personal part of ``state``."""
        return {name: state[name] for name in self.personal if name in state}

    def _matched(self, patterns: Sequence[str], side: str, problems: Problems) -> set[str]:
        if isinstance(patterns, str):
            problems.add(f"keys -> {side}", found="a text", expected="a list of patterns", mend="put it in brackets")
            return set()
        found: set[str] = set()
        for pattern in patterns:
            matches = {name for name in self.names if fnmatch.fnmatchcase(name, pattern)}
            if not matches:
                expected = f"a pattern of the network's {len(self.names)} names"
                problems.add(f"keys -> {side}", found=f"{pattern!r}, which matches none", expected=expected)
            found |= matches
        return found
