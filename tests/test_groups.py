"""``make test`` runs the tests of a file, and those that start FLARE, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.conftest import FLARE, FORKING, group_of, pytest_collection_modifyitems


def test_a_file_is_a_group_and_flare_is_two() -> None:
    assert group_of(Path(__file__)) == __file__
    assert group_of(FLARE / "test_site.py") == group_of(FLARE / "test_job.py") == "flare"
    assert group_of(FLARE / "test_faults.py") == group_of(FLARE / "test_submit.py") == "flare-deadlines"


def test_all_that_fork_are_in_one_group() -> None:
    tests = FLARE.parent
    forking = {path for path in tests.rglob("test_*.py") if "\nfrom tests.forking import" in path.read_text()}
    assert {path.relative_to(tests).as_posix() for path in forking if FLARE not in path.parents} == FORKING
    assert {group_of(path) for path in forking} == {"flare"}


def test_files_with_most_slow_tests_begin_first_after_those_of_flare() -> None:
    def item(path: Path, slow: bool = False) -> Any:
        return Mock(path=path, get_closest_marker=lambda name: slow or None)

    short, long, system, flare = Path("short.py"), Path("long.py"), FLARE / "test_submit.py", FLARE / "test_job.py"
    items = [item(short), item(long, True), item(flare), item(long), item(long, True), item(system, True)]
    pytest_collection_modifyitems(items)
    assert [each.path for each in items] == [system, flare, long, long, long, short]
    assert items[-1].add_marker.call_args.args[0].args == (str(short),)


def test_groups_reach_what_distributes_them(request: pytest.FixtureRequest) -> None:
    """A version of pytest that pytest-xdist does not know drops them without a word."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("tests are not distributed by group: make test does it")
    assert request.node.nodeid.endswith(f"@{group_of(Path(__file__))}")
