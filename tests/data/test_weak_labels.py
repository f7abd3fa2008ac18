"""Weak labels from masks and from files: what they may say, and that they say nothing wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samfed_monai.cli.main import main
from samfed_monai.core.errors import Refused
from samfed_monai.data import DataList, check_datalist, render_synthetic
from samfed_monai.data.reading import png_of
from samfed_monai.data.weak_labels import IGNORE, WEAK, decode_weak_label, read_weak_label, weaken, weaken_list


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


SQUARE = np.zeros((20, 24), np.uint8)
SQUARE[6:14, 4:12] = 1


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


def test_each_of_two_objects_has_a_box():
    mask = SQUARE.copy()
    mask[16:20, 16:24] = 1
    expected = np.zeros_like(mask)
    expected[6:14, 4:12] = expected[16:20, 16:24] = IGNORE
    expected[8:12, 6:10] = expected[17:19, 18:22] = 1
    assert (weaken(mask, "box", random=random()) == expected).all()


def test_the_smaller_box_decides_where_a_ring_has_another_class_in_it():
    mask = np.zeros((8, 8), np.uint8)
    mask[:6, :6], mask[2:4, 2:4] = 2, 1
    label = weaken(mask, "box", random=random())
    expected = np.zeros_like(mask)
    expected[:6, :6], expected[1:5, 1:5], expected[2:4, 2:4] = IGNORE, 2, 1  # quarters of 6 and of 2 are 1 and 0
    assert (label == expected).all()


def test_points_of_each_class_are_as_many_as_asked_for():
    mask = SQUARE.copy()
    mask[16:, 16:] = 2
    label = weaken(mask, "points", random=random(), points=3, width=1)
    assert [(label == value).sum() for value in (0, 1, 2)] == [3, 3, 3]


def test_a_scribble_of_a_bar_is_its_middle_line():
    mask = np.zeros((15, 31), np.uint8)
    mask[5:10, 3:28] = 1
    label = weaken(mask, "scribble", random=random(), width=1)
    assert (label[7, 8:22] == 1).all()
    assert (label[[6, 8], 8:22] == IGNORE).all()
    assert (label == 0).sum() > 20


def test_a_block_is_the_mask_on_half_of_each_side():
    label = weaken(SQUARE, "block", random=random(3))
    rows, columns = np.nonzero(label != IGNORE)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (10, 12)


def test_the_same_seed_draws_the_same():
    drawn = [weaken(SQUARE, "points", random=random(seed)) for seed in (1, 1, 2)]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


@pytest.mark.parametrize(
    ("mask", "given", "told"),
    [
        (0 * SQUARE, {}, "mask: expected foreground and background, found one class alone; keep it as a mask"),
        (0 * SQUARE + 1, {}, "found one class alone"),
        (SQUARE, {"points": 0, "width": 2}, "(?s)points: expected a number .* >= 1, found 0.*width: .* found 2"),
        (SQUARE, {"width": -1}, "width: expected an odd number of pixels, found -1"),
        (SQUARE, {"kind": "mask"}, r"kind: expected one of \['scribble', 'points', 'box', 'block'\], found 'mask'"),
    ],
)
def test_what_cannot_be_weakened_is_refused(mask, given, told):
    with pytest.raises(Refused, match=told):
        weaken(mask, **{"kind": "points", "random": random(), **given})


def test_a_file_is_read_as_it_is(tmp_path):
    (tmp_path / "label.png").write_bytes(png_of(np.array([[0, 1], [255, 1]], np.uint8)))
    assert read_weak_label(tmp_path / "label.png").tolist() == [[0, 1], [255, 1]]


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
def test_a_file_that_says_too_little_is_refused(values, classes, message):
    with pytest.raises(Refused, match=message):
        decode_weak_label(png_of(np.array(values, np.uint8)), "label.png", classes)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DataList]:
    root = tmp_path_factory.mktemp("images")
    counts = {"images_per_site": 2, "public": 1, "validation": 1, "test": 1}
    listed = render_synthetic(root, sites=2, labelled=True, **counts, size=(64, 64))
    listed.save(root / "list.json")
    return root, listed


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
    numbers = ({}, {"points": 9}, {"width": 5}, {"points": 9, "width": 5})
    drawn = [weaken_list(listed, root, {"site-1": "points"}, **each) for each in numbers]
    assert [check_datalist(each, root) for each in drawn] == [[]] * 4


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
        f"sites -> {first} -> unlabelled: expected masks, from which weak labels are made, found 2 weak labels "
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


def test_the_command_draws_a_kind_for_each_site_and_refuses_two(masks, tmp_path, capsys):
    given = ["prepare", "weak", str(masks[0] / "list.json"), "--data-root", str(masks[0])]
    given += ["--output", str(tmp_path / "weak.json"), "--kind", "points", "--kind", "site-2=box"]
    assert main([*given, "--kind", "box", "--kind", "site-2=points"]) == 2
    told = capsys.readouterr().err
    assert "two values for all sites" in told
    assert "two values for site-2" in told
    assert not (tmp_path / "weak.json").exists()
    assert main(given) == 0
    drawn = DataList.load(tmp_path / "weak.json")
    assert [drawn.sites[name].unlabelled[0].label_kind for name in ("site-1", "site-2")] == ["points", "box"]
    assert "labelled" in (tmp_path / "weak.report.html").read_text()
    assert "weak.json" in capsys.readouterr().out
