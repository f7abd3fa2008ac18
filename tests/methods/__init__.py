"""Tests of single methods, a file each, named as its module; ``tests/delete_methods.py`` deletes one at a time."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from samfed_monai.config import known_variants


def present(*names: str) -> list[str]:
    """Those of ``names`` that are installed, in the given order, for a test of several methods."""
    known = known_variants()
    return [name for name in names if name in known]


def pick(rows: Iterable[tuple]) -> list[tuple]:
    """Rows of a parametrization that begin with the name of an installed variant."""
    return [row for row in rows if present(row[0])]


def needs(*names: str) -> pytest.MarkDecorator:
    """Mark of a test that is skipped where one of these variants is not installed."""
    missing = [name for name in names if not present(name)]
    return pytest.mark.skipif(bool(missing), reason=f"no such method: {', '.join(missing)}")


def engine_of(network: Any = None, **state: Any) -> Any:
    """The parts of a trainer that a term uses in its first step: network, inferer and state."""
    state = {"iteration": 1, "round": 0, "rounds": 1, **state}
    return SimpleNamespace(network=network, inferer=lambda image, called: called(image), state=SimpleNamespace(**state))
