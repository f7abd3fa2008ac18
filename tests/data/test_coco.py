"""COCO: masks as annotations and back; annotations drawn beside their images, or refused before anything is."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.data.coco import AnnotatedImage, annotations_of, coco_of, draw_coco, mask_of, read_coco
from samfed_monai.data.prepare import prepare_coco
from tests.data.making import disc, options, picture, save

coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed: pip install samfed-monai[coco]")

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


@given(MASKS)
def test_mask_round_trip_through_pieces_and_run_lengths(mask: np.ndarray) -> None:
    pieces = [mask_of(one["segmentation"], *mask.shape) for one in annotations_of(mask)]
    assert np.array_equal(np.any([np.zeros_like(mask), *pieces], axis=0), mask)
    text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    flat = mask.reshape(-1, order="F").astype(int)
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    for counts in (text, ([0] if flat[0] else []) + np.diff(ends).tolist()):
        assert np.array_equal(mask_of({"size": list(mask.shape), "counts": counts}, *mask.shape), mask)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=9).filter(sum))
def test_compressed_run_lengths_of_any_size_are_read(counts: list[int]) -> None:
    total = sum(counts)
    text = coco.frPyObjects({"size": [total, 1], "counts": counts}, total, 1)["counts"].decode()
    assert np.array_equal(*[mask_of({"size": [total, 1], "counts": each}, total, 1) for each in (counts, text)])


def test_components_touching_at_corner_are_joined() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1, 1] = mask[2, 2] = mask[2, 3] = True
    [one] = annotations_of(mask)
    assert (one["area"], one["bbox"], one["iscrowd"]) == (3, [1, 1, 3, 2], 0)
    assert one["segmentation"]["size"] == [4, 5]


def test_annotations_of_classes_have_class_category() -> None:
    values = np.array([[3, 0, 1, 1], [3, 0, 0, 1], [0, 1, 0, 0]], np.uint8)
    found = list(annotations_of(values))
    drawn = np.zeros_like(values)
    for one in found:
        drawn[mask_of(one["segmentation"], 3, 4)] = one["category_id"]
    assert np.array_equal(drawn, values)
    content = coco_of([{"file_name": "a"}], [found], ["liver", "kidney"])
    assert content["categories"] == [{"id": 1, "name": "liver"}, {"id": 2, "name": "kidney"}]
    assert [[one[key] for key in ("id", "category_id", "bbox", "area")] for one in content["annotations"]] == [
        [1, 1, [2, 0, 2, 2], 3],
        [2, 1, [1, 2, 1, 1], 1],
        [3, 3, [0, 0, 1, 2], 2],
    ]
    assert list(annotations_of(np.zeros((2, 2), np.uint8))) == []


def file_of(folder: Path, **changes: Any) -> Path:
    pictures = [{"file_name": "a.png", "height": 4, "width": 5}, {"file_name": "b.png", "height": 4, "width": 5}]
    content = coco_of(pictures, [list(annotations_of(np.ones((4, 5), bool))), []], ["lesion"])
    path = folder / "coco.json"
    path.write_text(json.dumps({**content, **changes}))
    return path


IMAGE = {"id": 1, "file_name": "a.png", "height": 4, "width": 5}
OUTLINE = [[0, 0, 2, 0, 2, 2]]


def of(image: Any, category: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {}}, r"images: expected a list, found \{\} \(dict\)"),
        ({"images": [{"id": 1, "height": 4, "width": 5}]}, "images#0#file_name: expected a value, found no such key"),
        ({"images": [{**IMAGE, "height": "4", "width": 0}]}, "0#height: expected a number(?s:.*)0#width"),
        ({"images": [{**IMAGE, "height": 4.5}]}, "0#height: expected pixels, found 4.5"),
        ({"images": [IMAGE, {**IMAGE, "id": 2}]}, "#1: expected each image once, found 'a.png' or its id twice"),
        ({"images": [IMAGE, {**IMAGE, "file_name": "b.png"}]}, "#1: expected each image once, found 'b.png' or"),
        ({"annotations": [{"image_id": 1}]}, "annotations#0#category_id: expected an id, found no such key"),
        *(({"annotations": [of(wrong)]}, "annotations#0#image_id: expected .*, found") for wrong in (None, True, 1.5)),
        *(({"annotations": [of(wrong)]}, "annotations#0#image_id: expected .*, found") for wrong in ("", [1])),
        ({"annotations": [of(1, 2)]}, r"#0: expected the id of a category in the file, \[1\], found category_id 2"),
        ({"categories": [{"id": 1}, {"id": "1"}]}, "categories#1: expected a unique id, found id 1 a second time"),
        ({"categories": ["lesion"]}, "categories#0: expected an object, found 'lesion'"),
        ({"annotations": [of(1) | {"id": n} for n in (7, "7")]}, "#1: expected a unique id, found id 7 a second"),
        ({"annotations": [of(9)]}, "expected the id of an image in the file, found image_id 9; export the file again"),
    ],
)
def test_invalid_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        read_coco(file_of(tmp_path, **changes))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "expected polygons or run lengths, found no outline; a box is not a mask"),
        ([], "found no outline"),
        ([[0, 0, 1, 1]], "of at least three points, found a polygon of 4 numbers"),
        ([[0, 0, 1, 1, 2]], "found a polygon of 5 numbers"),
        *(([[0, 0, 1, wrong, 2, 2]], f"turn.*polygon with {wrong!r:.9}") for wrong in ("1", True, np.nan, 10**400)),
        ([[0, 0.1, 1, 0, 1, 1]], "an outline in pixels, of 5 x 4, found coordinates from 0 to 1, relative to the"),
        ([[0, 0, 7, 0, 7, 3]], "inside the image, 5 x 4 pixels, found x from 0 to 7; was it drawn on an image"),
        ([[0, -3, 5, 0, 5, 3]], "found y from -3 to 3"),
        ({"size": [5, 4], "counts": [20]}, r"expected \[4, 5\], height and width of the image, found run lengths of"),
        ({"size": [4, 5], "counts": [19]}, "fill 20 pixels, found 19 pixels; export the file again"),
        ({"size": [4, 5], "counts": [-1, 21]}, "fill 20 pixels, found no valid run lengths"),
        ({"size": [4, 5], "counts": ">>"}, "fill 20 pixels, found 28 pixels"),
        *(({"size": [4, 5], "counts": text}, "fill 20 pixels, found no valid run lengths") for text in ("o", "~~")),
        ({"size": [4, 5]}, "fill 20 pixels, found no valid run lengths"),
    ],
)
def test_invalid_segmentation_is_refused(segmentation: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        mask_of(segmentation, 4, 5)


SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]


@pytest.mark.parametrize(
    "segmentation",
    [SQUARE, [SQUARE], [[1, 1], [3, 1], [3, 3], [1, 3]], [[[1, 1], [3, 1], [3, 3], [1, 3]]], [SQUARE, SQUARE]],
)
def test_polygons_are_read_in_every_nesting(segmentation: Any) -> None:
    assert np.argwhere(mask_of(segmentation, 4, 5)).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert mask_of([[-0.6, -1, 6, -1, 6, 5, -0.6, 5]], 4, 5).all(), "what leaves by a pixel is cut at the border"


@pytest.mark.parametrize("other", [1.0, "1", " 1.0", 1])
def test_id_spellings_are_equal_and_sizes_may_be_floats(tmp_path: Path, other: Any) -> None:
    image = {"id": other, "file_name": "C:\\a.png", "height": 4.0, "width": 5}
    annotation = {"id": other, "image_id": 1, "category_id": other, "segmentation": OUTLINE}
    [one] = read_coco(file_of(tmp_path, images=[image], annotations=[annotation, {**annotation, "id": "b"}]))
    assert (list(one.annotations), one.height, one.mask().sum()) == ([1, "b"], 4, mask_of(OUTLINE, 4, 5).sum())


BLOCK = {"segmentation": [[20, 10, 60, 10, 60, 40, 20, 40]], "bbox": [20, 10, 40, 30], "area": 1200}
HOLED = [*BLOCK["segmentation"], [30, 15, 50, 15, 50, 35, 30, 35]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [40, 20, 40, 30]}, r"expected about \[20, 10, 40, 30\], x, y, width and height .*found bbox \[40"),
        ({"bbox": [20, 10, 60, 40]}, "found bbox"),  # two corners
        ({"bbox": [0.2, 0.1, 0.4, 0.3]}, "found bbox"),
        ({"area": 1}, "found area 1"),
        ({"area": 300}, "expected about 1200 pixels, as in the outline, found area 300"),
        ({"area": 800, "segmentation": HOLED}, "found area 800"),  # the second polygon was meant as a hole
        ({"segmentation": {"size": [50, 100], "counts": [0, 1200, 3800]}}, "found bbox"),
        ({}, None),
        ({"bbox": [21.5, 9, 39, 31], "area": 1150.5}, None),
        ({"bbox": [0, 0, 0, 0], "area": 0}, None),
        ({"bbox": [], "area": None}, None),
        ({"segmentation": [[20, 10, 60, 10, 20, 40]], "bbox": [19, 8, 44, 33], "area": 44 * 33}, None),  # of the box
    ],
)
def test_outline_contradicting_bbox_or_area_is_refused_unless_rounded(changes: dict[str, Any], message: Any) -> None:
    image = AnnotatedImage(Path("c.json"), "a.png", 50, 100, {1: {**BLOCK, **changes}})
    with pytest.raises(Refused, match=message) if message else nullcontext():
        assert image.mask().any()


DISC, SMALL = (np.array(disc(radius=radius)) > 0 for radius in (8, 4))


def annotated(
    site: Path, masks: dict[str, np.ndarray | None], *, listed: Any = None, file: str = "a.json", label: str = "lesion"
) -> None:
    """Pictures with the annotations of their masks, of ``None`` without any; ``listed`` are other names there."""
    pictures = []
    for number, name in enumerate(masks):
        save(site / "images" / name, picture(number))
        pictures.append({"file_name": (listed or {}).get(name, name), "height": 24, "width": 32})
    annotations = [[] if mask is None else list(annotations_of(mask)) for mask in masks.values()]
    (site / "annotations").mkdir(exist_ok=True)
    (site / "annotations" / file).write_text(json.dumps(coco_of(pictures, annotations, [label])))


def masks_in(root: Path) -> dict[str, np.ndarray]:
    return {
        path.relative_to(root).as_posix(): np.array(Image.open(path)) > 0
        for path in sorted(root.rglob("masks/**/*.png"))
    }


def test_drawn_masks_equal_annotated_masks(tmp_path: Path) -> None:
    annotated(tmp_path / "a", {"0.png": DISC, "1.png": DISC & ~SMALL, "2.png": None})
    annotated(tmp_path / "b", {"0.png": SMALL})
    (tmp_path / "b/annotations/a.json").rename(tmp_path / "b/b.json")
    save(tmp_path / "c" / "images" / "0.png", picture(9))  # a site without annotations is left alone
    warnings = draw_coco(tmp_path, output=tmp_path / "list.json")
    bare = "c has no COCO file (*.json, annotations/*.json): used without changes"
    assert warnings == ["1 image of a has no annotation: used as unlabelled", bare]
    wanted = {"a/masks/0.png": DISC, "a/masks/1.png": DISC & ~SMALL, "b/masks/0.png": SMALL}
    np.testing.assert_equal(masks_in(tmp_path), wanted)
    assert draw_coco(tmp_path, blank_is_empty=True) == [bare]  # once more: nothing is in the way
    assert not masks_in(tmp_path)["a/masks/2.png"].any()
    with pytest.raises(Refused, match=r"a/masks/2\.png: expected none: its image has no annotation, found a mask"):
        draw_coco(tmp_path)  # the empty one, which would be taken for true


def test_missing_masks_and_impossible_divisions_are_refused_before_reading(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("samfed_monai.data.coco.read_image", lambda *_: pytest.fail("read"))
    annotated(tmp_path / "public", {"0.png": DISC, "1.png": None})
    annotated(tmp_path / "a", {"2.png": None})
    message = (
        r"(?s)2 problems.*public/images/1\.png: expected a mask, as for every .*--divide 2: a: expected at least 2"
    )
    with pytest.raises(Refused, match=message):
        prepare_coco(tmp_path, options(tmp_path, public="public", divide=2))
    with pytest.raises(Refused, match=r"images with masks for testing, found 1 image of a has no mask"):
        prepare_coco(tmp_path / "a", options(tmp_path, test_only=True))


def test_categories_are_chosen_by_name_across_files(tmp_path: Path) -> None:
    for file, mask, label in (("a.json", DISC, "mole"), ("b.json", SMALL, "hair")):
        annotated(tmp_path / "a", {f"{label}.png": mask}, file=file, label=f" {label} ")  # --category strips its names
    for categories, message in (
        ([], r"a\.json and .*/b\.json: expected one category, found annotations of several categories: hair, mole; "),
        (["nevus"], r"--category: expected one of \['hair', 'mole'\], found 'nevus'"),
    ):
        with pytest.raises(Refused, match=message):
            draw_coco(tmp_path, categories=categories)
    assert draw_coco(tmp_path, categories=["mole"]) == ["1 image of a has no annotation of mole: used as unlabelled"]
    np.testing.assert_equal(masks_in(tmp_path), {"a/masks/mole.png": DISC})
    assert draw_coco(tmp_path, categories=["mole", "hair"]) == []


@pytest.mark.parametrize(
    ("image", "listed", "mask"),
    [
        ("a b.png", "a%20b.png", "a b"),
        ("50%25.png", "50%25.png", "50%25"),  # its own name counts first
        ("p1/0.png", "images\\p1\\0.png", "0"),
        ("0.png", "images/0.png", "0"),
        ("0.png", "https://host/p9/0.png", "0"),
        ("0.png", "../images/0.png", "0"),  # only compared, never opened
        ("Su\u0308d.png", "S\u00fcd.png ", "S\u00fcd"),
        ("p1/0.png", "p2/0.png", None),
        ("0.png", "1.png", None),
    ],
)
def test_file_names_are_matched_from_path_end(tmp_path: Path, image: str, listed: str, mask: str | None) -> None:
    annotated(tmp_path, {image: DISC}, listed={image: listed})
    (tmp_path / "list.json").write_text("{}")  # the output beside the annotations of a single site is none
    if mask is None:
        with pytest.raises(Refused, match="found no such image; add the image, or remove its entry"):
            draw_coco(tmp_path, output=tmp_path / "list.json")
    else:
        assert draw_coco(tmp_path, output=tmp_path / "list.json") == []
        assert list(masks_in(tmp_path)) == [f"masks/{mask}.png"]


def test_equal_image_names_in_folders_keep_separate_masks(tmp_path: Path) -> None:
    annotated(tmp_path / "a", {"p0/0.png": DISC, "p1/0.png": DISC, "2.png": DISC})
    save(tmp_path / "a/images/1.png", picture(9))
    assert draw_coco(tmp_path) == ["1 image of a is in no COCO file, such as a/images/1.png"]
    assert list(masks_in(tmp_path)) == [f"a/masks/{name}.png" for name in ("2", "p0/0", "p1/0")]
    annotated(tmp_path / "a", {"p0/0.png": None}, listed={"p0/0.png": "0.png"})
    with pytest.raises(Refused, match="found 2 images of that name"):
        draw_coco(tmp_path)


def test_problems_are_refused_together_and_nothing_is_written(tmp_path: Path) -> None:
    annotated(tmp_path / "a", {"0.png": DISC, "1.png": DISC, "2.png": DISC})
    (tmp_path / "a/images/0.png").unlink()
    save(tmp_path / "a/images/1.png", picture(1, 12, 16))
    annotated(tmp_path / "b", {"0.png": DISC})
    content = json.loads((tmp_path / "b/annotations/a.json").read_text())
    content["annotations"][0] |= {"segmentation": [[0, 0, 64, 0, 64, 48]]}
    (tmp_path / "b/annotations/a.json").write_text(json.dumps(content))
    with pytest.raises(Refused) as caught:
        draw_coco(tmp_path)
    for message in (
        "a.json: 0.png: expected one image of that name in",
        "found no such image; add the image, or remove its entry",
        "1.png: expected 32 x 24, as annotated, found 16 x 12 pixels; annotate the image in this folder",
        "annotation 1 of 0.png: expected an outline inside the image, 32 x 24 pixels, found x from 0",
    ):
        assert message in str(caught.value)
    assert masks_in(tmp_path) == {}


def test_existing_mask_is_not_overwritten(tmp_path: Path) -> None:
    annotated(tmp_path / "a", {"0.png": DISC, "1.png": DISC})
    before = save(tmp_path / "a/masks/1.png", disc(radius=2)).read_bytes()
    with pytest.raises(Refused, match=r"1\.png: expected no file, or an identical one, found another file"):
        draw_coco(tmp_path)
    assert (tmp_path / "a/masks/1.png").read_bytes() == before
    assert not (tmp_path / "a/masks/0.png").exists()


def test_folder_that_cannot_be_written_is_refused_before_drawing(tmp_path: Path, monkeypatch) -> None:
    annotated(tmp_path / "a", {"0.png": DISC})
    (tmp_path / "a/masks").symlink_to("/proc/self")  # no user can write there
    monkeypatch.setattr(AnnotatedImage, "mask", lambda image: pytest.fail("drawn"))
    with pytest.raises(OSError, match="a/masks"):
        draw_coco(tmp_path)


def test_picture_in_two_files_or_missing_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a/images/0.png", picture(0))
    with pytest.raises(Refused, match="expected COCO annotations of a site, found no file; put them into"):
        draw_coco(tmp_path)
    for file in ("a.json", "b.json"):
        annotated(tmp_path / "a", {"0.png": DISC}, file=file)
    with pytest.raises(Refused, match=r"b\.json: 0\.png: expected each image once, found a second entry; remove one"):
        draw_coco(tmp_path)
    annotated(tmp_path / "a", {"0.png": None}, file="b.json")
    for _ in range(2):
        assert draw_coco(tmp_path) == []
