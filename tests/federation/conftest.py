"""A small synthetic federation, rendered once: two sites, a public set, a list."""

from __future__ import annotations

from pathlib import Path

import pytest

from samfed_monai.data import DataList, render_synthetic


@pytest.fixture(scope="session")
def small_federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``list.json`` and the images of two labelled sites."""
    folder = tmp_path_factory.mktemp("federation")
    datalist = render_synthetic(
        folder, sites=2, labelled=True, images_per_site=4, public=4, validation=2, test=2, size=(64, 64)
    )
    datalist.save(folder / "list.json")
    return folder


@pytest.fixture
def small_list(small_federation: Path) -> DataList:
    """The list of :func:`small_federation`."""
    return DataList.load(small_federation / "list.json")
