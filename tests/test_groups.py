"""``make test`` runs the tests of a file, and those that start FLARE, one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import FLARE, group_of


def test_a_file_is_a_group_and_flare_is_two() -> None:
    assert group_of(Path(__file__)) == __file__
    assert group_of(FLARE / "test_site.py") == group_of(FLARE / "test_job.py") == "flare"
    assert group_of(FLARE / "test_faults.py") == group_of(FLARE / "test_system.py") == "flare-deadlines"


def test_groups_reach_what_distributes_them(request: pytest.FixtureRequest) -> None:
    """A version of pytest that pytest-xdist does not know drops them without a word."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("tests are not distributed by group: make test does it")
    assert request.node.nodeid.endswith(f"@{group_of(Path(__file__))}")
