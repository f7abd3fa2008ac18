"""Shared fixtures: where the real images are, and a quiet, single-threaded torch."""

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

# Before torch is imported: the tests' networks are tiny, and threads that wait for each other cost more than they save;
# and sums of more threads are other sums. Processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
# Objects of torch and MONAI, half a million, live as long as the process: not looked through, tests take less.
gc.disable()

# A property has a bounded number of examples, and none of them fails where a machine is busy.
settings.register_profile("suite", max_examples=40, deadline=None)
settings.load_profile("suite")

TESTS = Path(__file__).parent
FLARE = TESTS / "flare"
# Whose processes are forked from one that has torch: it takes seconds to start, once for all of them.
FORKING = {
    *(FLARE / f"test_{name}.py" for name in ("equality", "plain_client", "spy", "submit")),
    *(TESTS / "config" / "test_workflow.py", TESTS / "test_notebooks.py"),
    *(TESTS / "federation" / f"test_{name}.py" for name in ("killed_runs", "process_transport")),
}
# Whose tests look at the curves of runs.
DRAWING = {"reports", "study"}
# Whose tests are of federations, which do with a small network what they do with a large one.
OF_FEDERATIONS = {"attacks", "classes", "federation", "methods", "privacy"}


def group_of(path: Path) -> str:
    """What runs in one process, one test after the other: those of a file, and those that fork."""
    return "forking" if path in FORKING else str(path)


@pytest.hookimpl(tryfirst=True)  # before xdist's own hook, which reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that fork begin first, then FLARE, which mostly waits; of the others, files with most slow tests."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path not in FORKING, not item.path.is_relative_to(FLARE), -slow[item.path]))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item.path)))


def pytest_collection_finish() -> None:
    """All is imported: from here on the collector is at work, seldom, and looks at what is new."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before the fixtures, of which some make a run for all tests of a file
def pytest_runtest_setup(item: pytest.Item) -> None:
    small_networks(item.path.relative_to(Path(__file__).parent).parts[0] in OF_FEDERATIONS)
    pictures(bool(DRAWING & {item.path.parent.name, item.path.name}))


@pytest.fixture(autouse=True)
def nothing_is_waited_for() -> None:
    """Neither the disk, nor a search that was made before."""
    os.fsync = flushed
    search_once()


@pytest.fixture(autouse=True)
def loggers_speak() -> None:
    """Undoes what commands and logging files of earlier tests did to the package's loggers."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("samfed_monai") and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)
            for handler in list(logger.handlers):  # a command's own, on the standard error of another test
                logger.removeHandler(handler)


@pytest.fixture(scope="session")
def samfed_data() -> Path:
    """The folder named by ``SAMFED_DATA``; it holds ``data/`` (real images) and ``weights/`` (a SAM checkpoint)."""
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
    """The list of ``small_federation`` as each site has it, with its own images alone."""
    from samfed_monai.data import DataList
    from samfed_monai.data.records import write_site_lists

    return write_site_lists(DataList.load(small_federation / "list.json"), tmp_path_factory.mktemp("lists"))


@pytest.fixture
def small_list(small_federation: Path) -> DataList:
    """The list of :func:`small_federation`."""
    from samfed_monai.data import DataList

    return DataList.load(small_federation / "list.json")


def forget_outside() -> None:
    """What installed packages bring is read again."""
    from samfed_monai.config import targets, variants

    for cached in (targets.brought, variants.packaged_methods, variants.networks_elsewhere):
        cached.cache_clear()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs a distribution ``my-lab`` with these files and entry points of one kind, for the time of a test."""

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
