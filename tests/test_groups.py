"""``make test`` runs the tests of a file, and those of some files, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.conftest import FLARE, GROUPS, TESTS, group_of, pytest_collection_modifyitems


def test_a_file_is_a_group_but_for_those_that_wait_for_deadlines_and_those_that_fork() -> None:
    assert group_of(Path(__file__)) == __file__
    assert group_of(FLARE / "test_faults.py") == group_of(FLARE / "test_submit.py") == "deadlines"
    forks = re.compile(r"\nfrom tests.forking import|\nfrom tests.flare.carried import .*in_both")
    assert {path for path in TESTS.rglob("test_*.py") if forks.search(path.read_text())} == GROUPS["forking"]
    assert all(path.is_file() for files in GROUPS.values() for path in files)


def test_groups_begin_first_then_what_starts_flare_then_files_with_most_slow_tests() -> None:
    def item(path: Path, slow: bool = False) -> Any:
        return Mock(path=path, get_closest_marker=lambda name: slow or None)

    short, long, system, flare = Path("short.py"), Path("long.py"), FLARE / "test_submit.py", FLARE / "test_spy.py"
    forking = TESTS / "config" / "test_workflow.py"
    items = [item(short), item(long, True), item(flare, True), item(long), item(long, True), item(forking)]
    items.append(item(system, True))
    pytest_collection_modifyitems(items)
    assert [each.path for each in items] == [system, forking, flare, long, long, long, short]
    assert items[-1].add_marker.call_args.args[0].args == (str(short),)


def test_groups_reach_what_distributes_them(request: pytest.FixtureRequest) -> None:
    """A version of pytest that pytest-xdist does not know drops them without a word."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("tests are not distributed by group: make test does it")
    assert request.node.nodeid.endswith(f"@{group_of(Path(__file__))}")
