"""COCO: masks as annotations and back; annotations drawn beside their images, or refused before anything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.data.coco import (
    Annotated,
    annotations_of,
    coco_of,
    draw_coco,
    mask_of,
    read_coco,
    require_pycocotools,
)
from tests.data.making import disc, picture, save

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


def mask_at(path: Path) -> np.ndarray:
    return np.array(Image.open(path)) > 0


class TestCoco:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed: pip install samfed-monai[coco]")

    @staticmethod
    def site(root: Path, name: str, masks: list[np.ndarray | None], *, file: str = "annotations/a.json") -> list[Any]:
        """Pictures 0.png, 1.png, … and their annotations; ``None`` is a picture that the file lists without any."""
        pictures, annotations = [], []
        for number, mask in enumerate(masks):
            save(root / name / "images" / f"{number}.png", picture(number))
            pictures.append({"file_name": f"{number}.png", "height": 24, "width": 32})
            annotations.append([] if mask is None else list(annotations_of(mask)))
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(coco_of(pictures, annotations, ["lesion"])))
        return pictures

    def test_masks_are_those_that_were_annotated(self, tmp_path):
        first, second = np.array(disc()) > 0, np.array(disc(radius=4)) > 0
        ring = first & ~second  # run lengths
        self.site(tmp_path, "a", [first, ring, None])
        self.site(tmp_path, "b", [second], file="b.json")
        save(tmp_path / "c" / "images" / "0.png", picture(9))  # a site without annotations is left alone
        said = draw_coco(tmp_path, output=tmp_path / "list.json")
        assert said == ["1 picture of a has no annotation: taken as unlabelled"]
        assert np.array_equal(mask_at(tmp_path / "a/masks/0.png"), first)
        assert np.array_equal(mask_at(tmp_path / "a/masks/1.png"), ring)
        assert np.array_equal(mask_at(tmp_path / "b/masks/0.png"), second)
        assert sorted(path.name for path in tmp_path.rglob("masks/*")) == ["0.png", "0.png", "1.png"]
        assert draw_coco(tmp_path, blank_is_empty=True) == []  # once more: nothing is in the way
        assert not mask_at(tmp_path / "a/masks/2.png").any()
        with pytest.raises(
            Refused, match=r"a/masks/2\.png: expected none: its picture has no annotation, found a mask"
        ):
            draw_coco(tmp_path)  # the empty one, which would be taken for true

    def test_names_with_folders_and_the_list_beside_a_single_site(self, tmp_path):
        mask = np.array(disc()) > 0
        pictures = self.site(tmp_path, ".", [mask, mask])
        pictures[0]["file_name"], pictures[1]["file_name"] = "images/0.png", "upload/somewhere/1.png"
        content = coco_of(pictures, [list(annotations_of(mask))] * 2, ["lesion"])
        (tmp_path / "annotations" / "a.json").write_text(json.dumps(content))
        (tmp_path / "list.json").write_text("{}")
        draw_coco(tmp_path, output=tmp_path / "list.json")
        assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["0.png", "1.png"]

    @pytest.mark.parametrize(
        ("image", "listed", "mask"),
        [
            ("a b.png", "a%20b.png", "a b"),
            ("50%25.png", "50%25.png", "50%25"),  # its own name counts first
            ("p1/0.png", "images\\p1\\0.png", "0"),
            ("0.png", "https://host/p9/0.png", "0"),
            ("0.png", "../images/0.png", "0"),  # only compared, never opened
            ("Su\u0308d.png", "S\u00fcd.png ", "S\u00fcd"),
            ("p1/0.png", "p2/0.png", None),
            ("0.png", "1.png", None),
        ],
    )
    def test_names_are_compared_from_their_end(self, tmp_path, image, listed, mask):
        [entry] = self.site(tmp_path, "a", [np.array(disc()) > 0])
        (tmp_path / "a/images/0.png").unlink()
        save(tmp_path / "a/images" / image, picture(0))
        content = coco_of([{**entry, "file_name": listed}], [list(annotations_of(np.array(disc()) > 0))], ["lesion"])
        (tmp_path / "a/annotations/a.json").write_text(json.dumps(content))
        if mask is None:
            with pytest.raises(Refused, match="found no such image; add it, or take its entry out"):
                draw_coco(tmp_path)
        else:
            assert draw_coco(tmp_path) == []
            assert [path.stem for path in (tmp_path / "a/masks").iterdir()] == [mask]

    def test_masks_of_images_of_one_name_go_into_their_folders_and_others_are_counted(self, tmp_path):
        pictures = self.site(tmp_path, "a", [np.array(disc()) > 0] * 3)
        for number in (0, 1):
            save(tmp_path / f"a/images/p{number}/0.png", picture(5 + number))
            pictures[number] = {**pictures[number], "file_name": f"p{number}/0.png"}
        (tmp_path / "a/images/0.png").unlink()
        content = coco_of(pictures, [list(annotations_of(np.array(disc()) > 0))] * 3, ["lesion"])
        (tmp_path / "a/annotations/a.json").write_text(json.dumps(content))
        assert draw_coco(tmp_path) == ["1 picture of a is in no COCO file, such as a/images/1.png"]
        drawn = sorted(path.relative_to(tmp_path / "a/masks").as_posix() for path in tmp_path.rglob("masks/**/*.png"))
        assert drawn == ["2.png", "p0/0.png", "p1/0.png"]
        pictures[0]["file_name"] = "0.png"
        (tmp_path / "a/annotations/a.json").write_text(json.dumps(coco_of(pictures, [[]] * 3, ["lesion"])))
        with pytest.raises(Refused, match="found 2 images of that name"):
            draw_coco(tmp_path)

    def test_everything_is_refused_at_once_and_nothing_written(self, tmp_path):
        mask = np.array(disc()) > 0
        self.site(tmp_path, "a", [mask, mask, mask])
        (tmp_path / "a/images/0.png").unlink()
        save(tmp_path / "a/images/1.png", picture(1, 12, 16))
        pictures = self.site(tmp_path, "b", [mask])
        annotations = [{"segmentation": [[0, 0, 64, 0, 64, 48]]}]
        (tmp_path / "b/annotations/a.json").write_text(json.dumps(coco_of(pictures, [annotations], ["lesion"])))
        with pytest.raises(Refused) as refused:
            draw_coco(tmp_path)
        told = str(refused.value)
        assert "a.json: 0.png: expected one image of that name in" in told
        assert "found no such image; add it, or take its entry out" in told
        assert "1.png: expected 32 x 24, as annotated, found 16 x 12 pixels; annotate the image that lies here" in told
        assert (
            "annotation 1 of 0.png: expected an outline inside of the picture, 32 x 24 pixels, found x from 0" in told
        )
        assert not list(tmp_path.rglob("masks"))

    def test_a_mask_of_somebody_else_stays(self, tmp_path):
        self.site(tmp_path, "a", [np.array(disc()) > 0] * 2)
        save(tmp_path / "a/masks/1.png", disc(radius=2))
        before = (tmp_path / "a/masks/1.png").read_bytes()
        with pytest.raises(Refused, match=r"1\.png: expected none, or the very one to be drawn, found another file"):
            draw_coco(tmp_path)
        assert (tmp_path / "a/masks/1.png").read_bytes() == before
        assert not (tmp_path / "a/masks/0.png").exists()

    def test_a_picture_in_two_files_and_no_file_at_all(self, tmp_path):
        save(tmp_path / "a/images/0.png", picture(0))
        with pytest.raises(Refused, match="expected COCO annotations of a site, found no file; put them into"):
            draw_coco(tmp_path)
        mask = np.array(disc()) > 0
        self.site(tmp_path, "a", [mask])
        self.site(tmp_path, "a", [mask], file="annotations/b.json")
        with pytest.raises(Refused, match=r"b\.json: expected each picture once, found 0\.png a second time"):
            draw_coco(tmp_path)
