"""``make test`` runs the tests of a file, and those that fork, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.conftest import FLARE, FORKING, TESTS, group_of, pytest_collection_modifyitems


def test_each_file_is_group_except_forking_tests() -> None:
    assert group_of(Path(__file__)) == __file__
    forks = re.compile(r"\nfrom tests.(forking|commands) import|\nfrom tests.flare.carried import .*in_both|\bforked\b")
    assert {path for path in TESTS.rglob("test_*.py") if forks.search(path.read_text())} == FORKING
    assert {group_of(path) for path in FORKING} == {"forking"}


def test_forking_then_flare_then_slow_tests_run_first() -> None:
    def item(path: Path, slow: bool = False) -> Any:
        return Mock(path=path, get_closest_marker=lambda name: slow or None)

    short, long, flare, forking = Path("short.py"), Path("long.py"), FLARE / "test_job.py", min(FORKING)
    items = [item(short), item(long, True), item(flare), item(long), item(long, True), item(forking)]
    pytest_collection_modifyitems(items)
    assert [each.path for each in items] == [forking, flare, long, long, long, short]
    assert items[-1].add_marker.call_args.args[0].args == (str(short),)


def test_groups_are_passed_to_xdist(request: pytest.FixtureRequest) -> None:
    """With a version of pytest that it does not support, pytest-xdist silently drops them."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("tests are not distributed by group: make test does it")
    assert request.node.nodeid.endswith(f"@{group_of(Path(__file__))}")
