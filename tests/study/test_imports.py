"""The package stands without the study, and reports read what methods declare, never their code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "samfed_monai"


def imported(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return named | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("", ("study", "tests")),
        ("reports", ("samfed_monai.federation", "samfed_monai.methods", "samfed_monai.handlers")),
    ],
)
def test_no_file_imports_what_it_must_not(room, forbidden):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    found = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in files
        for name in imported(path)
        if name.startswith(tuple(f"{package}." for package in forbidden)) or name in forbidden
    }
    assert found == set()
