"""The same test images side by side over the rows of a comparison."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfed_monai.core.io import write_json
from samfed_monai.data import render_synthetic
from samfed_monai.reports import write_comparison
from samfed_monai.reports.run_data import RunData
from samfed_monai.reports.side_by_side import side_by_side
from tests.reports.runs import write_run

DICES = {"samfed": (0.9, 0.8, 0.7, 0.1), "dp_only": (0.9, 0.2, 0.7, 0.3)}
"""Of the four test images, in the order of their ids."""


@pytest.fixture
def runs(tmp_path):
    """Two rows that scored the same four images of the site a; masks of dp_only are empty, those of samfed whole."""
    listed = render_synthetic(
        tmp_path / "data", sites=1, images_per_site=1, public=1, validation=0, test=4, size=(72, 96)
    )
    listed.sites["a"] = listed.sites.pop("site-1")
    listed.save(tmp_path / "list.json")
    ids = sorted(Path(item.image).stem for item in listed.sites["a"].test)
    where = {"datalist": str(tmp_path / "list.json"), "data_root": str(tmp_path / "data")}
    folders = []
    for row, dices in DICES.items():
        folder = write_run(tmp_path / row, row, 0, 0.8)
        write_json(folder / "run.json", {"config": where})
        masks = folder / "evaluation" / "best" / "a" / "test" / "masks"
        masks.mkdir(parents=True)
        rows = "".join(f"{name},{dice},0.1,1\n" for name, dice in zip(ids, dices, strict=True))
        (masks.parent / "scores.csv").write_text(f"id,dice,iou,hd95\n{rows}")
        for name in ids:
            Image.new("L", (96, 72), 255 * (row == "samfed")).save(masks / f"{name}.png")
        folders.append(folder)
    return [RunData.read(folder) for folder in folders], ids


def test_each_image_is_there_once_with_the_mask_of_every_row(runs):
    read, ids = runs
    images, notes = side_by_side(read)
    assert notes == []
    # means 0.9, 0.5, 0.7, 0.2; the second differs by 0.6
    found = {image.place: image.id for image in images}
    assert found == {"worst": ids[3], "best": ids[0], "median": ids[2], "rows differ most": ids[1]}
    (most,) = (image for image in images if image.place == "rows differ most")
    assert {row: dice for row, (dice, _) in most.masks.items()} == {"samfed": 0.8, "dp_only": 0.2}
    plain, full, empty = (
        np.asarray(Image.open(io.BytesIO(png))).astype(int)
        for png in (most.png, most.masks["samfed"][1], most.masks["dp_only"][1])
    )
    assert plain.shape == full.shape == empty.shape == (240, 320, 3)
    assert (np.abs(full - plain).sum(axis=2) > 0).mean() > 0.9, "right or too much, everywhere"
    assert 0 < (np.abs(empty - plain).sum(axis=2) > 0).mean() < 0.5, "only where the label is"


def test_the_page_has_them_for_its_owner_alone(runs, tmp_path):
    read, ids = runs
    page = write_comparison(tmp_path / "C", read)
    text = page.read_text(encoding="utf-8")
    assert text.count("<img src=") >= 4 * 3
    assert all(name in text for name in ids)
    assert "treat it as you treat the images" in text
    assert stat.S_IMODE(page.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"overlays": False}, "left out on request"),
        ({"data_root": None}, "does not record where its images are"),
        ({"data_root": "/nowhere"}, "a: "),
    ],
)
def test_without_images_the_page_says_why_and_names_none(change, note, runs, tmp_path):
    read, ids = runs
    for run in read:
        run.run["config"] |= change
    images, notes = side_by_side(read)
    assert images == []
    assert note in notes[0]
    page = write_comparison(tmp_path / "C", read)
    assert note in page.read_text(encoding="utf-8")
    assert not any(name in page.read_text(encoding="utf-8") for name in ids if "left out" in note)
    assert stat.S_IMODE(page.stat().st_mode) == 0o644


def test_rows_without_a_seed_in_common_show_no_image(runs):
    read, _ = runs
    read[0].results["seeds"] = {"seed": 7}
    assert side_by_side(read) == ([], ["the rows have no seed in common"])
