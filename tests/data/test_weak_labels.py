"""Weak labels from masks and from files: what they may say, and that they say nothing wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from samfed_monai.cli.main import main
from samfed_monai.core.errors import Refused
from samfed_monai.data import DataList, check_datalist, render_synthetic
from samfed_monai.data.weak_labels import IGNORE, WEAK, decode_weak_label, read_weak_label, weaken, weaken_list


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def square() -> np.ndarray:
    mask = np.zeros((20, 24), np.uint8)
    mask[6:14, 4:12] = 1
    return mask


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("kind", [kind for kind in WEAK if kind != "box"])
@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_what_is_labelled_is_what_the_mask_says(kind, classes, seed):
    mask = (random(seed).random((16, 18)) < 0.3) * random(seed).integers(1, classes + 1, (16, 18), np.uint8)
    mask[3:9, 2:12] = 1
    label = weaken(mask, kind, random=random(seed))
    known = label != IGNORE
    assert (label[known] == mask[known]).all()
    there, drawn = set(np.unique(mask).tolist()), set(np.unique(label).tolist())
    assert drawn <= there | {IGNORE}
    assert (0 in drawn and drawn & {1, 2, 3}) if kind == "block" else there <= drawn


@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_boxes_leave_out_no_class(seed: int) -> None:
    mask = random(seed).integers(0, 4, (6, 7), np.uint8)
    mask[0, :4] = (0, 1, 2, 3)
    assert set(np.unique(weaken(mask, "box", random=random())).tolist()) >= {0, 1, 2, 3}


def test_a_box_by_hand(square):
    label = weaken(square, "box", random=random())
    expected = np.zeros_like(square)
    expected[6:14, 4:12] = IGNORE
    expected[8:12, 6:10] = 1
    assert (label == expected).all()


def test_the_smaller_box_decides_where_a_ring_has_another_class_in_it():
    mask = np.zeros((8, 8), np.uint8)
    mask[:6, :6], mask[2:4, 2:4] = 2, 1
    label = weaken(mask, "box", random=random())
    expected = np.zeros_like(mask)
    expected[:6, :6], expected[1:5, 1:5], expected[2:4, 2:4] = IGNORE, 2, 1  # quarters of 6 and of 2 are 1 and 0
    assert (label == expected).all()


def test_points_of_each_class_are_as_many_as_asked_for(square):
    mask = square.copy()
    mask[16:, 16:] = 2
    label = weaken(mask, "points", random=random(), points=3, width=1)
    assert [(label == value).sum() for value in (0, 1, 2)] == [3, 3, 3]


def test_two_objects_have_two_boxes(square):
    mask = square.copy()
    mask[16:20, 16:24] = 1
    label = weaken(mask, "box", random=random())
    assert (label[17:19, 18:22] == 1).all()
    assert label[15, 14] == 0


def test_points_are_as_many_as_asked_for(square):
    label = weaken(square, "points", random=random(), points=4, width=1)
    assert [(label == value).sum() for value in (1, 0)] == [4, 4]


def test_a_scribble_of_a_bar_is_its_middle_line():
    mask = np.zeros((15, 31), np.uint8)
    mask[5:10, 3:28] = 1
    label = weaken(mask, "scribble", random=random(), width=1)
    assert (label[7, 8:22] == 1).all()
    assert (label[[6, 8], 8:22] == IGNORE).all()
    assert (label == 0).sum() > 20


def test_a_block_is_the_mask_on_half_of_each_side(square):
    label = weaken(square, "block", random=random(3))
    rows, columns = np.nonzero(label != IGNORE)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (10, 12)


def test_the_same_seed_draws_the_same(square):
    drawn = [weaken(square, "points", random=random(seed)) for seed in (1, 1, 2)]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


@pytest.mark.parametrize("mask", [np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)])
def test_a_mask_of_one_class_is_refused(mask):
    with pytest.raises(
        Refused, match=r"mask: expected foreground and background, found one class alone; keep it as a mask"
    ):
        weaken(mask, "points", random=random())


def test_numbers_out_of_range_are_told_together(square):
    with pytest.raises(
        Refused,
        match=r"(?s)points: expected a number .* >= 1, found 0.*width: expected an odd number of pixels, found 2",
    ):
        weaken(square, "points", random=random(), points=0, width=2)


def png(folder: Path, values: list[list[int]]) -> Path:
    path = folder / "label.png"
    Image.fromarray(np.array(values, np.uint8)).save(path)
    return path


def test_a_file_is_read_as_it_is(tmp_path):
    assert read_weak_label(png(tmp_path, [[0, 1], [255, 1]])).tolist() == [[0, 1], [255, 1]]


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ([[1, 255]], 1, "foreground without background.*mark some background"),
        ([[0, 255]], 1, "only the values 0 and 255: a mask, or a weak label without foreground"),
        ([[0, 255]], 2, "only the values 0 and 255: .*write foreground as 1 to 2, that of masks"),
        ([[0, 1, 2, 128]], 1, r"other values \(2, 128\).*save it without loss"),
        ([[0, 1, 3, 255]], 2, r"expected .*1 to 2 foreground.*found other values \(3\)"),
    ],
)
def test_a_file_that_says_too_little_is_refused(tmp_path, values, classes, message):
    with pytest.raises(Refused, match=message):
        read_weak_label(png(tmp_path, values), classes)


def test_a_jpeg_is_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "label.jpg")
    with pytest.raises(Refused, match="expected 8-bit grey without loss"):
        decode_weak_label((tmp_path / "label.jpg").read_bytes(), "label.jpg")


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DataList]:
    root = tmp_path_factory.mktemp("images")
    counts: dict[str, Any] = {"images_per_site": 5, "public": 3, "validation": 2, "test": 2, "size": (64, 64)}
    return root, render_synthetic(root, sites=2, labelled=True, **counts)


def test_only_training_images_of_the_named_sites_change(masks):
    root, listed = masks
    first, second = sorted(listed.sites)
    drawn = weaken_list(listed, root, {first: "block"})
    assert {item.label_kind for item in drawn.sites[first].unlabelled} == {"block"}
    assert drawn.sites[second] == listed.sites[second]
    assert (drawn.public, drawn.sites[first].test) == (listed.public, listed.sites[first].test)
    assert drawn.hash != listed.hash
    assert drawn.hash == weaken_list(listed, root, {first: "block"}).hash
    assert check_datalist(drawn, root) == []


def test_other_numbers_of_points_are_other_files(masks):
    root, listed = masks
    kinds = dict.fromkeys(listed.sites, "points")
    few = weaken_list(listed, root, kinds)
    for numbers in ({"points": 9}, {"width": 5}, {"points": 9, "width": 5}):
        many = weaken_list(listed, root, kinds, **numbers)
        assert check_datalist(few, root) == check_datalist(many, root) == []


def test_a_list_keeps_its_kinds_and_refuses_others(masks, tmp_path):
    root, listed = masks
    drawn = weaken_list(listed, root, dict.fromkeys(listed.sites, "points"))
    drawn.save(tmp_path / "list.json")
    assert DataList.load(tmp_path / "list.json") == drawn
    content = json.loads((tmp_path / "list.json").read_text())
    unlabelled = content["sites"]["site-1"]["unlabelled"][0]
    for item, kind, message in (
        (unlabelled, "scribbles", "found 'scribbles'; did you mean 'scribble'"),
        (content["public"][0], "box", r"public#0#label_kind: .*found a weak label \(box\)"),
    ):
        before, item["label_kind"] = item.get("label_kind"), kind
        (tmp_path / "list.json").write_text(json.dumps(content))
        with pytest.raises(Refused, match=message):
            DataList.load(tmp_path / "list.json")
        item["label_kind"] = before


@pytest.mark.parametrize("split", ["validation", "test"])
def test_what_is_scored_has_masks_alone(masks, tmp_path, split):
    masks[1].save(tmp_path / "list.json")
    content = json.loads((tmp_path / "list.json").read_text())
    content["sites"]["site-1"][split][0]["label_kind"] = "points"
    (tmp_path / "list.json").write_text(json.dumps(content))
    message = rf"site-1#{split}#0#label_kind: expected a mask, as every {split} item, found a weak label \(points\)"
    with pytest.raises(Refused, match=message):
        DataList.load(tmp_path / "list.json")


def test_what_cannot_be_drawn_is_told_before_any_is(masks):
    root, listed = masks
    message = r"(?s)found 'site-9'.*--kind of site-1: expected one of .*found 'lines'"
    with pytest.raises(Refused, match=message):
        weaken_list(listed, root, {"site-9": "box", "site-1": "lines"})


def test_weak_labels_are_drawn_from_masks_and_not_from_weak_labels(masks):
    root, listed = masks
    first, second = sorted(listed.sites)
    mixed = weaken_list(listed, root, {first: "points"})
    message = (
        f"sites -> {first} -> unlabelled: expected masks, from which weak labels are made, found 5 weak labels "
        r"\(points\); take the list with masks; a site that --kind does not name keeps the labels that it has"
    )
    with pytest.raises(Refused, match=message) as caught:
        weaken_list(mixed, root, dict.fromkeys(listed.sites, "box"))
    assert len(caught.value.problems) == 1
    with pytest.raises(Refused, match=message):
        weaken_list(mixed, root, {first: "points"})
    both = weaken_list(mixed, root, {second: "box"})
    assert both.sites[first] == mixed.sites[first]
    assert {item.label_kind for item in both.sites[second].unlabelled} == {"box"}


def test_the_command_draws_a_kind_for_each_site(masks, tmp_path, capsys):
    root, listed = masks
    listed.save(tmp_path / "list.json")
    arguments = ["--data-root", str(root), "--kind", "points", "--kind", "site-2=box"]
    code = main(["prepare", "weak", str(tmp_path / "list.json"), *arguments, "--output", str(tmp_path / "weak.json")])
    assert code == 0
    drawn = DataList.load(tmp_path / "weak.json")
    assert [drawn.sites[name].unlabelled[0].label_kind for name in ("site-1", "site-2")] == ["points", "box"]
    assert "labelled" in (tmp_path / "weak.report.html").read_text()
    assert "weak.json" in capsys.readouterr().out


def test_two_kinds_for_one_site_are_refused(masks, tmp_path, capsys):
    root, listed = masks
    listed.save(tmp_path / "list.json")
    given = ["prepare", "weak", str(tmp_path / "list.json"), "--data-root", str(root)]
    kinds = ["--kind", "points", "--kind", "box", "--kind", "site-2=box", "--kind", "site-2=points"]
    assert main([*given, *kinds, "--output", str(tmp_path / "weak.json")]) == 2
    told = capsys.readouterr().err
    assert "two values for all sites" in told
    assert "two values for site-2" in told
    assert not (tmp_path / "weak.json").exists()
