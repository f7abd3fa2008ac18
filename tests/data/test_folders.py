"""Folders of sites: masks by name; folders that are nearly right or swapped; masks that are inverted or lost."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import write_bytes
from samfed_monai.data.checks import check_datalist
from samfed_monai.data.datalist import DataList
from samfed_monai.data.folders import Found, find_folders, folders_not_read, match_masks, near_miss, rename_hint
from samfed_monai.data.image_folder import image_folder
from samfed_monai.data.prepare import prepare_folders
from tests.data.making import disc, drawn, options, picture, save, site


def test_images_are_matched_to_masks_by_stem(tmp_path):
    site(tmp_path, "public", 2, 2)
    site(tmp_path, "Süd 1", 3, 1)
    save(tmp_path / "Süd 1" / "masks" / "Süd 1_001_segmentation.png", disc())
    drawn(tmp_path, "__MACOSX/images/1.png")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "images").write_text("no folder")
    folders = find_folders(tmp_path, public="public")
    assert (folders.problems, folders.caveats, list(folders.sites)) == ((), (), ["Süd 1", "public"])
    (tmp_path / "Su\u0308d 1" / "images").mkdir(parents=True)
    with pytest.raises(Refused, match="expected one folder for each site, found a second that reads 'Süd 1'; move"):
        find_folders(tmp_path, public="public")
    assert [(one.image, one.label) for one in folders.sites["Süd 1"]] == [
        ("Süd 1/images/Süd 1_000.png", "Süd 1/masks/Süd 1_000.png"),
        ("Süd 1/images/Süd 1_001.png", "Süd 1/masks/Süd 1_001_segmentation.png"),
        ("Süd 1/images/Süd 1_002.png", None),
    ]


@pytest.mark.parametrize(
    ("images", "masks", "pairs", "lonely"),
    [
        ("p1/0 p2/0", "p1/0 p2/0_mask", {"p1/0": "p1/0", "p2/0": "p2/0_mask"}, 0),
        ("p1/0 p2/0 1", "p2/0 1", {"p2/0": "p2/0", "1": "1"}, 0),
        ("p1/0 p2/1", "p1/0 p1/1 p2/0", {"p1/0": "p1/0"}, 2),
        ("part_1/0 part_2/1", "m/0 1", {"part_2/1": "1"}, 1),  # another patient's
        ("Su\u0308d/0 b/0", "S\u00fcd/0 b/0", {"Su\u0308d/0": "S\u00fcd/0", "b/0": "b/0"}, 0),
        ("0 p1/0", "0 p1/0", {"0": "0", "p1/0": "p1/0"}, 0),
        ("0\u00a0a 1", "0\u200b\u00a0a 1", {"0\u00a0a": "0\u200b\u00a0a", "1": "1"}, 0),
        ("p1/0 p2/0", "0", "expected the name of one image, found the name of 2 images, such as a/images/p1/0.png", 0),
        ("0", "0 0_segmentation", "expected one mask for each image, found a/masks/0.png as well; move the wrong", 0),
        ("0", "0 more/0", "expected one mask for each image, found a/masks/0.png as well; move the wrong", 0),
        ("0_mask", "0_mask", {"0_mask": "0_mask"}, 0),
        ("p1/0 p2/0", "m/0", {}, 1),
        ("a_0000 a_0001", "a", {}, 1),  # frames; only volumes have channels
    ],
)
def test_equal_image_names_are_matched_to_masks_of_same_folder(tmp_path, images, masks, pairs, lonely):
    there = [f"a/{kind}/{name}.png" for kind, of in (("images", images), ("masks", masks)) for name in of.split(" ")]
    drawn(tmp_path, *there)
    if isinstance(pairs, str):
        with pytest.raises(Refused, match=pairs):
            match_masks(tmp_path / "a", tmp_path, "a")
        return
    found, left = match_masks(tmp_path / "a", tmp_path, "a")
    labelled = {one.image[len("a/images/") : -4]: one.label[len("a/masks/") : -4] for one in found if one.label}
    assert (labelled, len(left)) == (pairs, lonely)


RULE = "name each mask after its image: <stem>, <stem>_segmentation or <stem>_mask"


def test_masks_and_dark_images_among_images_are_counted(tmp_path, caplog):
    drawn(tmp_path, "a.png", "a_Mask.png", "b_mask.png", "masks/c.png")
    for name, brightest in (("d.png", 4095), ("e.png", 65 * 257)):
        save(tmp_path / name, Image.fromarray(np.full((4, 4), brightest, np.uint16)))
    assert len(image_folder(tmp_path)) == 6
    look = f"1 image is dark, no value above 64 of 255, such as {tmp_path}/d.png: if 12 bits are stored in 16, scale"
    assert caplog.messages[1] == f"{look} them to 16 bits"
    assert caplog.messages[0].startswith(f"2 images are masks by their pixels or names, such as {tmp_path}/a_Mask.png")


def test_masks_without_image_are_skipped_and_named(tmp_path):
    site(tmp_path, "public", 1, 1)
    site(tmp_path, "a", 1, 0)
    drawn(tmp_path / "a", "masks/d.png", "masks/b.png", "masks/b.bmp", "masks/c_mask.png")
    folders = find_folders(tmp_path, public="public")
    assert folders.sites["a"][0].label is None
    lonely = "4 masks of a belong to no image; left out, such as b.bmp and b.png"
    assert folders.caveats == (f"{lonely}; {RULE}; for instance, rename the mask of a_000 to a_000.bmp",)
    save(tmp_path / "a" / "masks" / "a_000.png", disc())
    [sentence] = find_folders(tmp_path, public="public").caveats
    assert sentence.endswith(RULE), "nothing is to be renamed where every image has its mask"


def test_fault_01_public_images_without_masks_are_reported_with_rule(tmp_path):
    site(tmp_path, "public", 3, 3)
    site(tmp_path, "a", 1, 0)
    masks = tmp_path / "public" / "masks"
    for path in list(masks.iterdir()):
        path.rename(masks / f"{path.stem}_lesion.png")
    missing = "expected a mask, as for every public image, found no mask"
    renamed = f"{RULE}; for instance, rename public_000_lesion.png to public_000.png"
    messages = [str(problem) for problem in find_folders(tmp_path, public="public").problems]
    assert messages == [f"public/images/public_00{n}.png: {missing}; {renamed}" for n in range(3)]
    (masks / "public_000_lesion.png").rename(masks / "public_000_mask.png")
    messages = [str(problem) for problem in find_folders(tmp_path, public="public").problems]
    assert messages == [f"public/images/public_00{n}.png: {missing}; add the mask, or move the image" for n in (1, 2)]
    for path in list(masks.iterdir()):
        path.rename(path.with_suffix(".nrrd")).write_bytes(b"NRRD")
    hint = "convert or rename the masks; public/masks: not read: 3 NRRD (public_000_mask.nrrd, …)"
    assert str(find_folders(tmp_path, public="public").problems[0]).endswith(f"found no mask; {hint}")
    masks.rename(tmp_path / "elsewhere")
    assert str(find_folders(tmp_path, public="public").problems[0]).endswith(f"or move the image; {RULE}")


@pytest.mark.parametrize(
    ("masks", "images", "example"),
    [
        (["img_10_gt.png"], ["img_1.jpg", "img_10.jpg"], "img_10_gt.png to img_10.png"),
        (["img_10_gt.png", "img_2_gt.png"], ["img_1.jpg", "img_2.jpg"], "img_2_gt.png to img_2.png"),
        (["IMG_7.tif"], ["img_7.jpg"], "IMG_7.tif to img_7.tif"),
        (["first.png"], ["1.jpg"], "the mask of 1 to 1.png"),
        (["1_gt.nii.gz"], ["1.nii.gz"], "1_gt.nii.gz to 1.nii.gz"),
        (["first.nii.gz"], ["1.nii"], "the mask of 1 to 1.nii.gz"),
    ],
)
def test_renaming_example_names_mask_of_matching_image(masks, images, example):
    found = [Found(f"a/images/{image}") for image in images]
    assert rename_hint([Path(mask) for mask in masks], found) == f"for instance, rename {example}"
    other = "p2/1_mask.png and image 1 are in different folders: if they belong together, give both folders one name"
    assert rename_hint([Path("masks/p2/1_mask.png")], [Found("a/images/p1/1.jpg")]) == other
    both = "1_a.png and 1_b.png may both be of 1: name the right one, or their union, 1.png"
    assert rename_hint([Path("1_b.png"), Path("1_a.png")], [Found("a/images/1.jpg")]) == both


def test_renaming_example_compares_twenty_masks_with_each_image(monkeypatch):
    read = []
    monkeypatch.setattr("samfed_monai.data.folders._stem", lambda path: read.append(path) or path.stem)
    rename_hint([Path(f"m{number}.png") for number in range(50)], [Found(f"q{number}.png") for number in range(50)])
    assert len(read) < 2 * 20 * 50, "no name is compared with all masks and all images"


def test_unknown_public_folder_is_refused(tmp_path):
    site(tmp_path, "a", 1, 1)
    with pytest.raises(Refused, match=r"name one of \['a'\] with --public"):
        find_folders(tmp_path, public="pubic")
    with pytest.raises(Refused, match="at least one more site"):
        find_folders(tmp_path, public="a")
    with pytest.raises(Refused, match=r"the layout is DIR/<site>/images and DIR/<site>/masks"):
        find_folders(tmp_path / "nowhere", public="a")


def test_images_outside_images_folder_are_reported_to_be_moved(tmp_path):
    drawn(tmp_path, "hospital/1.png", "public/1.png")
    hints = {
        name: f"{name} has images or archives, such as {name}/1.png, but no folder 'images', and was not read: "
        f"if it is a site, unpack, convert or move them to {name}/images"
        for name in ("hospital", "public")
    }
    start = "expected a folder of images, found no such folder; "
    for public in ("public", None):
        with pytest.raises(Refused) as caught:
            find_folders(tmp_path, public=public)
        assert str(caught.value).endswith(f"{start}{hints['hospital']}; {hints['public']}")
    site(tmp_path, "site-3", 1, 1)
    with pytest.raises(Refused) as caught:
        find_folders(tmp_path, public="public")
    assert str(caught.value).endswith(f"{start}{hints['public']}"), "the other folder is no help here"
    save(tmp_path / "public" / "imgs" / "1.png", picture(2))
    with pytest.raises(Refused, match=f"{start}rename public/imgs to public/images$"):
        find_folders(tmp_path, public="public")


def test_folders_with_images_further_below_are_reported(tmp_path):
    site(tmp_path, "a", 1, 1)
    drawn(tmp_path, "hospital_c/img/deep/1.jpg", "hospital_d/Images/1.png", "hospital_e/2.png", "hospital_e/1.png")
    for name in ("hospital_f/1.2.3", "hospital_g/1.nii", "hospital_h/1.mp4"):  # a DICOM object by its content
        write_bytes(tmp_path / name, bytes(128) + b"DICM")
    holds, unless = "has images or archives, such as", "but no folder 'images', and was not read: if it is a site,"
    hints = {"c/img/deep/1.jpg": "rename hospital_c/img", "d/Images/1.png": "rename hospital_d/Images"}
    others = dict.fromkeys(["e/1.png", "f/1.2.3", "g/1.nii", "h/1.mp4"], "unpack, convert or move them")
    assert folders_not_read(tmp_path, ["a"]) == [
        f"hospital_{first[0]} {holds} hospital_{first}, {unless} {hint} to hospital_{first[0]}/images"
        for first, hint in {**hints, **others}.items()
    ]
    with pytest.raises(Refused, match=rf"found only 'a'; hospital_c {holds} hospital_c/img/deep/1\.jpg"):
        find_folders(tmp_path, public="a")


def test_folder_of_one_site_with_other_names_is_recognised(tmp_path):
    drawn(tmp_path, "imagesTr/1.png", "labelsTr/1.png")
    hint = f"was not read: if {tmp_path.name} is one site, rename imagesTr to images and labelsTr to masks"
    with pytest.raises(Refused, match=f"1 problem\n.*{hint}$"):
        find_folders(tmp_path, public=None)


def test_of_masks_hidden_folders_and_outputs_only_sites_are_reported(tmp_path):
    site(tmp_path, "a", 1, 1)
    drawn(tmp_path, "masks/1.png", ".cache/1.png", ".b/images/1.png", "b/__MACOSX/1.png", "b/._1.png")
    drawn(tmp_path, "lists/figures/1.png", "runs/first/overlays/1.png")
    (tmp_path / "runs" / "first" / "run.json").write_text("{}")
    hidden = ".b is hidden and was not read: if it is a site, rename it without the dot"
    assert folders_not_read(tmp_path, ["a"], output=tmp_path / "lists" / "new" / "list.json") == [hidden]
    assert len(folders_not_read(tmp_path, ["a"])) == 2


def test_images_and_archives_beside_read_folders_are_counted(tmp_path):
    site(tmp_path, "a", 1, 1)
    drawn(tmp_path, "1.png", "a/2.png", "a/test/deep/3.png")
    for name in ("a.zip", "b.zip", "a/images.zip", "a/more.7z", "a/notes.txt"):  # two of them were unpacked
        (tmp_path / name).touch()
    outside = "outside the folders that are read, such as"
    assert find_folders(tmp_path, public=None).caveats == (
        f"{tmp_path.name}: 2 images or archives {outside} 1.png, left out",
        f"a: 3 images or archives {outside} 2.png, left out",
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    site(tmp_path / "data", "public", 3, 3)
    site(tmp_path / "data", "a", 6, 6, first=50)
    return tmp_path / "data"


MASKS = ["labels", "label", "mask", "Masks", "Ground Truth", "maks", "segmentations", "_gt"]
NEAR = {"masks": MASKS, "images": ["imgs", "image", "Images", "photos", "iamges"]}
OTHERS = [("ImageSets", "images"), ("labels", "images"), ("imgs", "masks"), ("notes", "masks")]
SUSPECTED = [(name, wanted, True) for wanted, names in NEAR.items() for name in names]


@pytest.mark.parametrize(("name", "wanted", "suspected"), [*SUSPECTED, *((*names, False) for names in OTHERS)])
def test_fault_66_nearly_matching_folder_name_is_suspected(tmp_path, name, wanted, suspected):
    (tmp_path / name).mkdir()
    assert near_miss(tmp_path, wanted) == (name if suspected else None)
    (tmp_path / wanted).mkdir()
    assert near_miss(tmp_path, wanted) is None


def test_fault_67_nothing_to_score_is_reported_before_misnamed_folder(root, tmp_path):
    (root / "a" / "masks").rename(root / "a" / "labels")
    made = prepare_folders(root, options(tmp_path, report=True, public="public"))
    first, *others = made.warnings
    assert first.startswith("no scores: no site has validation or test image")
    assert others == ["a has no folder 'masks', and a/labels was not read: if it has a's masks, rename it to a/masks"]
    for sentence in ("no scores", "a/labels was not read"):
        assert sentence in made.report.read_text()
    (root / "public" / "masks").rename(root / "public" / "labels")
    with pytest.raises(Refused, match="public/labels was not read: rename it to public/masks"):
        prepare_folders(root, options(tmp_path, public="public"))


def test_fault_63_swapped_folders_are_one_problem_per_site(root, tmp_path):
    for name, other in (("images", "x"), ("masks", "images"), ("x", "masks")):
        (root / "a" / name).rename(root / "a" / other)
    with pytest.raises(Refused, match=r"1 problem\n.*a: expected pictures in 'images'.*swapped: exchange their names"):
        prepare_folders(root, options(tmp_path, mask_threshold=128, public="public"))
    assert not (tmp_path / "list.json").exists()
    for number in range(2):  # grey photographs are no masks
        save(tmp_path / "b" / "images" / f"{number}.png", picture(number).convert("L"))
        save(tmp_path / "b" / "masks" / f"{number}.png", disc())
    assert len(prepare_folders(tmp_path / "b", options(tmp_path, test_only=True)).datalist.sites["b"].test) == 2


def test_fault_64_inverted_masks_are_reported_but_border_lesion_is_not(root, tmp_path):
    lesion = np.array(disc())
    half = np.zeros_like(lesion)
    half[:, :16] = 255
    for number, mask in ((1, 255 - lesion), (2, 255 - lesion), (3, half)):
        save(root / f"a/masks/a_00{number}.png", Image.fromarray(mask))
    warnings = prepare_folders(root, options(tmp_path, public="public")).warnings
    [inverted] = [each for each in warnings if "look inverted; if they are, swap black and white" in each]
    assert inverted.startswith("2 of 6 masks of a, such as a/masks/a_001.png, are foreground along the whole border")


def test_fault_65_masks_emptied_by_threshold_are_reported(root, tmp_path):
    for path in (root / "a" / "masks").iterdir():
        Image.fromarray(np.array(Image.open(path)) // 255 * 2).save(path)
    made = prepare_folders(root, options(tmp_path, mask_threshold=128, public="public"))
    warning = "are empty because all their values are below --mask-threshold 128: their highest value is 2"
    assert f"6 of 6 masks of a, such as a/masks/a_000.png, {warning}" in made.warnings


def test_fault_62_link_to_itself_is_refused_and_circular_folders_end(root, tmp_path):
    os.symlink("a_009.png", root / "a" / "images" / "a_009.png")
    os.symlink("..", root / "a" / "images" / "more")
    with pytest.raises(Refused, match=r"1 problem\n.*a_009\.png: expected a file, found a link that leads back to"):
        prepare_folders(root, options(tmp_path, public="public"))
    (root / "a" / "images" / "a_009.png").unlink()
    assert len(prepare_folders(root, options(tmp_path, public="public")).datalist.sites["a"].unlabelled) == 4


def test_unreadable_site_is_not_left_out(root, tmp_path, monkeypatch):
    def denied(path, **options):
        if path == root / "a" / "images":
            raise PermissionError(13, "Permission denied", str(path))
        return os.stat(path, **options)

    (root / "a").rename(root / "b")
    (root / "a").mkdir()
    monkeypatch.setattr(Path, "stat", denied)  # as for a user who may not read folder a
    with pytest.raises(PermissionError, match="a/images"):
        prepare_folders(root, options(tmp_path, public="public"))


def test_measuring_list_keeps_only_images_with_masks(root, tmp_path):
    (root / "public").rename(root / "b")  # no site is called public
    (root / "a" / "masks" / "a_000.png").unlink()
    made = prepare_folders(root, options(tmp_path, test_only=True))
    sizes = {name: [len(items) for _, items in of.splits()] for name, of in made.datalist.sites.items()}
    assert (made.datalist.public, sizes) == ([], {"a": [0, 0, 5], "b": [0, 0, 3]})
    assert made.warnings == ["1 image of a has no mask: left out"]
    assert check_datalist(DataList.load(made.path), root) == []
    one = prepare_folders(root / "a", options(tmp_path / "one", test_only=True))
    assert [(name, len(of.test)) for name, of in one.datalist.sites.items()] == [("a", 5)]
    for path in (root / "a" / "masks").iterdir():
        path.unlink()
    with pytest.raises(Refused, match=r"images with masks for testing, found 6 images of a have no mask"):
        prepare_folders(root / "a", options(tmp_path / "two", test_only=True))
    save(root / "a" / "masks" / "a_003_gt.png", disc())
    with pytest.raises(Refused, match=r"for testing, found 1 mask of a belongs to no image; .* to a_003\.png"):
        prepare_folders(root / "a", options(tmp_path / "two", test_only=True))
