"""What processes of the tests need not do again and again, where no test can see it."""

from __future__ import annotations

import os
import sys
from functools import cache


def hasten() -> None:
    """Has this process neither wait for its disk nor search MONAI for its classes more than once; call it any time.

    Only a power failure shows whether a file was flushed: tests that it *is* flushed put a function of their own there.
    MONAI's ``ConfigParser`` looks through all its modules, each parser anew; here one does for all.
    """
    os.fsync = _flushed
    parsing = sys.modules.get("monai.bundle.config_item")  # importing it takes seconds, and many tests need no MONAI
    if parsing is not None and parsing.ComponentLocator._find_classes_or_functions is not _classes:
        _search.append(parsing.ComponentLocator._find_classes_or_functions)
        parsing.ComponentLocator._find_classes_or_functions = _classes


_search: list = []


def _flushed(descriptor: int) -> None:
    """Instead of ``os.fsync``."""


def _classes(locator: object, names: list[str]) -> dict[str, list[str]]:
    return _of_modules(tuple(names))


@cache
def _of_modules(names: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = _search[0](None, names)
    return found


hasten()
