"""Which software computed a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("samfed-monai", "monai", "torch", "pytorch-ignite", "segment-anything", "timm", "numpy")


def versions() -> dict[str, str]:
    """Version by package, and Python's own; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
