"""Imports between the packages of samfed_monai follow the order in CONTRIBUTING.md.

The package does not import the study or the tests, and reports read declarations of methods, never their code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "samfed_monai"


def order() -> list[str]:
    """Packages in the order of CONTRIBUTING.md, from the top."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text.partition("imports go from the bottom")[2].partition("benchmarks/")[0]
    return [room for room in re.findall(r"(?<![\w/])(\w+)/(?=\s)", block) if (PACKAGE / room).is_dir()]


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def imported(nodes: Sequence[ast.AST]) -> set[str]:
    """Modules that the nodes import."""
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return named | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_every_package_is_listed_once():
    assert sorted(order()) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def test_imports_follow_package_order():
    """Only imports at module level count, not those in functions or for a type checker."""
    rooms = order()
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, tree in TREES.items()
        for name in imported(tree.body)
        if name.startswith("samfed_monai.") and path.parent != PACKAGE
        if rooms.index(name.split(".")[1]) > rooms.index(path.relative_to(PACKAGE).parts[0])
    ]
    assert wrong == []


def test_modules_import_each_other_in_no_circle():  # imports in functions and for a type checker count, too
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): tree for path, tree in TREES.items()}
    graph = {name: imported(list(ast.walk(tree))) & modules.keys() for name, tree in modules.items()}
    assert {*TopologicalSorter(graph).static_order()} == modules.keys()  # a circle is a CycleError that names it


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("", ("study", "tests")),
        ("reports", ("samfed_monai.federation", "samfed_monai.methods", "samfed_monai.handlers")),
    ],
)
def test_forbidden_imports_are_absent(room, forbidden):
    trees = {path: tree for path, tree in TREES.items() if path.is_relative_to(PACKAGE / room)}
    wrong = {(str(path), name) for path, tree in trees.items() for name in imported(list(ast.walk(tree)))}
    assert [each for each in wrong if f"{each[1]}.".startswith(tuple(f"{package}." for package in forbidden))] == []
