"""What several files of whole jobs run on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.data import render_synthetic


@pytest.fixture(scope="session")
def three_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites that train and ``site-3``, which has nothing but test images."""
    folder = tmp_path_factory.mktemp("three")
    counts: dict[str, Any] = {"images_per_site": 4, "public": 4, "validation": 2, "test": 2, "size": (64, 64)}
    listed = render_synthetic(folder, sites=3, labelled=True, **counts)
    listed.sites["site-3"] = dataclasses.replace(listed.sites["site-3"], unlabelled=[], validation=[])
    listed.save(folder / "list.json")
    return folder
