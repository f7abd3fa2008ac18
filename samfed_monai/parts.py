"""What version 0.1 called :mod:`samfed_monai.bundle`: its names are found here for one version more, with a warning."""

from __future__ import annotations

from typing import Any

from samfed_monai.core.moved import found_where_moved


def _nothing_else(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__getattr__ = found_where_moved(__name__, _nothing_else)
