"""Masks drawn on pictures, as polygons, areas and outlines; the images in a report."""

from __future__ import annotations

import io
import json
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Ring
from PIL import Image

from samfed_monai.core.io import read_json, to_csv, write_json, write_text
from samfed_monai.data import DataList, Site
from samfed_monai.reports import Report, RunData
from samfed_monai.reports.overlays import (
    NO_LIST,
    OTHER_LIST,
    area_of,
    best_median_worst,
    draw_outlines,
    draw_overlay,
    geojson_of,
    make_overlays,
    make_own_images,
    outlined,
    polygons_of,
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
def test_best_median_and_worst_images_are_chosen_by_dice(dices, picked):
    found = best_median_worst([{"id": str(index), "dice": dice} for index, dice in enumerate(dices)])
    assert [(place, row["dice"]) for place, row in found.items()] == list(picked.items())


def test_overlay_colours_mark_correct_and_wrong_pixels():
    image = np.full((5, 9, 3), 100, np.uint8)
    label, prediction = np.zeros((2, 5, 9), bool)
    label[:, :6] = prediction[:, 3:8] = True
    overlay = draw_overlay(image, label, prediction)
    assert tuple(overlay[2, 1]) == (38, 109, 148)  # missed: 0.38 * 100 + 0.62 * blue
    assert tuple(overlay[2, 4]) == (70, 117, 104)  # found: 0.70 * 100 + 0.30 * green
    assert tuple(overlay[2, 7]) == (170, 96, 38)  # too much: 0.38 * 100 + 0.62 * vermilion
    assert tuple(overlay[2, 5]) == (255, 255, 255)  # outline of the label
    assert tuple(overlay[2, 8]) == (100, 100, 100)


def test_every_site_has_three_overlays(run_folder):
    run = RunData.read(run_folder)
    overlays, notes = make_overlays(run, datalist=run.setting("datalist"), data_root=run.setting("data_root"))
    assert notes == []
    assert [(o.site, o.place) for o in overlays[:3]] == [("Basel", "best"), ("Basel", "median"), ("Basel", "worst")]
    assert len(overlays) == 12
    assert overlays[-1].dice == 0.0
    assert Image.open(io.BytesIO(overlays[0].png)).size == (320 + 6 + 320, 320)


def test_unreadable_images_are_noted(run_folder, tmp_path, caplog):
    run = RunData.read(run_folder)
    for datalist in (None, "L"):
        assert make_overlays(run, datalist=datalist, data_root=None) == ([], [f"all sites: {NO_LIST}"])
    overlays, notes = make_overlays(run, datalist=run.setting("datalist"), data_root=tmp_path)
    assert overlays == []
    assert len(notes) == 4
    assert str(tmp_path) not in " ".join(notes)
    other = tmp_path / "other.json"
    replace(DataList.load(run.setting("datalist")), name="other").save(other)
    assert make_overlays(run, datalist=other, data_root=run.setting("data_root")) == ([], [f"all sites: {OTHER_LIST}"])
    Report(shutil.copytree(run_folder, tmp_path / "run"), datalist=other).write()
    assert f"{other}: no test images in the report: {OTHER_LIST}" in caplog.messages
    _, notes = make_overlays(RunData(tmp_path, run.results), datalist="L", data_root="D")
    assert notes[0] == "Basel: no table of test scores in the run folder"


def test_replaced_files_are_not_shown(run_folder, unlabelled_run, tmp_path):
    data = shutil.copytree(run_folder.parent / "data", tmp_path / "data")
    run = RunData.read(run_folder)
    first = make_overlays(run, datalist=run.setting("datalist"), data_root=data)[0][0]
    Image.new("L", (64, 64)).save(data / "Basel" / "masks" / f"{first.id}.png")
    Image.new("RGB", (64, 64)).save(min((data / "Porto" / "images").iterdir()))
    overlays, notes = make_overlays(run, datalist=run.setting("datalist"), data_root=data)
    assert {each.site for each in overlays}.intersection(("Basel", "Lübeck", "São Paulo")) == {"Lübeck", "São Paulo"}
    assert re.fullmatch(rf"Basel: {first.id}.png: expected \w{{12}}…, found SHA-256 \w{{12}}…", notes[0])
    own = make_own_images(RunData.read(unlabelled_run), datalist=unlabelled_run / "list.json", data_root=data)
    assert list(map(len, own)) == [0, 1]


def test_outlines_have_dark_rim_and_student_on_top():
    image = np.full((20, 20, 3), 100, np.uint8)
    teacher, student = np.zeros((2, 20, 20), bool)
    teacher[3:9, 3:9], student[3:17, 6:16] = True, True
    drawn = draw_outlines(image, {"teacher": teacher, "student": student})
    assert tuple(drawn[3, 4]) == (86, 180, 233), "sky blue"
    assert tuple(drawn[3, 7]) == (240, 228, 66), "where both run"
    assert tuple(drawn[5, 15]) == (240, 228, 66), "yellow"
    assert tuple(drawn[1, 4]) == (32, 32, 32), "the rim"
    assert tuple(drawn[0, 0]) == tuple(drawn[10, 11]) == (100, 100, 100)


@pytest.fixture(scope="module")
def unlabelled_run(run_folder: Path, tmp_path_factory) -> Path:
    """A copy of the run in which no image of Porto has a mask, and its student and teacher were compared."""
    folder, data = tmp_path_factory.mktemp("run") / "R", run_folder.parent / "data"
    shutil.copytree(run_folder, folder)
    listed = DataList.load(data / "list.json")
    items = listed.sites["Porto"].test
    listed.sites["Porto"] = Site(unlabelled=[replace(item, label=None, label_sha256=None) for item in items])
    listed.save(folder / "list.json")
    results = read_json(folder / "results.json")
    results["hashes"]["datalist"] = listed.hash
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


def test_unlabelled_site_shows_largest_disagreements(unlabelled_run, run_folder, monkeypatch):
    paths = {"datalist": unlabelled_run / "list.json", "data_root": run_folder.parent / "data"}
    own, notes = make_own_images(RunData.read(unlabelled_run), **paths)
    assert notes == []
    assert {image.site for image in own} == {"Porto"}
    assert [round(image.dice, 1) for image in own] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert Image.open(io.BytesIO(own[0].png)).size == (320 + 6 + 320, 320)
    monkeypatch.setattr("samfed_monai.reports.html.run_figures", lambda run: [])
    page = Report(unlabelled_run, **paths).write().read_text(encoding="utf-8")
    assert "0.400 on average over 7 images, below 0.5 on 4" in page
    assert page.index("Dice between them 0.100") < page.index("Dice between them 0.200")
    assert "No overlays for" not in page
    assert "This file shows images" in page
    assert stat.S_IMODE((unlabelled_run / "figures" / "own-3-1.png").stat().st_mode) == 0o600
    hidden = Report(unlabelled_run, **paths, overlays=False).write().read_text(encoding="utf-8")
    assert not list((unlabelled_run / "figures").glob("own-*"))
    assert "Porto test" not in hidden
    assert "Images without masks" not in hidden


def test_missing_images_of_unlabelled_site_are_noted(unlabelled_run, tmp_path):
    run = RunData.read(unlabelled_run)
    own, notes = make_own_images(run, datalist=unlabelled_run / "list.json", data_root=tmp_path)
    assert (own, len(notes)) == ([], 1)
    assert str(tmp_path) not in notes[0]
    for datalist in (None, "L"):
        assert make_own_images(run, datalist=datalist, data_root=None) == ([], [f"Porto: {NO_LIST}"])


def test_area_row_has_pixels_components_and_mm2() -> None:
    mask = np.zeros((4, 5), bool)
    mask[0, 0] = mask[1, 1] = True  # one piece, by its corner
    mask[3, 3:] = True
    assert area_of("a", mask, pixel_area=0.25) == {
        "name": "a", "width": 5, "height": 4, "foreground_pixels": 4, "share": 0.2, "components": 2, "mm2": 1.0
    }  # fmt: skip
    assert area_of("a", mask, 1.21e-7)["mm2"] == 4.84e-7, "of a microscope"
    assert "mm2" not in area_of("a", mask)


def test_polygon_of_pixel_is_diamond_and_hole_is_ring() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    [[ring]] = polygons_of(mask)
    assert ring[0] == ring[-1]
    assert {tuple(point) for point in ring} == {(2.5, 1.0), (3.0, 1.5), (2.5, 2.0), (2.0, 1.5)}  # middle at (2.5, 1.5)
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    [polygon] = polygons_of(ring)
    assert len(polygon) == 2
    outer = np.array(polygon[0])
    assert (outer.min(), outer.max()) == (0.0, 5.0)


def area(ring: list[list[float]]) -> float:
    x, y = np.array(ring).T
    return abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2


@given(st.lists(st.booleans(), min_size=30, max_size=30))
def test_polygons_contain_exactly_foreground_pixels(values: list[bool]) -> None:
    mask = np.array(values).reshape(5, 6)
    rows, columns = np.indices(mask.shape) + 0.5
    points = np.stack([columns.ravel(), rows.ravel()], axis=1)
    covered = np.zeros(mask.size, bool)
    for outer, *holes in polygons_of(mask):
        inside = Ring(outer).contains_points(points)
        for hole in holes:
            inside &= ~Ring(hole).contains_points(points)
        covered |= inside
        assert area(outer) > sum(map(area, holes))
    assert np.array_equal(covered.reshape(mask.shape), mask)


def test_geojson_features_have_names_and_colours() -> None:
    content = json.loads(geojson_of(np.ones((2, 2), bool), labels=["lesion"]))
    [feature] = content["features"]
    assert (content["type"], feature["geometry"]["type"]) == ("FeatureCollection", "Polygon")
    assert feature["properties"] == {"objectType": "annotation", "classification": {"name": "lesion"}}
    assert json.loads(geojson_of(np.zeros((2, 2), bool)))["features"] == []
    values = np.zeros((6, 6), np.uint8)
    values[0, 0], values[3, 1] = 1, 3
    features = json.loads(geojson_of(values, labels=["liver", "kidney", "spleen"]))["features"]
    assert [one["properties"]["classification"] for one in features] == [
        {"name": "liver", "color": [230, 159, 0]},
        {"name": "spleen", "color": [0, 158, 115]},
    ]
    [ring] = features[1]["geometry"]["coordinates"]
    assert {tuple(point) for point in ring} == {(1.5, 3.0), (2.0, 3.5), (1.5, 4.0), (1.0, 3.5)}


def test_outline_is_drawn_and_other_pixels_unchanged() -> None:
    picture = np.full((20, 20, 3), 7, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    drawn = outlined(picture, mask)
    assert drawn.shape == picture.shape
    assert drawn[5, 10].tolist() == [240, 228, 66]
    assert drawn[10, 10].tolist() == drawn[0, 0].tolist() == [7, 7, 7]
