"""Weak labels from masks and from files: what they may say, that they say nothing wrong, and folders of them."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from samfed_monai.cli.main import main
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import sha256_file
from samfed_monai.data import DataList, check_datalist, render_synthetic
from samfed_monai.data.datalist import Item, Site
from samfed_monai.data.prepare import Prepared, prepare_folders
from samfed_monai.data.reading import png_of
from samfed_monai.data.weak_labels import IGNORE, WEAK, read_weak_label, weaken, weaken_list
from tests.cli.test_prepare import run
from tests.data.making import disc, options, pair, save, site


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


SQUARE = np.zeros((20, 24), np.uint8)
SQUARE[6:14, 4:12] = 1


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("kind", [kind for kind in WEAK if kind != "box"])
@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_labelled_pixels_agree_with_mask(kind, classes, seed):
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
def test_boxes_keep_all_classes(seed: int) -> None:
    mask = random(seed).integers(0, 4, (6, 7), np.uint8)
    mask[0, :4] = random(seed).permutation(4)
    assert set(np.unique(weaken(mask, "box", random=random())).tolist()) >= {0, 1, 2, 3}


def test_two_objects_have_separate_boxes():
    mask = SQUARE.copy()
    mask[16:20, 16:24] = 1
    expected = np.zeros_like(mask)
    expected[6:14, 4:12] = expected[16:20, 16:24] = IGNORE
    expected[8:12, 6:10] = expected[17:19, 18:22] = 1
    assert (weaken(mask, "box", random=random()) == expected).all()


def test_smaller_box_wins_inside_ring_and_hidden_class_keeps_one_pixel():
    mask = np.zeros((8, 8), np.uint8)
    mask[:6, :6], mask[2:4, 2:4] = 2, 1
    expected = np.zeros_like(mask)
    expected[:6, :6], expected[1:5, 1:5], expected[2:4, 2:4] = IGNORE, 2, 1  # quarters of 6 and of 2 are 1 and 0
    assert (weaken(mask, "box", random=random()) == expected).all()
    mask = np.ones((6, 6), np.uint8)
    mask[1:5, 1:5], mask[5, 4] = 2, 0
    expected = np.full_like(mask, IGNORE)
    expected[2:4, 2:4], expected[0, 0], expected[5, 4] = 2, 1, 0
    assert (weaken(mask, "box", random=random()) == expected).all()


def test_points_of_each_class_match_requested_number():
    mask = SQUARE.copy()
    mask[16:, 16:] = 2
    label = weaken(mask, "points", random=random(), points=3, width=1)
    assert [(label == value).sum() for value in (0, 1, 2)] == [3, 3, 3]


def test_scribble_of_bar_is_middle_line():
    mask = np.zeros((15, 31), np.uint8)
    mask[5:10, 3:28] = 1
    label = weaken(mask, "scribble", random=random(), width=1)
    assert (label[7, 8:22] == 1).all()
    assert (label[[6, 8], 8:22] == IGNORE).all()
    assert (label == 0).sum() > 20


def test_region_without_skeleton_keeps_pixel_and_skimage_is_required(monkeypatch):
    monkeypatch.setattr("skimage.morphology.skeletonize", lambda region: region & False)
    assert np.argwhere(weaken(SQUARE, "scribble", random=random(), width=1) != IGNORE).tolist() == [[0, 0], [6, 4]]
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(Refused, match=r"scribbles: expected scikit-image, found no .*pip install 'samfed-monai\[weak"):
        weaken(SQUARE, "scribble", random=random())


@pytest.mark.parametrize(("at", "corner"), [((10, 12), (5, 6)), ((0, 0), (0, 0)), ((19, 23), (10, 12))])
def test_block_covers_half_of_each_side_around_border_pixel(at, corner):
    mask = np.zeros((20, 24), np.uint8)
    mask[at] = 1
    label = weaken(mask, "block", random=random())
    known = np.argwhere(label != IGNORE)
    assert (known.min(0).tolist(), np.ptp(known, 0).tolist()) == ([*corner], [9, 11])
    assert label[at] == 1


@pytest.mark.parametrize(
    ("mask", "given", "message"),
    [
        (0 * SQUARE, {}, "mask: expected foreground and background, found only one class; keep it as a mask"),
        (0 * SQUARE + 1, {}, "found only one class"),
        (SQUARE, {"points": 0, "width": 2}, "(?s)points: expected a number .* >= 1, found 0.*width: .* found 2"),
        (SQUARE, {"width": -1}, "width: expected an odd number of pixels, found -1"),
        (SQUARE, {"kind": "mask"}, r"kind: expected one of \['scribble', 'points', 'box', 'block'\], found 'mask'"),
    ],
)
def test_invalid_mask_and_options_are_refused(mask, given, message):
    with pytest.raises(Refused, match=message):
        weaken(mask, **{"kind": "points", "random": random(), **given})


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ([[1, 255]], 1, "foreground without background.*mark some background"),
        ([[0, 255]], 1, "only the values 0 and 255: a mask, or a weak label without foreground"),
        ([[0, 255]], 2, "only the values 0 and 255: .*write foreground as 1 to 2, also in masks"),
        ([[*range(10)]], 1, r"other values \(2, 3, 4, 5, 6, 7\);"),
        ([[0, 1, 2, 128]], 1, r"other values \(2, 128\).*save it without loss"),
        ([[[0, 1, 255]]], 1, "expected 8-bit grey without loss, found PNG with 'RGB' pixels"),
        ([[0, 1, 3, 255]], 2, r"expected .*1 to 2 foreground.*found other values \(3\)"),
        ([[0, 1], [255, 1]], 1, None),
    ],
)
def test_weak_label_file_is_read_unchanged_unless_ambiguous(tmp_path, values, classes, message):
    (tmp_path / "label.png").write_bytes(png_of(np.array(values, np.uint8)))
    with pytest.raises(Refused, match=message) if message else nullcontext():
        assert read_weak_label(tmp_path / "label.png", classes).tolist() == values


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DataList]:
    root = tmp_path_factory.mktemp("images")
    counts = {"images_per_site": 2, "public": 1, "validation": 1, "test": 1}
    listed = render_synthetic(root, sites=2, labelled=True, **counts, size=(64, 64))
    listed.save(root / "list.json")
    return root, listed


def test_only_training_images_of_named_sites_change(masks):
    root, listed = masks
    first, second = sorted(listed.sites)
    drawn = weaken_list(listed, root, {first: "block"})
    assert {item.label_kind for item in drawn.sites[first].unlabelled} == {"block"}
    assert drawn.sites[second] == listed.sites[second]
    assert (drawn.public, drawn.sites[first].test) == (listed.public, listed.sites[first].test)
    assert drawn.hash != listed.hash
    assert drawn.hash == weaken_list(listed, root, {first: "block"}).hash
    assert check_datalist(drawn, root) == []


def test_other_seeds_and_point_options_write_other_labels(masks):
    root, listed = masks
    numbers = ({}, {"seed": 1}, {"points": 9}, {"points": 8}, {"width": 5}, {"width": 7}, {"points": 9, "width": 5})
    drawn = [weaken_list(listed, root, {"site-1": "points"}, **each).sites["site-1"].unlabelled[0] for each in numbers]
    assert len({item.label for item in drawn}) == len({item.label_sha256 for item in drawn}) == 7


def test_invalid_sites_and_kinds_are_refused_together(masks):
    root, listed = masks[0], replace(masks[1], sites={**masks[1].sites, "bare": Site([Item("1.png", "a" * 64)])})
    error = r"(?s)\['bare', 'site-1', 'site-2'\], found 'site-9'.*--kind of site-1: .*'lines'.*bare -> .*found no masks"
    unread = r"(?s)--points: expected 5, as no site here gets points, found 3; .*--width: "
    outside = r"(?s)--points: expected a number .* >= 1, found 0.*--width: expected an odd number of pixels, found 2"
    for kinds, sizes, message in (
        ({"site-9": "box", "site-1": "lines", "bare": "box"}, {}, error),
        ({"site-1": "block"}, {"points": 3, "width": 5}, unread),
        ({"site-1": "points"}, {"points": 0, "width": 2}, outside),
    ):
        with pytest.raises(Refused, match=message):
            weaken_list(listed, root, kinds, **sizes)


def test_empty_full_and_missing_masks_are_unchanged(tmp_path):
    items = [pair(tmp_path, name, 0) for name in ("some", "none", "all")]
    for item, radius in zip(items, (8, 0, 99), strict=True):
        save(tmp_path / item.label, disc(radius=radius))
    listed = DataList("x", [], {"a": Site([*items, Item("1.png", "a" * 64)])})
    drawn = weaken_list(listed, tmp_path, {"a": "box"}).sites["a"].unlabelled
    assert [one.label_kind for one in drawn] == ["box", None, None, None]
    assert drawn[1:] == listed.sites["a"].unlabelled[1:]
    save(tmp_path / items[0].label, disc(radius=5))  # another mask, whose label must not replace the first one's
    with pytest.raises(Refused, match=r"/weak/box-0/masks/some\.png: .* found another file; take another --seed, or"):
        weaken_list(listed, tmp_path, {"a": "box"})
    assert sha256_file(tmp_path / drawn[0].label) == drawn[0].label_sha256


def test_weak_labels_are_refused_as_source(masks):
    root, listed = masks
    first, second = sorted(listed.sites)
    mixed = weaken_list(listed, root, {first: "points"})
    message = (
        f"sites -> {first} -> unlabelled: expected masks to make weak labels from, found 2 weak labels "
        r"\(points\); use the list with masks; a site that is not in --kind keeps its labels"
    )
    with pytest.raises(Refused, match=message) as caught:
        weaken_list(mixed, root, dict.fromkeys(listed.sites, "box"))
    assert len(caught.value.problems) == 1
    with pytest.raises(Refused, match=message):
        weaken_list(mixed, root, {first: "points"})
    both = weaken_list(mixed, root, {second: "box"})
    assert both.sites[first] == mixed.sites[first]
    assert {item.label_kind for item in both.sites[second].unlabelled} == {"box"}


def test_weak_command_draws_kind_per_site_and_refuses_two_kinds(masks, tmp_path, capsys):
    given = ["prepare", "weak", str(masks[0] / "list.json"), "--data-root", str(masks[0])]
    unseen, server = replace(masks[1], sites={**masks[1].sites, "site-3": Site()}), masks[1].for_server()
    unseen.save(tmp_path / "unseen.json")
    server.save(tmp_path / "server.json")
    given[2:3], kind = [str(tmp_path / "unseen.json")], ["--kind", "points"]
    of_server = [*given[:2], str(tmp_path / "server.json"), *given[3:], *kind, "--output", str(tmp_path / "b.json")]
    assert main(of_server) == 2
    assert "sites: expected sites with training images, found no site that trains" in capsys.readouterr().err
    given += ["--output", str(tmp_path / "weak.json"), *kind, "--kind", "site-2=box"]
    assert main([*given, "--kind", "box", "--kind", "site-2=points"]) == 2
    error = capsys.readouterr().err
    assert "two values for all sites" in error
    assert "two values for site-2" in error
    assert not (tmp_path / "weak.json").exists()
    assert main(given) == 0
    drawn = DataList.load(tmp_path / "weak.json")
    assert [drawn.sites[name].unlabelled[0].label_kind for name in ("site-1", "site-2")] == ["points", "box"]
    assert "labelled" in (tmp_path / "weak.report.html").read_text()
    assert capsys.readouterr().out.endswith(" --variant weak_labels --output-dir RUN\n")


def prepared(tmp_path: Path, kinds: dict[str, str], **kwargs: object) -> Prepared:
    return prepare_folders(tmp_path / "data", options(tmp_path, **kwargs, public="public", label_kinds=kinds))


def scribble(path: Path, values: tuple[int, ...] = (0, 1, 255)) -> None:
    """A label that is the last of the values but for its first row, which has the others."""
    label = np.full((24, 32), values[-1], np.uint8)
    label[0, : len(values)] = values
    save(path, Image.fromarray(label))


def hospital(root: Path, name: str, images: int, masks: int, first: int) -> None:
    """A site of masks of 0 and 1, then scribbles."""
    site(root, name, images, 0, first=first)
    for number in range(images):
        path = root / name / "masks" / f"{name}_{number:03d}.png"
        save(path, disc(value=1, radius=3 + number % 6)) if number < masks else scribble(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Public masks; ``a`` has 4 masks and 16 scribbles, ``b`` 10 scribbles, ``c`` masks of 0 and 255, ``d`` nothing."""
    root = tmp_path / "data"
    site(root, "public", 3, 3)
    hospital(root, "a", 20, 4, 100)
    hospital(root, "b", 10, 0, 200)
    site(root, "c", 10, 10, first=300)
    site(root, "d", 2, 0, first=400)
    return root


def kinds_of(datalist: DataList, name: str) -> list[str | None]:
    return [item.label_kind for item in datalist.sites[name].unlabelled]


def test_weak_labels_train_and_masks_are_held_out(root, tmp_path):
    made = prepared(tmp_path, {"": "scribble", "b": "points", "c": "mask"}, report=True)
    listed = DataList.load(made.path)
    # a tenth of 20 images twice, drawn from the 4 masks: nothing but scribbles is left to train on
    assert kinds_of(listed, "a") == ["scribble"] * 16
    assert [len(items) for _, items in listed.sites["a"].splits()] == [16, 2, 2]
    assert kinds_of(listed, "b") == ["points"] * 10
    assert kinds_of(listed, "c") == [None] * 8, "they are masks of 0 and 255"
    assert kinds_of(listed, "d") == [None] * 2
    assert {item.label_kind for item in listed.public} == {None}
    assert check_datalist(listed, root) == []
    [warning] = [sentence for sentence in made.warnings if "no image has a mask" in sentence]
    assert warning.startswith("no scores at b, d: no image has a mask")
    assert "scribble, 0% labelled" in made.report.read_text()


def test_labels_are_refused_as_masks_without_kind_and_as_scribbles_without_255(root, tmp_path):
    with pytest.raises(Refused) as caught:
        prepared(tmp_path, {"a": "scribble"})
    assert {problem.where.partition("/")[0] for problem in caught.value.problems} == {"b"}
    assert all("--label-kind [SITE=]KIND" in str(problem) for problem in caught.value.problems)
    hospital(root, "c", 10, 10, 300)
    with pytest.raises(Refused, match=r"of c: .*found 10 labels without the value 255, that is, masks only; save weak"):
        prepared(tmp_path, {"": "scribble"})
    assert kinds_of(prepared(tmp_path, {"": "scribble", "c": "mask"}).datalist, "c") == [None] * 8


def test_scribbles_without_foreground_are_refused_as_possible_masks(root, tmp_path):
    scribble(root / "a" / "masks" / "a_019.png", (0, 255))
    with pytest.raises(Refused) as caught:
        prepared(tmp_path, {"": "scribble"})
    text = "found only the values 0 and 255: a mask, or a weak label without foreground; write foreground as 1, also in"
    assert [text in str(problem) for problem in caught.value.problems] == [True] * 11
    assert "if the site has only masks, give --label-kind SITE=mask" in str(caught.value)
    assert not (tmp_path / "list.json").exists()


@pytest.mark.parametrize(
    ("kinds", "chosen", "message"),
    [
        ({"e": "box"}, {}, r"--label-kind: expected one of \['a', 'b', 'c', 'd', 'public'\], found the site 'e'"),
        ({"": "scribbles"}, {}, r"--label-kind of all sites: expected one of .*'scribbles'; did you mean 'scribble'"),
        ({"public": "box"}, {}, "--label-kind of public: expected masks: its images are public, found 'box'"),
        ({"b": "box"}, {"unseen": ["b"]}, "--label-kind of b: expected masks: images of a site of --unseen are used"),
        ({"d": "box"}, {}, "--label-kind of d: expected labels of the kind box, found no labels"),
        ({"c": "box"}, {"classes": ["one", "two"]}, "c_000.png.*: expected a weak label: 0 background and 1 to 2 fore"),
    ],
)
def test_invalid_label_kinds_are_refused(root, tmp_path, kinds, chosen, message):
    with pytest.raises(Refused, match=message):
        prepared(tmp_path, kinds, **chosen)


def test_default_label_kind_applies_to_training_sites_only(root, tmp_path):
    site(root, "b", 10, 10, first=200)
    made = prepared(tmp_path, {"": "block", "c": "mask"}, unseen=["b"])
    assert [len(items) for _, items in made.datalist.sites["b"].splits()] == [0, 0, 10]
    assert kinds_of(made.datalist, "a") == ["block"] * 16


def test_folders_command_sets_label_kinds(root, tmp_path, capsys):
    words = ["folders", root, "--output", tmp_path / "list.json"]
    chosen = ["--public", "public", "--label-kind", "scribble", "--label-kind", "c=mask"]
    run(*words, *chosen)
    assert kinds_of(DataList.load(tmp_path / "list.json"), "a") == ["scribble"] * 16
    output = capsys.readouterr().out
    assert "please check: no scores at b, d" in output
    assert output.endswith(""" --variant weak_labels --unseen '["d"]' --output-dir RUN\n"""), "d has no label"
    assert "few images for scores at a, c:" in output, "more of b's images cannot be measured with"
    with pytest.raises(Refused, match="--label-kind: expected one value, found two values for all sites"):
        run(*words, *chosen, "--label-kind", "box")
    with pytest.raises(Refused, match=r"--label-kind: expected nothing with --test-only, which .* found a value; le"):
        run(*words, "--test-only", "--label-kind", "box")


def test_255_separates_scribbles_from_masks_of_several_classes(tmp_path):
    root = tmp_path / "data"
    for name, values in (("public", (0, 2)), ("a", (0, 1, 2, 255)), ("b", (0, 1, 2))):
        site(root, name, 3, 0, first=len(name) * ord(name[0]))
        for path in sorted((root / name / "images").iterdir()):
            scribble(root / name / "masks" / f"{path.stem}.png", values)
    made = prepared(tmp_path, {"a": "scribble"}, classes=["one", "two"], validation=0, test=0)
    assert (kinds_of(made.datalist, "a"), kinds_of(made.datalist, "b")) == (["scribble"] * 3, [None] * 3)
    assert check_datalist(made.datalist, root) == []
    with pytest.raises(Refused, match=r"found the class values 255; .*if 255 means 'not labelled'.*--label-kind"):
        prepared(tmp_path, {}, classes=["one", "two"])
