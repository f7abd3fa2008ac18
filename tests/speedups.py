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


def without_pictures(patch: Any) -> None:
    """A run and its report have no curves, up to half of the time that a small run takes.

    It does nothing while what draws them is not imported: that takes a second, and many tests need none.

    Args:
        patch: a ``pytest.MonkeyPatch``.
    """
    if (report := sys.modules.get("samfed_monai.reports.html")) is not None:
        patch.setattr(report, "run_figures", lambda run: [])
    if (drawing := sys.modules.get("samfed_monai.reports.figures")) is not None:
        patch.setattr(drawing, "progress", lambda rows, rounds: b"a picture")


_search: list = []


def _classes(locator: object, names: list[str]) -> dict[str, list[str]]:
    return _of_modules(tuple(names))


@cache
def _of_modules(names: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = _search[0](None, names)
    return found


search_once()  # for processes that import this module once they have MONAI: tests/forking.py
