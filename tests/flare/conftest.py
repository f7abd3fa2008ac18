"""FLARE's own processes need its package; tests that start them are slow."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from samfed_monai.cli.main import main
from samfed_monai.data import render_synthetic
from samfed_monai.data.synthetic import CLASSES, render_volumes
from tests.commands import forked_commands


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_spec("nvflare") is None:
        skip = pytest.mark.skip(reason="nvflare is not installed: pip install samfed-monai[flare]")
        for item in items:
            if "tests/flare" in str(item.path):
                item.add_marker(skip)


@pytest.fixture(scope="module")
def forked() -> Iterator[None]:
    """FLARE's processes, and those that they start, are forked from one that has torch and MONAI.

    ``test_faults.py``, and a whole system in ``test_equality.py``, have processes that begin as everywhere.
    """
    with forked_commands() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(folder / "python"))
        yield


@pytest.fixture(scope="module")
def allowed() -> Iterator[None]:
    """Jobs may name classes of the tests."""
    from samfed_monai.flare import job

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "NEEDED", (*job.NEEDED, "tests."))
        yield


def rendered(folder: Path, sites: int, **counts: int) -> Path:
    """A folder of small rendered images of labelled sites with ``list.json``."""
    render_synthetic(folder, sites=sites, labelled=True, size=(64, 64), **counts).save(folder / "list.json")
    return folder


@pytest.fixture(scope="session")
def two_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rendered(tmp_path_factory.mktemp("two"), 2, images_per_site=3, public=2, validation=1, test=1)


@pytest.fixture(scope="session")
def three_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many images as may leave a site (five or more)."""
    return rendered(tmp_path_factory.mktemp("three"), 3, images_per_site=6, public=4, validation=5, test=5)


@pytest.fixture(scope="session")
def organs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of slices of two organs with ``list.json``: two sites of three volumes, all labelled."""
    volumes, slices = (tmp_path_factory.mktemp("organs") / name for name in ("volumes", "slices"))
    render_volumes(volumes, volumes=3, public=2, size=(32, 32), depth=6)
    made = ["--slices", str(slices), "--public", "public", "--classes", ",".join(CLASSES), "--no-report"]
    made += ["--validation", "0.3", "--test", "0.3", "--output", str(slices / "list.json")]
    assert main(["prepare", "nifti", str(volumes), *made]) == 0
    return slices
