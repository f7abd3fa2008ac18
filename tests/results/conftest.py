"""The results of a made-up run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.reports.conftest import run_folder  # noqa: F401


@pytest.fixture
def results(run_folder: Path) -> dict:  # noqa: F811
    """Content of a valid ``results.json``."""
    return json.loads((run_folder / "results.json").read_text(encoding="utf-8"))
