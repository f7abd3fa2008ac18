"""What several files of whole jobs run on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import samfed_monai.networks.fpn
import samfed_monai.teacher.fit  # noqa: F401 - both take read_header by name: before it is patched, not while
from samfed_monai.data import render_synthetic
from samfed_monai.data.weak_labels import weaken_list
from tests.federation.fake_sam import fake_sam, fitted


@pytest.fixture(scope="session")
def three_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites that train and ``site-3``, which has nothing but test images."""
    folder = tmp_path_factory.mktemp("three")
    counts: dict[str, Any] = {"images_per_site": 4, "public": 4, "validation": 2, "test": 2, "size": (64, 64)}
    listed = render_synthetic(folder, sites=3, labelled=True, **counts)
    listed.sites["site-3"] = dataclasses.replace(listed.sites["site-3"], unlabelled=[], validation=[])
    listed.save(folder / "list.json")
    return folder


@pytest.fixture(scope="session")
def finished(small_federation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one round, without a warm start; in a folder ``first``."""
    from tests.federation.test_job import job

    folder = tmp_path_factory.mktemp("finished") / "first"
    job(small_federation, folder, rounds=1, warm_start_steps=0).run()
    return folder


@pytest.fixture
def given(tmp_path, monkeypatch) -> SimpleNamespace:
    """Options of a run with a given adapter of :mod:`.fake_sam`; ``loaded`` has the hash of each that was loaded."""
    (tmp_path / "given.safetensors").write_bytes(fitted())
    options = {"variant": "samfed", "rounds": 1, "privacy": {"least_images": 1}}
    options["adapter"] = tmp_path / "given.safetensors"
    return SimpleNamespace(options=options, loaded=fake_sam(tmp_path, monkeypatch))


@pytest.fixture(scope="session")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``list.json``: boxes at one of two sites, points at the other."""
    folder = tmp_path_factory.mktemp("weak")
    counts = {"images_per_site": 2, "public": 1, "validation": 1, "test": 1}
    masks = render_synthetic(folder, sites=2, labelled=True, size=(64, 64), **counts)
    weaken_list(masks, folder, {"site-1": "box", "site-2": "points"}).save(folder / "list.json")
    return folder
