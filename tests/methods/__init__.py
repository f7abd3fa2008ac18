"""Tests of single methods, a file each, named as its module; ``tests/delete_methods.py`` deletes one at a time."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from samfed_monai.config import known_variants


def present(*names: str) -> list[str]:
    """Those of ``names`` that are installed, in the order given: what a test of several methods runs."""
    known = known_variants()
    return [name for name in names if name in known]


def pick(rows: Iterable[tuple]) -> list[tuple]:
    """Rows of a parametrization whose first entry is the name of an installed variant."""
    return [row for row in rows if present(row[0])]


def needs(*names: str) -> pytest.MarkDecorator:
    """Mark of a test that is skipped where one of these variants is not installed."""
    missing = [name for name in names if not present(name)]
    return pytest.mark.skipif(bool(missing), reason=f"no such method: {', '.join(missing)}")
