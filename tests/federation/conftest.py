"""What several files of whole jobs run on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import samfed_monai.networks.fpn
import samfed_monai.teacher.fit  # noqa: F401 - both take read_header by name: before it is patched, not while
from samfed_monai.core.io import canonical_hash, sha256_file
from samfed_monai.data import render_synthetic
from samfed_monai.federation.teacher import TeacherStage
from samfed_monai.networks.sam import adapter as adapters
from samfed_monai.networks.sam.adapter import Adapt
from tests.federation.test_site_teacher import Half


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
    """Options of a run with a given adapter of a SAM that is a file; ``loaded`` has the hash of each that was taken."""
    (tmp_path / "sam.pt").write_bytes(b"sam")
    (tmp_path / "given.safetensors").write_bytes(b"adapter")
    header = SimpleNamespace(adapt=Adapt.LORA, base_sha256=sha256_file(tmp_path / "sam.pt"))
    loaded = []

    def load(**keywords):
        loaded.append(sha256_file(keywords["adapter"]))
        teacher = Half(canonical_hash(loaded[-1]))
        teacher.size, teacher.views = 64, 1
        return teacher

    monkeypatch.setattr("samfed_monai.networks.sam.teacher.Teacher.load", load)
    monkeypatch.setattr(adapters, "read_header", lambda path: header)
    monkeypatch.setattr(TeacherStage, "checkpoint", lambda self: tmp_path / "sam.pt")
    options = {"variant": "samfed", "rounds": 1, "privacy": {"least_images": 1}}
    return SimpleNamespace(options={**options, "adapter": tmp_path / "given.safetensors"}, loaded=loaded)
