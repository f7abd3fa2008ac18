"""COCO: masks come back exactly, of our own annotations and of pycocotools' ones; bad files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from samfed_monai.core.errors import Refused
from samfed_monai.data.coco import Annotated, annotations_of, coco_of, mask_of, read_coco, require_pycocotools

coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed: pip install samfed-monai[coco]")

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))
RING = np.pad(np.pad(np.zeros((1, 1), bool), 1, constant_values=True), 1)


def drawn(mask: np.ndarray) -> np.ndarray:
    found = np.zeros_like(mask)
    for one in annotations_of(mask):
        found |= mask_of(one["segmentation"], *mask.shape)
    return found


@settings(deadline=None)  # the first imports scipy and pycocotools
@given(MASKS)
def test_a_mask_comes_back_exactly(mask: np.ndarray) -> None:
    assert np.array_equal(drawn(mask), mask)


@settings(deadline=None)  # the first imports scipy and pycocotools
@given(MASKS)
def test_both_kinds_of_run_lengths_are_read(mask: np.ndarray) -> None:
    runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    size = list(mask.shape)
    assert np.array_equal(mask_of({"size": size, "counts": runs["counts"].decode()}, *mask.shape), mask)
    flat = mask.reshape(-1, order="F").astype(int)
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    counts = ([0] if flat[0] else []) + np.diff(ends).tolist()
    assert np.array_equal(mask_of({"size": size, "counts": counts}, *mask.shape), mask)


@settings(deadline=None)  # the first imports scipy and pycocotools
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=9))
def test_compressed_run_lengths_of_any_size_are_read(counts: list[int]) -> None:
    total = sum(counts)
    if total == 0:
        return
    text = coco.frPyObjects({"size": [total, 1], "counts": counts}, total, 1)["counts"].decode()
    both = [mask_of({"size": [total, 1], "counts": each}, total, 1) for each in (counts, text)]
    assert np.array_equal(*both)


def test_by_hand() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1, 1] = mask[2, 2] = mask[2, 3] = True  # two parts that touch at a corner are one piece
    [one] = annotations_of(mask)
    assert (one["area"], one["bbox"], one["iscrowd"]) == (3, [1, 1, 3, 2], 0)
    assert one["segmentation"]["size"] == [4, 5]
    [ring] = annotations_of(RING)
    assert ring["area"] == 8


def test_pieces_of_classes_have_the_category_of_their_class() -> None:
    values = np.array([[3, 0, 1, 1], [3, 0, 0, 1], [0, 1, 0, 0]], np.uint8)
    found = list(annotations_of(values))
    assert [(one["category_id"], one["bbox"], one["area"]) for one in found] == [
        (1, [2, 0, 2, 2], 3),
        (1, [1, 2, 1, 1], 1),
        (3, [0, 0, 1, 2], 2),
    ]
    drawn = np.zeros_like(values)
    for one in found:
        drawn[mask_of(one["segmentation"], 3, 4)] = one["category_id"]
    assert np.array_equal(drawn, values)
    content = coco_of([{"file_name": "a"}], [found], ["liver", "kidney", "spleen"])
    assert content["categories"] == [
        {"id": 1, "name": "liver"},
        {"id": 2, "name": "kidney"},
        {"id": 3, "name": "spleen"},
    ]
    assert [(one["id"], one["category_id"]) for one in content["annotations"]] == [(1, 1), (2, 1), (3, 3)]
    assert list(annotations_of(np.zeros((2, 2), np.uint8))) == []


def file_of(folder: Path, **changes: Any) -> Path:
    pictures = [{"file_name": "a.png", "height": 4, "width": 5}, {"file_name": "b.png", "height": 4, "width": 5}]
    content = coco_of(pictures, [list(annotations_of(np.ones((4, 5), bool))), []], ["lesion"])
    path = folder / "coco.json"
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    first, second = read_coco(file_of(tmp_path))
    assert (first.file_name, second.file_name) == ("a.png", "b.png")
    assert first.mask().all()
    assert (second.annotations, second.mask().any()) == ({}, False)


BOTH = [{"id": 1, "name": "mole"}, {"id": 2, "name": "hair"}]
OUTLINE = [[0, 0, 2, 0, 2, 2]]
OF_BOTH = [{"id": number, "image_id": 1, "category_id": number, "segmentation": OUTLINE} for number in (1, 2)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": {}}, r"images: expected a list, found \{\} \(dict\)"),
        ({"images": [{"id": 1, "height": 4, "width": 5}]}, "images#0#file_name: expected one, found no such key"),
        (
            {"images": [{"id": 1, "file_name": "a", "height": "4", "width": 0}]},
            "0#height: expected a number(?s:.*)0#width",
        ),
        ({"images": [{"id": 1, "file_name": "a", "height": 4.5, "width": 5}]}, "0#height: expected pixels, found 4.5"),
        (
            {"images": [{"id": n, "file_name": "a.png", "height": 4, "width": 5} for n in (1, 2)]},
            "'a.png' or its id twice",
        ),
        ({"annotations": [{"image_id": 1}]}, "annotations#0#category_id: expected an id, found no such key"),
        *(
            ({"annotations": [{"image_id": wrong, "category_id": 1}]}, "annotations#0#image_id: expected .*, found")
            for wrong in (None, True, 1.5, "", [1])
        ),
        (
            {"annotations": [{"image_id": 1, "category_id": 2}]},
            r"annotations#0: expected the id of one of its categories, \[1\], found category_id 2",
        ),
        ({"categories": [{"id": 1}, {"id": "1"}]}, "categories#1: expected an id of its own, found id 1 a second time"),
        ({"categories": ["lesion"]}, "categories#0: expected an object, found 'lesion'"),
        (
            {"annotations": [{"id": n, "image_id": 1, "category_id": 1} for n in (7, "7")]},
            "annotations#1: expected an id of its own, found id 7 a second time for this picture; export",
        ),
        (
            {"annotations": [{"image_id": 9, "category_id": 1}]},
            "expected the id of one of its images, found image_id 9",
        ),
        (
            {"annotations": OF_BOTH, "categories": BOTH},
            "found annotations of several categories: hair, mole; say which",
        ),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(Refused, match=told):
        read_coco(file_of(tmp_path, **changes))


def test_categories_are_chosen_by_name(tmp_path: Path) -> None:
    path = file_of(tmp_path, annotations=OF_BOTH, categories=BOTH)
    assert len(read_coco(path, categories=["mole"])[0].annotations) == 1
    assert len(read_coco(path, categories=["mole", "hair"])[0].annotations) == 2
    with pytest.raises(Refused, match=r"expected one of \['hair', 'mole'\], found no category 'nevus'"):
        read_coco(path, categories=["nevus"])


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        (None, "expected polygons or run lengths, found no outline; a box alone is no mask"),
        ([], "found no outline"),
        ([[0, 0, 1, 1]], "of at least three points, found a polygon of 4 numbers"),
        ([[0, 0, 1, 1, 2]], "found a polygon of 5 numbers"),
        ([[0, 0, 1, "1", 2, 2]], "found a polygon of 6 numbers"),
        ([[0, 0.1, 1, 0, 1, 1]], "an outline in pixels, of 5 x 4, found coordinates from 0 to 1, as shares of the"),
        ([[0, 0, 7, 0, 7, 3]], "inside of the picture, 5 x 4 pixels, found x from 0 to 7; was it drawn on a picture"),
        ([[0, -3, 5, 0, 5, 3]], "found y from -3 to 3"),
        ({"size": [5, 4], "counts": [20]}, r"expected \[4, 5\], height and width of the picture, found run lengths of"),
        ({"size": [4, 5], "counts": [19]}, "fill 20 pixels, found 19 pixels; export the file anew"),
        ({"size": [4, 5], "counts": [-1, 21]}, "fill 20 pixels, found no such numbers"),
        ({"size": [4, 5], "counts": "~~"}, "fill 20 pixels, found 28 pixels"),
        ({"size": [4, 5], "counts": "o"}, "fill 20 pixels, found no such numbers"),
        ({"size": [4, 5]}, "fill 20 pixels, found no such numbers"),
    ],
)
def test_a_bad_outline_is_refused(segmentation: Any, told: str) -> None:
    with pytest.raises(Refused, match=told):
        mask_of(segmentation, 4, 5)


def test_an_outline_that_leaves_by_a_pixel_is_cut_at_the_border() -> None:
    assert mask_of([[-0.6, -1, 6, -1, 6, 5, -0.6, 5]], 4, 5).all()


SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]


@pytest.mark.parametrize(
    "segmentation",
    [SQUARE, [SQUARE], [[1, 1], [3, 1], [3, 3], [1, 3]], [[[1, 1], [3, 1], [3, 3], [1, 3]]], [SQUARE, SQUARE]],
)
def test_polygons_are_read_in_every_nesting(segmentation: Any) -> None:
    assert np.argwhere(mask_of(segmentation, 4, 5)).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]


@pytest.mark.parametrize("other", [1.0, "1", " 1.0", 1])
def test_one_id_in_several_spellings_is_one_and_sizes_may_be_floats(tmp_path: Path, other: Any) -> None:
    image = {"id": other, "file_name": "C:\\a.png", "height": 4.0, "width": 5}
    annotation = {"id": other, "image_id": 1, "category_id": other, "segmentation": OUTLINE}
    [one] = read_coco(file_of(tmp_path, images=[image], annotations=[annotation, {**annotation, "id": "b"}]))
    assert (list(one.annotations), one.height, one.mask().sum()) == ([1, "b"], 4, mask_of(OUTLINE, 4, 5).sum())


BLOCK = {"segmentation": [[20, 10, 60, 10, 60, 40, 20, 40]], "bbox": [20, 10, 40, 30], "area": 1200}
HOLED = [*BLOCK["segmentation"], [30, 15, 50, 15, 50, 35, 30, 35]]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bbox": [40, 20, 40, 30]}, r"expected one like \[20, 10, 40, 30\], x, y, width and height .*found bbox \[40"),
        ({"bbox": [20, 10, 60, 40]}, "found bbox"),  # two corners
        ({"bbox": [0.2, 0.1, 0.4, 0.3]}, "found bbox"),
        ({"area": 300}, "expected about 1200 pixels, as its outline has, found area 300"),
        ({"area": 800, "segmentation": HOLED}, "found area 800"),  # the second polygon was meant as a hole
        ({"segmentation": {"size": [50, 100], "counts": [0, 1200, 3800]}}, "found bbox"),
    ],
)
def test_an_outline_that_contradicts_what_is_beside_it_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(Refused, match=told):
        Annotated(Path("c.json"), "a.png", 50, 100, {1: {**BLOCK, **changes}}).mask()


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {},
            {"bbox": [21.5, 9, 39, 31], "area": 1150.5},
            {"bbox": [0, 0, 0, 0], "area": 0},
            {"bbox": [], "area": None},
        ),
        {"area": 2000, "bbox": [19, 8, 44, 33], "segmentation": [[20, 10, 60, 10, 20, 40]]},  # the area of the box
    ],
)
def test_what_programs_round_is_no_contradiction(changes: dict[str, Any]) -> None:
    one = {**BLOCK, **changes}
    area = {"area": one["bbox"][2] * one["bbox"][3]} if changes.get("area") == 2000 else {}
    assert Annotated(Path("c.json"), "a.png", 50, 100, {1: {**one, **area}}).mask().any()


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [problem] = require_pycocotools("--coco")
    assert str(problem) == "--coco: expected it, for COCO, found no pycocotools; pip install 'samfed-monai[coco]'"
