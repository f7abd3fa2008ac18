"""Masks as polygons, areas and outlines."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from samfed_monai.reports.overlays import area_of, geojson_of, outlined, polygons_of


def test_a_row_of_areas() -> None:
    mask = np.zeros((4, 5), bool)
    mask[0, 0] = mask[1, 1] = True  # one piece, by its corner
    mask[3, 3:] = True
    row = area_of("a", mask, pixel_area=0.25)
    assert row == {
        "name": "a", "width": 5, "height": 4, "foreground_pixels": 4, "share": 0.2, "components": 2, "mm2": 1.0
    }  # fmt: skip
    assert "mm2" not in area_of("a", mask)


def test_a_pixel_is_a_square_round_its_middle() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    [[ring]] = polygons_of(mask)
    assert ring[0] == ring[-1]
    assert {tuple(point) for point in ring} == {(2.5, 1.0), (3.0, 1.5), (2.5, 2.0), (2.0, 1.5)}  # middle at (2.5, 1.5)


def test_a_hole_is_a_ring_of_its_polygon_and_the_border_of_a_picture_is_closed() -> None:
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    [polygon] = polygons_of(ring)
    assert len(polygon) == 2
    outer = np.array(polygon[0])
    assert (outer.min(), outer.max()) == (0.0, 5.0)


def area(ring: list[list[float]]) -> float:
    x, y = np.array(ring).T
    return abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2


@settings(deadline=None)  # the first call imports contourpy and matplotlib
@given(st.lists(st.booleans(), min_size=30, max_size=30))
def test_every_foreground_pixel_lies_in_a_polygon_and_no_other_does(values: list[bool]) -> None:
    from matplotlib.path import Path

    mask = np.array(values).reshape(5, 6)
    rows, columns = np.indices(mask.shape) + 0.5
    points = np.stack([columns.ravel(), rows.ravel()], axis=1)
    covered = np.zeros(mask.size, bool)
    for outer, *holes in polygons_of(mask):
        inside = Path(outer).contains_points(points)
        for hole in holes:
            inside &= ~Path(hole).contains_points(points)
        covered |= inside
        assert area(outer) > sum(map(area, holes))
    assert np.array_equal(covered.reshape(mask.shape), mask)


def test_a_feature_has_its_label_and_an_empty_mask_none() -> None:
    content = json.loads(geojson_of(np.ones((2, 2), bool), labels=["lesion"]))
    [feature] = content["features"]
    assert (content["type"], feature["geometry"]["type"]) == ("FeatureCollection", "Polygon")
    assert feature["properties"] == {"objectType": "annotation", "classification": {"name": "lesion"}}
    assert json.loads(geojson_of(np.zeros((2, 2), bool)))["features"] == []


def test_features_of_classes_have_their_names_and_the_colours_of_their_outlines() -> None:
    values = np.zeros((6, 6), np.uint8)
    values[0, 0], values[3, 1] = 1, 3
    features = json.loads(geojson_of(values, labels=["liver", "kidney", "spleen"]))["features"]
    assert [one["properties"]["classification"] for one in features] == [
        {"name": "liver", "color": [230, 159, 0]},
        {"name": "spleen", "color": [0, 158, 115]},
    ]
    [ring] = features[1]["geometry"]["coordinates"]
    assert {tuple(point) for point in ring} == {(1.5, 3.0), (2.0, 3.5), (1.5, 4.0), (1.0, 3.5)}


def test_the_outline_is_drawn_and_the_rest_of_the_picture_stays() -> None:
    picture = np.full((20, 20, 3), 7, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    drawn = outlined(picture, mask)
    assert drawn.shape == picture.shape
    assert drawn[5, 10].tolist() == [240, 228, 66]
    assert drawn[10, 10].tolist() == drawn[0, 0].tolist() == [7, 7, 7]
