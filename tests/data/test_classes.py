"""Labels of several classes: names, files of class values, planes; what is refused, and with which words."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, write_json
from samfed_monai.data import DataList, classes
from samfed_monai.data.checks import check_datalist
from samfed_monai.data.prepare import Prepared, prepare_folders
from samfed_monai.data.reading import png_of
from samfed_monai.data.records import label_settings, load_records
from samfed_monai.data.weak_labels import weaken_list
from samfed_monai.transforms import LoadRGBd
from samfed_monai.transforms.loading import read_label
from tests.data.making import jpeg, options, picture, save

ORGANS = ["kidney", "spleen"]


def png(*rows) -> bytes:
    return png_of(np.array(rows, np.uint8))


def striped(root: Path, *sites: str, values: tuple[int, ...] = (0, 1, 2)) -> Path:
    """Sites of three images of 8 x 8 pixels each, whose labels hold these values in stripes."""
    label = np.repeat(np.resize(values, 8), 8).reshape(8, 8).astype(np.uint8)
    for site in sites:
        for index in range(3):
            save(root / site / f"images/{site}{index}.png", picture(10 * ord(site[0]) + index, 8, 8))
            save(root / site / f"masks/{site}{index}.png", Image.fromarray(label))
    return root


def prepared(tmp_path: Path, **chosen: object) -> Prepared:
    shares = {"classes": ORGANS, "public": "public", "validation": 0.34, "test": 0.34}
    return prepare_folders(tmp_path / "data", options(tmp_path, **{**shares, **chosen}))


@pytest.fixture
def listed(tmp_path: Path) -> tuple[DataList, Path]:
    root = striped(tmp_path / "data", "public", "a")
    return DataList.load(prepared(tmp_path).path), root


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=2, max_size=5))
def test_planes_are_one_hot_and_encode_class(rows):
    label = np.array(rows, np.uint8)
    planes = classes.planes_of(label, 3)
    assert planes.shape == (4, *label.shape)
    assert (planes.sum(0) == 1).all()
    assert (planes.argmax(0) == label).all()


def test_output_count_and_colours_of_classes():
    assert [classes.outputs_of(each) for each in (None, [], ["lesion"], ORGANS)] == [1, 1, 1, 3]
    assert [classes.colour_of(number) for number in range(1, 9)] == [*classes.COLOURS, classes.COLOURS[0]]


NAMES = "classes: expected a list of 1 to 14 names, found"


@pytest.mark.parametrize(
    ("names", "threshold", "starts"),
    [
        ([], None, [f'{NAMES} []; for instance ["kidney", "spleen"]']),
        ("kidney", None, [f"{NAMES} 'kidney'; for instance"]),
        (["kidney", 2], None, [f"{NAMES} ['kidney', 2]; for instance"]),
        (["kidney", " "], None, [f"{NAMES} ['kidney', ' ']; for instance"]),
        (["kidney", "a\x1f"], None, [f"{NAMES} ['kidney', 'a\\x1f']; for instance"]),
        (["kidney", "$x"], None, [f"{NAMES} ['kidney', '$x']; for instance [\"kidney\", \"spleen\"]; no @, $ or % fi"]),
        (["kidney", "5 $"], None, []),
        (["kidney", "kidney"], None, ["classes: expected every name once, found kidney more than once"]),
        (list("abcdefghijklmno"), None, [f"{NAMES} ['a', 'b'"]),
        (list("abcdefghijklmn "[:14]), None, []),
        (["kidney"], None, ["classes: expected the names of two classes or more, found one name, 'kidney'; leave it"]),
        (ORGANS, 0, ["classes: expected one of the two, found a mask threshold (0) as well; leave it out: a threshol"]),
    ],
)
def test_invalid_classes_of_list_are_refused(names, threshold, starts):
    problems = [str(problem) for problem in classes.list_class_problems(names, threshold, "classes")]
    assert [problem[: len(start)] for problem, start in zip(problems, starts, strict=True)] == starts
    assert classes.class_problems(["lesion"], "classes") == []


def test_single_class_name_is_refused_as_option_and_in_list(listed, tmp_path):
    with pytest.raises(Refused, match="--classes: expected the names of two classes or more, found one name"):
        prepared(tmp_path, classes=["kidney"])
    write_json(tmp_path / "list.json", read_json(tmp_path / "list.json") | {"classes": ["kidney"]})
    with pytest.raises(Refused, match=r"list\.json -> classes: expected the names of two classes or more"):
        DataList.load(tmp_path / "list.json")


def test_class_file_is_read_or_refused_with_unknown_values(tmp_path):
    (tmp_path / "x.png").write_bytes(png([0, 1], [2, 2]))
    for names in (ORGANS, 2):
        assert classes.read_classes(tmp_path / "x.png", names).tolist() == [[0, 1], [2, 2]]
    tiff = save(tmp_path / "x.tif", picture(0).convert("L"), compression="jpeg").read_bytes()
    for content, message in (
        (png([0, 1], [7, 3]), "0 to 2: the background, kidney, spleen, found the class values 3, 7; name all classes"),
        (png(range(9)), "found the class values 3, 4, 5, 6, 7, 8; name"),
        (png(range(10)), "found the class values 3, 4, 5, 6, 7, 8, …; name"),
        (jpeg(picture(0).convert("L")), "8-bit grey without loss, found lossy JPEG with 'L' pixels"),
        (tiff, "8-bit grey without loss, found lossy TIFF with 'L' pixels"),
        (png_of(np.zeros((2, 2, 3), np.uint8)), "8-bit grey without loss, found PNG with 'RGB' pixels"),
    ):
        with pytest.raises(Refused, match=rf"b/7\.png: expected .*{message}"):
            classes.decode_classes(content, "b/7.png", ORGANS)


def test_list_classes_are_kept_and_records_read_as_planes(listed):
    datalist, root = listed
    assert datalist.classes == ORGANS
    assert datalist.for_site("a").classes == datalist.for_server().classes == ORGANS
    assert label_settings(datalist) == {"classes": ORGANS}
    (record, *_) = load_records(datalist, root, split="public")
    assert record["classes"] == 2
    label = LoadRGBd()(record)["label"]
    assert label.shape == (3, 8, 8)
    assert label.argmax(0)[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert torch.equal(label.sum(0), torch.ones(8, 8))
    assert not check_datalist(datalist, root)


def test_class_names_change_hashes_and_binary_lists_keep_hash(listed):
    datalist, _ = listed
    other = DataList(datalist.name, datalist.public, datalist.sites, classes=ORGANS[::-1])
    assert datalist.public_hash() != other.public_hash()
    assert datalist.part_hash("a") != other.part_hash("a")
    assert datalist.hash != other.hash
    assert "classes" not in DataList("x", []).content()


def test_site_with_unknown_class_is_refused_and_missing_class_warned(listed, tmp_path):
    striped(tmp_path / "data", "b", values=(0, 1))
    made = prepared(tmp_path, output=tmp_path / "more.json", report=True)
    assert [each for each in made.warnings if "no label of" in each] == [
        "no label of b has spleen: check whether it was annotated; if it was not, training and "
        "scores treat it as absent"
    ]
    page = made.report.read_text(encoding="utf-8")
    assert "kidney, spleen" in page
    assert '<b style="color: rgb(230, 159, 0)">kidney</b>, <b style="color: rgb(86, 180, 233)">spleen</b>.' in page
    assert "yellow" not in page
    striped(tmp_path / "data", "b", values=(0, 3))
    with pytest.raises(Refused, match=r"b/masks/b0.png: expected 0 to 2: the background, kidney, spleen, found .* 3"):
        prepared(tmp_path, output=tmp_path / "wrong.json")
    assert not (tmp_path / "wrong.json").exists()


@pytest.mark.parametrize(
    ("of_list", "of_run", "message"),
    [
        (ORGANS, ["lesion"], r"list: expected \['lesion'\], the classes of this run, found the classes \['kidney"),
        ([], ORGANS, r"found binary masks, of one class; make it again with `samfed prepare … --classes`"),
        (ORGANS[::-1], ORGANS, "the same names in the same order at every site"),
        *((*same, None) for same in (([], ["lesion"]), ([], []), ([], None), (ORGANS, ORGANS))),
    ],
)  # fmt: skip
def test_list_with_other_classes_than_run_is_refused(of_list, of_run, message):
    problems = "\n".join(map(str, classes.class_mismatch(of_list, of_run, "list")))
    assert re.search(message, problems) if message else not problems


def test_weak_label_list_keeps_classes_as_planes(listed):
    datalist, root = listed
    drawn = weaken_list(datalist, root, {"a": "points"}, points=1, width=1)
    assert drawn.classes == datalist.classes
    assert check_datalist(drawn, root) == []
    given = {"split": "unlabelled", "site": "a", "with_labels": True, "weak_labels": True}
    label, whole = (read_label(load_records(each, root, **given)[0]) for each in (drawn, datalist))
    assert label.shape == whole.shape
    assert label.sum(axis=(1, 2)).tolist() == [1 if plane.any() else 0 for plane in whole]
    assert not (label > whole).any()
