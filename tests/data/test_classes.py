"""Labels of several classes: names, files of class values, planes; what is refused, and with which words."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, write_json
from samfed_monai.data import DataList
from samfed_monai.data.checks import check_datalist
from samfed_monai.data.classes import (
    class_problems,
    decode_classes,
    other_classes,
    outputs_of,
    planes_of,
    read_classes,
)
from samfed_monai.data.prepare import Options, prepare_folders
from samfed_monai.data.records import load_records, read_as
from samfed_monai.data.weak_labels import weaken_list
from samfed_monai.transforms import LoadRGBd
from samfed_monai.transforms.loading import read_label

ORGANS = ["kidney", "spleen"]


def png(pixels, mode=None) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8), mode).save(stream, "PNG")
    return stream.getvalue()


def folders(root, values=(0, 1, 2), sites=("public", "a")):
    """Sites of three images of 8 x 8 pixels each, whose labels hold these values in stripes."""
    random = np.random.default_rng(0)
    for site in sites:
        for kind in ("images", "masks"):
            (root / site / kind).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(
                root / site / f"images/{site}{index}.png"
            )
            stripes = np.repeat(np.resize(values, 8), 8).reshape(8, 8)
            (root / site / f"masks/{site}{index}.png").write_bytes(png(stripes))
    return root


def listed(tmp_path, **options):
    root = folders(tmp_path / "data")
    chosen = {"output": tmp_path / "list.json", "classes": ORGANS, "report": False} | options
    prepare_folders(root, Options(**chosen, public="public", validation=0.34, test=0.34))
    return DataList.load(tmp_path / "list.json"), root


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=2, max_size=5))
def test_exactly_one_plane_is_set_in_every_pixel_and_it_says_the_class(rows):
    label = np.array(rows, np.uint8)
    planes = planes_of(label, 3)
    assert planes.shape == (4, *label.shape)
    assert (planes.sum(0) == 1).all()
    assert (planes.argmax(0) == label).all()


def test_one_class_has_one_logit_and_more_have_one_for_the_background():
    assert [outputs_of(each) for each in (None, [], ["lesion"], ORGANS)] == [1, 1, 1, 3]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"classes: expected a list of 1 to 14 names, found \[\]; for instance \[\"kidney\", \"spleen\"\]"),
        ("kidney", "expected a list of 1 to 14 names, found 'kidney'"),
        (["kidney", 2], r"expected a list of 1 to 14 names, found \['kidney', 2\]"),
        (["kidney", "kidney"], "expected every name once, found kidney more than once"),
        ([str(number) for number in range(15)], "expected a list of 1 to 14 names"),
    ],
)
def test_what_is_no_list_of_names_is_refused(names, message):
    with pytest.raises(Refused, match=message):
        raise Refused(class_problems(names, "classes"))


def test_a_value_that_no_class_has_is_refused_with_its_place():
    message = r"b/7.png: expected 0 to 2: the background, kidney, spleen, found the class values 3, 7; name every class"
    with pytest.raises(Refused, match=message):
        decode_classes(png([[0, 1], [7, 3]]), "b/7.png", ORGANS)
    assert decode_classes(png([[0, 1], [2, 2]]), "b/7.png", ORGANS).tolist() == [[0, 1], [2, 2]]


def test_a_colour_picture_is_no_label_of_classes():
    with pytest.raises(Refused, match="expected 8-bit grey without loss, found PNG with 'RGB' pixels"):
        decode_classes(png(np.zeros((2, 2, 3))), "x.png", ORGANS)


def test_the_list_says_the_classes_and_its_items_are_read_as_planes(tmp_path):
    datalist, root = listed(tmp_path)
    assert datalist.classes == ORGANS
    assert datalist.for_site("a").classes == datalist.for_server().classes == ORGANS
    assert read_as(datalist) == {"classes": ORGANS}
    (record, *_) = load_records(datalist, root, split="public")
    assert record["classes"] == 2
    label = LoadRGBd()(record)["label"]
    assert label.shape == (3, 8, 8)
    assert label.argmax(0)[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert torch.equal(label.sum(0), torch.ones(8, 8))
    assert not check_datalist(datalist, root)


def test_other_names_are_another_list_at_every_end(tmp_path):
    datalist, _ = listed(tmp_path)
    other = DataList(datalist.name, datalist.public, datalist.sites, classes=ORGANS[::-1])
    assert datalist.public_hash() != other.public_hash()
    assert datalist.part_hash("a") != other.part_hash("a")
    assert datalist.hash != other.hash


def test_a_list_of_binary_masks_is_what_it_was():
    """The hash is that of a list before there were classes."""
    assert "classes" not in DataList("x", []).content()


def test_a_site_whose_labels_have_another_class_is_told_where(tmp_path):
    root = folders(tmp_path / "data")
    folders(tmp_path / "data", values=(0, 3), sites=("b",))
    options = Options(output=tmp_path / "list.json", classes=ORGANS, public="public")
    with pytest.raises(Refused, match=r"b/masks/b0.png: expected 0 to 2: the background, kidney, spleen, found .* 3"):
        prepare_folders(root, options)
    assert not (tmp_path / "list.json").exists()


def test_a_site_that_has_never_seen_a_class_is_worth_a_look(tmp_path):
    root = folders(tmp_path / "data")
    folders(tmp_path / "data", values=(0, 1), sites=("b",))
    shares = {"public": "public", "validation": 0.34, "test": 0.34}
    options = Options(output=tmp_path / "list.json", classes=ORGANS, **shares)
    prepared = prepare_folders(root, options)
    assert [each for each in prepared.warnings if "no label of" in each] == [
        "no label of b has spleen: look whether it was drawn there; where it was not, a network is taught, and scored "
        "as if, it were absent"
    ]
    assert "kidney, spleen" in prepared.report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["kidney"]}, "--classes: expected the names of two classes or more, found one name"),
        ({"mask_threshold": 128}, r"--classes: expected one of the two, found a mask threshold \(128\) beside it"),
        ({"classes": ["a", "a"]}, "--classes: expected every name once"),
    ],
)
def test_options_that_contradict_each_other_are_refused_before_any_work(tmp_path, options, message):
    with pytest.raises(Refused, match=message):
        listed(tmp_path, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["kidney"]}, "classes: expected the names of two classes or more, found one name, 'kidney'"),
        ({"classes": "kidney"}, "classes: expected a list of 1 to 14 names, found 'kidney'"),
        ({"mask_threshold": 100}, r"classes: expected one of the two, found a mask threshold \(100\) beside it"),
    ],
)
def test_a_list_with_such_classes_does_not_load(tmp_path, change, message):
    listed(tmp_path)
    write_json(tmp_path / "list.json", read_json(tmp_path / "list.json") | change)
    with pytest.raises(Refused, match=message):
        DataList.load(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("of_list", "knob", "message"),
    [
        (
            ORGANS,
            ["lesion"],
            r"list: expected \['lesion'\], the classes of this run, found the classes \['kidney', 'spl",
        ),
        ([], ORGANS, r"found binary masks, of one class; make it again with `samfed prepare … --classes`"),
        (ORGANS[::-1], ORGANS, "the same names in the same order at every site"),
    ],
)
def test_a_list_of_other_classes_than_the_run_is_refused(of_list, knob, message):
    with pytest.raises(Refused, match=message):
        raise Refused(other_classes(of_list, knob, "list"))


@pytest.mark.parametrize(("of_list", "knob"), [([], ["lesion"]), ([], []), ([], None), (ORGANS, ORGANS)])
def test_one_class_has_whatever_name_the_run_gives_it(of_list, knob):
    assert other_classes(of_list, knob, "list") == []


def test_a_list_of_weak_labels_keeps_its_classes_and_each_is_a_plane(tmp_path):
    datalist, root = listed(tmp_path)
    drawn = weaken_list(datalist, root, {"a": "points"}, points=1, width=1)
    assert drawn.classes == datalist.classes
    assert check_datalist(drawn, root) == []
    record, *_ = load_records(drawn, root, split="unlabelled", site="a", with_labels=True, weak_labels=True)
    mask, *_ = load_records(datalist, root, split="unlabelled", site="a", with_labels=True)
    label, whole = read_label(record), read_label(mask)
    assert label.shape == whole.shape
    assert label.sum(axis=(1, 2)).tolist() == [1 if plane.any() else 0 for plane in whole]
    assert not (label > whole).any()


def test_a_file_is_read_as_its_bytes_are(tmp_path):
    (tmp_path / "x.png").write_bytes(png([[0, 2]]))
    assert read_classes(tmp_path / "x.png", 2).tolist() == [[0, 2]]
