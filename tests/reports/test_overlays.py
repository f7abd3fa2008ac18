from __future__ import annotations

import io

import numpy as np
from PIL import Image

from samfed_monai.reports import RunData
from samfed_monai.reports.overlays import GIVE, chosen, draw_overlay, make_overlays


def rows(*dices):
    return [{"id": str(index), "dice": dice} for index, dice in enumerate(dices)]


def test_best_median_and_worst_are_chosen_by_dice():
    picked = chosen(rows(0.2, 0.9, 0.5, 0.7, 0.1))
    assert {place: row["dice"] for place, row in picked.items()} == {"best": 0.9, "median": 0.5, "worst": 0.1}
    assert list(picked) == ["best", "median", "worst"]


def test_fewer_images_give_fewer_overlays():
    assert list(chosen(rows(0.3))) == ["best"]
    assert list(chosen(rows(0.3, 0.4))) == ["best", "worst"]


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
    assert make_overlays(run, datalist=None, data_root=None) == (
        [],
        [f"all sites: {GIVE}"],
    )
    overlays, notes = make_overlays(run, datalist=run.setting("datalist"), data_root=tmp_path)
    assert overlays == []
    assert len(notes) == 4
    assert str(tmp_path) not in " ".join(notes)
    elsewhere = RunData(tmp_path, run.results)
    assert make_overlays(elsewhere, datalist="L", data_root="D")[1][0] == (
        "Basel: no table of test scores in the run folder"
    )
