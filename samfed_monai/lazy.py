"""Rooms that open their doors only when somebody walks in: lazy re-exports (PEP 562)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def attach(package: str, exports: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes ``__getattr__`` and ``__dir__`` of a package whose names are imported at first use.

    Args:
        package: the package's ``__name__``.
        exports: public name to the submodule that defines it.

    Example::

        __getattr__, __dir__ = attach(__name__, {"StructureLoss": "structure"})
    """

    def getattr_(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{exports[name]}"), name)

    return getattr_, lambda: sorted(exports)
