"""Records of one site, and of none."""

from __future__ import annotations

from pathlib import Path

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data import DataList, render_synthetic
from samfed_monai.parts import site_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sites")
    settings = {"images_per_site": 3, "public": 2, "validation": 1, "test": 1, "size": (64, 64)}
    render_synthetic(folder, sites=1, labelled=True, **settings).save(folder / "list.json")  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("site", ["", "public", "server", None])
def test_the_server_has_no_images_of_its_own(site: str | None) -> None:
    assert site_records(datalist="nowhere.json", data_root=".", split="unlabelled", site=site) == []


def test_labels_of_unlabelled_images_only_when_asked_for(folder: Path) -> None:
    site = next(iter(DataList.load(folder / "list.json").sites))

    def records(**kwargs: bool | int) -> list[dict]:
        return site_records(
            datalist=folder / "list.json",
            data_root=folder,
            split="unlabelled",
            site=site,
            **kwargs,  # type: ignore[arg-type]
        )

    assert all("label" in record for record in records(with_labels=True))
    assert not any("label" in record for record in records(with_labels=False))
    assert len(records(limit=2)) == 2


def test_an_unknown_site_is_refused(folder: Path) -> None:
    with pytest.raises(Refused, match="site: expected one of"):
        site_records(datalist=folder / "list.json", data_root=folder, split="test", site="sito")
