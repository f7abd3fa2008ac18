"""The packages of samfed_monai have an order, that of CONTRIBUTING.md, and imports go one way through it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "samfed_monai"


def order() -> list[str]:
    """Rooms as CONTRIBUTING.md lists them, from the top."""
    block = (
        (ROOT / "CONTRIBUTING.md")
        .read_text(encoding="utf-8")
        .partition("imports go from the bottom")[2]
        .partition("benchmarks/")[0]
    )
    return [room for room in re.findall(r"(?<![\w/])(\w+)/(?=\s)", block) if (PACKAGE / room).is_dir()]


def imported(path: Path) -> Iterator[str]:
    """Rooms that a module imports when it is imported itself: not what its functions, or a type checker, import."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("samfed_monai."):
            yield node.module.split(".")[1]


def test_every_room_is_in_the_list_once():
    rooms = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    assert sorted(order()) == rooms


def test_imports_go_upwards_only():
    rooms = order()
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {room}"
        for path in sorted(PACKAGE.glob("*/**/*.py"))
        for room in imported(path)
        if rooms.index(room) > rooms.index(path.relative_to(PACKAGE).parts[0])
    ]
    assert wrong == []
