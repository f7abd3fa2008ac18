"""Shared fixtures: where the real images are, and a quiet, single-threaded torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def samfed_data() -> Path:
    """The folder named by ``SAMFED_DATA``; it holds ``data/`` (real images) and ``weights/`` (a SAM checkpoint)."""
    folder = os.environ.get("SAMFED_DATA")
    if not folder:
        pytest.skip("SAMFED_DATA is unset: set it to the folder that holds data/ and weights/ to run this test")
    if not (Path(folder) / "data").is_dir():
        pytest.skip(f"SAMFED_DATA={folder} holds no data/ folder")
    return Path(folder).resolve()
