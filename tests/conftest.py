"""Shared fixtures: the folder of the real images, and a quiet, single-threaded torch."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.speedups import flushed, pictures, search_once, small_networks

if TYPE_CHECKING:
    from samfed_monai.data import DataList

# Before torch is imported: the tests' networks are so small that threads cost more than they save, and the number of
# threads changes sums. Child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
# The half a million objects of torch and MONAI live as long as the process; not scanning them makes tests faster.
gc.disable()

# Properties have a bounded number of examples, without a deadline, which would fail on a busy machine.
settings.register_profile("suite", max_examples=40, deadline=None)
settings.load_profile("suite")

TESTS = Path(__file__).parent
FLARE = TESTS / "flare"
# Test files that fork processes from one that has imported torch, which starts once, in some seconds.
FORKING = {
    *(FLARE / f"test_{name}.py" for name in ("equality", "plain_client", "spy", "submit")),
    *(TESTS / "config" / "test_workflow.py", TESTS / "test_notebooks.py"),
    *(TESTS / "federation" / f"test_{name}.py" for name in ("killed_runs", "process_transport")),
}
# Folders of tests that use the curves of runs.
DRAWING = {"reports", "study"}
# Folders of tests of federations, for which the size of the network does not matter.
OF_FEDERATIONS = {"attacks", "classes", "federation", "methods", "privacy"}


def group_of(path: Path) -> str:
    """Group of tests that run in one process, one after another: those of a file, or all that fork."""
    return "forking" if path in FORKING else str(path)


@pytest.hookimpl(tryfirst=True)  # before xdist's own hook, which reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts tests that fork first, then FLARE, which mostly waits, then the files with most slow tests."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path not in FORKING, not item.path.is_relative_to(FLARE), -slow[item.path]))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item.path)))


def pytest_collection_finish() -> None:
    """After all imports, enables garbage collection, at a low rate and only for new objects."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before the fixtures, some of which run a federation for all tests of a file
def pytest_runtest_setup(item: pytest.Item) -> None:
    small_networks(item.path.relative_to(Path(__file__).parent).parts[0] in OF_FEDERATIONS)
    pictures(bool(DRAWING & {item.path.parent.name, item.path.name}))


@pytest.fixture(autouse=True)
def nothing_is_waited_for() -> None:
    """Skips syncing to the disk, and repeated searches of MONAI's modules."""
    os.fsync = flushed
    search_once()


@pytest.fixture(autouse=True)
def reset_loggers() -> None:
    """Resets changes of the package's loggers by commands and logging files of earlier tests."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("samfed_monai") and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)
            for handler in list(logger.handlers):  # a command's, for the standard error of another test
                logger.removeHandler(handler)


@pytest.fixture(scope="session")
def samfed_data() -> Path:
    """The folder ``SAMFED_DATA`` with ``data/`` (real images) and ``weights/`` (a SAM checkpoint)."""
    folder = os.environ.get("SAMFED_DATA")
    if not folder:
        pytest.skip("SAMFED_DATA is unset: set it to the folder that holds data/ and weights/ to run this test")
    if not (Path(folder) / "data").is_dir():
        pytest.skip(f"SAMFED_DATA={folder} holds no data/ folder")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def small_federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``list.json`` and the images of two labelled sites, rendered once."""
    from samfed_monai.data import render_synthetic

    folder = tmp_path_factory.mktemp("federation")
    datalist = render_synthetic(
        folder, sites=2, labelled=True, images_per_site=4, public=4, validation=2, test=2, size=(64, 64)
    )
    datalist.save(folder / "list.json")
    return folder


@pytest.fixture(scope="session")
def site_lists(small_federation: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The list of ``small_federation`` for each site, with only its own images."""
    from samfed_monai.data import DataList
    from samfed_monai.data.records import write_site_lists

    return write_site_lists(DataList.load(small_federation / "list.json"), tmp_path_factory.mktemp("lists"))


@pytest.fixture
def small_list(small_federation: Path) -> DataList:
    """The list of :func:`small_federation`."""
    from samfed_monai.data import DataList

    return DataList.load(small_federation / "list.json")


def forget_outside() -> None:
    """Clears the caches of installed packages' entry points."""
    from samfed_monai.config import targets, variants

    for cached in (targets.entry_points_of, variants.packaged_methods, variants.installed_networks, variants.methods):
        cached.cache_clear()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs a distribution ``my-lab`` with given files and entry points of one kind during a test."""

    def install(files: dict[str, str], points: str, *, kind: str = "methods") -> None:
        for name, text in {
            **files,
            "my_lab-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: my-lab\nVersion: 1.0\n",
            "my_lab-1.0.dist-info/entry_points.txt": f"[samfed_monai.{kind}]\n{points}\n",
        }.items():
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        forget_outside()

    yield install
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.partition(".")[0].startswith(("samfed_test_lab", "my_lab"))]:
        del sys.modules[name]
    forget_outside()
