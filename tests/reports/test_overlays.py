from __future__ import annotations

import io
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfed_monai.core.io import read_json, to_csv, write_json, write_text
from samfed_monai.data import DataList, Site
from samfed_monai.reports import Report, RunData
from samfed_monai.reports.overlays import (
    GIVE,
    OUTLINES,
    RIM,
    chosen,
    draw_outlines,
    draw_overlay,
    make_overlays,
    make_own_images,
)
from tests.reports.runs import NO_MASKS


@pytest.mark.parametrize(
    ("dices", "picked"),
    [
        ([0.2, 0.9, 0.5, 0.7, 0.1], {"best": 0.9, "median": 0.5, "worst": 0.1}),
        ([0.3], {"best": 0.3}),
        ([0.3, 0.4], {"best": 0.4, "worst": 0.3}),
    ],
)
def test_best_median_and_worst_are_chosen_by_dice_as_far_as_there_are_images(dices, picked):
    found = chosen([{"id": str(index), "dice": dice} for index, dice in enumerate(dices)])
    assert [(place, row["dice"]) for place, row in found.items()] == list(picked.items())


def test_right_and_wrong_pixels_have_their_colours():
    image = np.full((5, 9, 3), 100, np.uint8)
    label, prediction = np.zeros((2, 5, 9), bool)
    label[:, :6] = prediction[:, 3:8] = True
    overlay = draw_overlay(image, label, prediction)
    assert tuple(overlay[2, 1]) == (38, 109, 148)  # missed: 0.38 * 100 + 0.62 * blue
    assert tuple(overlay[2, 4]) == (70, 117, 104)  # found: 0.70 * 100 + 0.30 * green
    assert tuple(overlay[2, 7]) == (170, 96, 38)  # too much: 0.38 * 100 + 0.62 * vermilion
    assert tuple(overlay[2, 5]) == (255, 255, 255)  # outline of the label
    assert tuple(overlay[2, 8]) == (100, 100, 100)


def test_every_site_shows_three_images(run_folder):
    run = RunData.read(run_folder)
    overlays, notes = make_overlays(run, datalist=run.setting("datalist"), data_root=run.setting("data_root"))
    assert notes == []
    assert [(o.site, o.place) for o in overlays[:3]] == [("Basel", "best"), ("Basel", "median"), ("Basel", "worst")]
    assert len(overlays) == 12
    assert overlays[-1].dice == 0.0
    picture = Image.open(io.BytesIO(overlays[0].png))
    assert picture.size == (320 + 6 + 320, 320)


def test_what_cannot_be_read_is_noted_not_fatal(run_folder, tmp_path):
    run = RunData.read(run_folder)
    assert make_overlays(run, datalist=None, data_root=None) == ([], [f"all sites: {GIVE}"])
    overlays, notes = make_overlays(run, datalist=run.setting("datalist"), data_root=tmp_path)
    assert overlays == []
    assert len(notes) == 4
    assert str(tmp_path) not in " ".join(notes)
    elsewhere = RunData(tmp_path, run.results)
    assert make_overlays(elsewhere, datalist="L", data_root="D")[1][0] == (
        "Basel: no table of test scores in the run folder"
    )


def test_outlines_lie_on_a_dark_rim_and_the_student_s_is_on_top():
    image = np.full((20, 20, 3), 100, np.uint8)
    teacher, student = np.zeros((2, 20, 20), bool)
    teacher[3:9, 3:9], student[3:17, 6:16] = True, True
    drawn = draw_outlines(image, {"teacher": teacher, "student": student})
    assert tuple(drawn[3, 4]) == OUTLINES["teacher"]
    assert tuple(drawn[3, 7]) == OUTLINES["student"], "where both run"
    assert tuple(drawn[5, 15]) == OUTLINES["student"]
    assert tuple(drawn[1, 4]) == (RIM,) * 3
    assert tuple(drawn[0, 0]) == tuple(drawn[10, 11]) == (100, 100, 100)


@pytest.fixture(scope="module")
def apart(run_folder: Path, tmp_path_factory) -> Path:
    """A copy of the run in which no image of Porto has a mask, and its student and teacher were compared."""
    folder, data = tmp_path_factory.mktemp("apart") / "R", run_folder.parent / "data"
    shutil.copytree(run_folder, folder)
    listed = DataList.load(data / "list.json")
    items = listed.sites["Porto"].test
    listed.sites["Porto"] = Site(unlabelled=[replace(item, label=None, label_sha256=None) for item in items])
    listed.save(folder / "list.json")
    results = read_json(folder / "results.json")
    for model in (results, *results["models"].values()):
        model["sites"]["Porto"] = NO_MASKS
    write_json(folder / "results.json", results)
    own = (folder / "evaluation/best/Porto/test").rename(folder / "evaluation/best/Porto/unlabelled")
    (own / "masks").rename(own / "student")
    shutil.copytree(data / "Porto" / "masks", own / "teacher")
    names = [Path(item.image).stem for item in items]
    masks = [f"{name}.png" for name in names[:6]] + [""]
    rows = [(names[i], item.sha256, 0.1 * (i + 1), masks[i]) for i, item in enumerate(items)]
    write_text(own / "disagreement.csv", to_csv(["id", "image_sha256", "dice", "mask"], rows))
    return folder


def test_a_site_without_masks_shows_where_student_and_teacher_differ_most(apart, run_folder, monkeypatch):
    places = {"datalist": apart / "list.json", "data_root": run_folder.parent / "data"}
    own, notes = make_own_images(RunData.read(apart), **places)
    assert notes == []
    assert {image.site for image in own} == {"Porto"}
    assert [round(image.dice, 1) for image in own] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert Image.open(io.BytesIO(own[0].png)).size == (320 + 6 + 320, 320)
    monkeypatch.setattr("samfed_monai.reports.html.run_figures", lambda run: [])
    page = Report(apart, **places).write().read_text(encoding="utf-8")
    assert "0.400 on average over 7 images, below 0.5 on 4" in page
    assert page.index("Dice between them 0.100") < page.index("Dice between them 0.200")
    assert "No overlays for" not in page
    assert "This file shows images" in page
    assert stat.S_IMODE((apart / "figures" / "own-3-1.png").stat().st_mode) == 0o600
    hidden = Report(apart, **places, overlays=False).write().read_text(encoding="utf-8")
    assert not list((apart / "figures").glob("own-*"))
    assert "Porto test" not in hidden
    assert "Images without masks" not in hidden


def test_where_its_images_are_not_the_numbers_stay(apart, tmp_path):
    own, notes = make_own_images(RunData.read(apart), datalist=apart / "list.json", data_root=tmp_path)
    assert (own, len(notes)) == ([], 1)
    assert str(tmp_path) not in notes[0]
