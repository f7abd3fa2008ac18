"""What processes of the tests need not do again and again, where no test can see it."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any


def flushed(descriptor: int) -> None:
    """In place of ``os.fsync``: only a power failure would show the difference.

    Tests that a file *is* flushed put a function of their own there.
    """


def search_once() -> None:
    """MONAI's ``ConfigParser`` looks through all its modules, each parser anew; here one does for all.

    It does nothing while MONAI is not imported: that takes seconds, and many tests need none.
    """
    parsing = sys.modules.get("monai.bundle.config_item")
    if parsing is not None and parsing.ComponentLocator._find_classes_or_functions is not _classes:
        _search.append(parsing.ComponentLocator._find_classes_or_functions)
        parsing.ComponentLocator._find_classes_or_functions = _classes


def without_figures(patch: Any) -> None:
    """Reports of whole runs have no figures, half of the time that a small run takes; ``tests/reports`` draws them.

    Args:
        patch: a ``pytest.MonkeyPatch``.
    """
    patch.setattr("samfed_monai.reports.html.run_figures", lambda run: [])


_search: list = []


def _classes(locator: object, names: list[str]) -> dict[str, list[str]]:
    return _of_modules(tuple(names))


@cache
def _of_modules(names: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = _search[0](None, names)
    return found


search_once()  # for processes that import this module once they have MONAI: tests/forking.py
