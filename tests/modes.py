"""Permissions of other users on files and folders."""

from __future__ import annotations

import stat
from pathlib import Path


def open_to_others(*roots: Path) -> list[str]:
    """Lists files, also inside folders, with another mode than 0600, and folders with another than 0700."""
    found = [each for root in roots for each in (root, *(root.rglob("*") if root.is_dir() else ()))]
    modes = {each: stat.S_IMODE(each.stat().st_mode) for each in found}
    return [f"{path}: {mode:o}" for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)]
