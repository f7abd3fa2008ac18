"""The results of a made-up run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.reports.conftest import make_run


@pytest.fixture
def results(tmp_path: Path) -> dict:
    """Content of a valid ``results.json``."""
    return json.loads((make_run(tmp_path / "run", tmp_path / "images") / "results.json").read_text(encoding="utf-8"))
