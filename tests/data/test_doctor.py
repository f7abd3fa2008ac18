"""The data doctor: folders that are nearly right, swapped ones, inverted masks, lost values, loops."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.data.checks import check_datalist
from samfed_monai.data.datalist import DataList
from samfed_monai.data.folders import find_folders, near_miss
from samfed_monai.data.prepare import prepare_folders
from samfed_monai.data.reading import decode_mask
from tests.data.making import disc, options, picture, save, site


@pytest.fixture
def root(tmp_path: Path) -> Path:
    site(tmp_path / "data", "public", 3, 3)
    site(tmp_path / "data", "a", 6, 6, first=50)
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["labels", "label", "mask", "Masks", "Ground Truth", "maks", "segmentations", "_gt"])
def test_fault_66_a_folder_that_is_nearly_masks_is_named(root, tmp_path, name):
    (root / "a" / "masks").rename(root / "a" / name)
    made = prepare_folders(root, options(tmp_path, public="public"))
    assert f"a has no folder 'masks', and a/{name} was not read: if it holds a's masks, rename it to a/masks" in (
        made.warnings
    )
    assert "nothing here can be scored" in made.warnings[0]


def test_fault_66_the_public_ones_are_refused(root, tmp_path):
    (root / "public" / "masks").rename(root / "public" / "labels")
    with pytest.raises(Refused, match="public/labels was not read: rename it to public/masks"):
        prepare_folders(root, options(tmp_path, public="public"))


@pytest.mark.parametrize("name", ["imgs", "image", "Images", "photos", "iamges"])
def test_fault_66_a_folder_that_is_nearly_images_is_named(root, name):
    site(root, "b", 2, 2, first=90)
    (root / "a" / "images").rename(root / "a" / name)
    [sentence] = find_folders(root, public="public").caveats
    assert sentence.endswith(f"was not read: if it is a site, rename a/{name} to a/images")
    (root / "public" / "images").rename(root / "public" / name)
    with pytest.raises(Refused, match=f"found no such folder; rename public/{name} to public/images"):
        find_folders(root, public="public")


@pytest.mark.parametrize(("name", "wanted"), [("labels", "images"), ("imgs", "masks"), ("notes", "masks")])
def test_fault_66_other_folders_are_not_suspected(tmp_path, name, wanted):
    (tmp_path / name).mkdir()
    assert near_miss(tmp_path, wanted) is None


def test_fault_63_swapped_folders_are_one_problem_of_their_site(root, tmp_path):
    (root / "a" / "images").rename(root / "a" / "x")
    (root / "a" / "masks").rename(root / "a" / "images")
    (root / "a" / "x").rename(root / "a" / "masks")
    with pytest.raises(Refused, match=r"1 problem\n.*a: expected pictures in 'images'.*swapped: exchange their names"):
        prepare_folders(root, options(tmp_path, mask_threshold=128, public="public"))
    assert not (tmp_path / "list.json").exists()


def inverted(path: Path) -> None:
    Image.fromarray(255 - np.array(Image.open(path))).save(path)


def test_fault_64_inverted_masks_are_told_and_a_lesion_at_the_border_is_not(root, tmp_path):
    assert not [s for s in prepare_folders(root, options(tmp_path, public="public")).warnings if "invert" in s]
    for number in (1, 2):
        inverted(root / "a" / "masks" / f"a_{number:03d}.png")
    half = np.zeros((24, 32), np.uint8)
    half[:, :16] = 255
    Image.fromarray(half).save(root / "a" / "masks" / "a_003.png")
    warnings = prepare_folders(root, options(tmp_path / "2", public="public")).warnings
    assert [s for s in warnings if "invert" in s] == [
        "2 of 6 masks of a, such as a/masks/a_001.png, are foreground all along the border and background inside: they "
        "look inverted; if they are, exchange black and white in them"
    ]


@pytest.mark.parametrize(
    ("levels", "threshold"),
    [([0, 2], 2), ([0, 1, 2], 1), ([0, 100], 100), ([0, 200], 128), ([0, 3, 254], 128), (list(range(60)), 30)],
)
def test_fault_65_the_threshold_that_is_advised_leaves_something_in_the_mask(tmp_path, levels, threshold):
    content = save(tmp_path / "m.png", Image.fromarray(np.resize(levels, (8, 10)).astype(np.uint8))).read_bytes()
    with pytest.raises(Refused, match=rf"`--mask-threshold {threshold}`"):
        decode_mask(content, "m.png", None)
    assert 0 < decode_mask(content, "m.png", threshold)[0].mean() < 1


def test_fault_65_of_16_bits_no_threshold_is_advised_that_loses_all(tmp_path):
    values = np.array([[0, 2], [0, 0]], np.uint16)
    content = save(tmp_path / "m.png", Image.fromarray(values)).read_bytes()
    with pytest.raises(Refused, match="save it as 8 bit with 0 and 255: of 16 bits, 2 is nearly black"):
        decode_mask(content, "m.png", None)


def test_fault_65_masks_that_a_threshold_empties_are_told(root, tmp_path):
    for path in (root / "a" / "masks").iterdir():
        Image.fromarray(np.array(Image.open(path)) // 255 * 2).save(path)
    made = prepare_folders(root, options(tmp_path, mask_threshold=128, public="public"))
    told = "are empty because nothing in them is as bright as --mask-threshold 128: their highest value is 2"
    assert f"6 of 6 masks of a, such as a/masks/a_000.png, {told}" in made.warnings


def test_fault_67_a_list_without_masks_at_its_sites_says_so_first(root, tmp_path):
    for path in (root / "a" / "masks").iterdir():
        path.unlink()
    made = prepare_folders(root, options(tmp_path, report=True, public="public"))
    assert made.warnings[0].startswith("nothing here can be scored: no site has a validation or test image")
    assert "nothing here can be scored" in made.report.read_text()


def test_fault_62_a_link_to_itself_is_refused_and_folders_in_a_circle_end(root, tmp_path):
    os.symlink("a_009.png", root / "a" / "images" / "a_009.png")
    os.symlink("..", root / "a" / "images" / "more")
    with pytest.raises(Refused, match=r"1 problem\n.*a_009\.png: expected a file, found a link that leads back to"):
        prepare_folders(root, options(tmp_path, public="public"))
    (root / "a" / "images" / "a_009.png").unlink()
    assert len(prepare_folders(root, options(tmp_path, public="public")).datalist.sites["a"].unlabelled) == 4


def test_a_list_that_only_measures(root, tmp_path):
    (root / "public").rename(root / "b")  # no site is called public
    (root / "a" / "masks" / "a_000.png").unlink()
    made = prepare_folders(root, options(tmp_path, test_only=True))
    assert [(place, split.value) for place, split, _ in made.datalist.items()] == [("a", "test")] * 5 + [
        ("b", "test")
    ] * 3
    assert made.warnings == ["1 image of a has no mask: left out"]
    assert check_datalist(DataList.load(made.path), root) == []
    one = prepare_folders(root / "a", options(tmp_path / "one", test_only=True))
    assert [(name, len(of.test)) for name, of in one.datalist.sites.items()] == [("a", 5)]
    for path in (root / "a" / "masks").iterdir():
        path.unlink()
    with pytest.raises(Refused, match=r"images with masks to measure with, found 6 images of a have no mask"):
        prepare_folders(root / "a", options(tmp_path / "two", test_only=True))
    save(root / "a" / "masks" / "a_003_gt.png", disc())
    with pytest.raises(Refused, match=r"measure with, found 1 mask of a belongs to no image; .* to a_003\.png"):
        prepare_folders(root / "a", options(tmp_path / "two", test_only=True))


def test_picture_folders_of_grey_photographs_are_not_swapped(tmp_path):
    for number in range(2):
        save(tmp_path / "a" / "images" / f"{number}.png", picture(number).convert("L"))
        save(tmp_path / "a" / "masks" / f"{number}.png", disc())
    assert len(prepare_folders(tmp_path / "a", options(tmp_path, test_only=True)).datalist.sites["a"].test) == 2
