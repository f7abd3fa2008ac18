from __future__ import annotations

from pathlib import Path

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data.folders import Found, find_folders, match_masks, passed_over, renaming
from tests.data.making import disc, picture, save, site


def test_images_find_their_masks_by_stem(tmp_path):
    site(tmp_path, "public", 2, 2)
    site(tmp_path, "Süd 1", 3, 1)
    save(tmp_path / "Süd 1" / "masks" / "Süd 1_001_segmentation.png", disc())
    (tmp_path / "notes").mkdir()
    folders = find_folders(tmp_path, public="public")
    found = folders.sites
    assert (folders.problems, folders.caveats) == ((), ())
    assert list(found) == ["Süd 1", "public"]
    assert [(one.image, one.label) for one in found["Süd 1"]] == [
        ("Süd 1/images/Süd 1_000.png", "Süd 1/masks/Süd 1_000.png"),
        ("Süd 1/images/Süd 1_001.png", "Süd 1/masks/Süd 1_001_segmentation.png"),
        ("Süd 1/images/Süd 1_002.png", None),
    ]


@pytest.mark.parametrize(
    ("images", "masks", "pairs", "lonely"),
    [
        ("p1/0 p2/0", "p1/0 p2/0_mask", {"p1/0": "p1/0", "p2/0": "p2/0_mask"}, 0),
        ("p1/0 p2/0 1", "p2/0 1", {"p2/0": "p2/0", "1": "1"}, 0),
        ("p1/0 p2/1", "p1/0 p1/1 p2/0", {"p1/0": "p1/0"}, 2),  # another patient's
        ("part_1/0 part_2/1", "m/0 1", {"part_1/0": "m/0", "part_2/1": "1"}, 0),  # folders of other names say nothing
        ("Su\u0308d/0 b/0", "S\u00fcd/0 b/0", {"Su\u0308d/0": "S\u00fcd/0", "b/0": "b/0"}, 0),
        ("0 p1/0", "0 p1/0", {"0": "0", "p1/0": "p1/0"}, 0),
        ("0\u00a0a 1 ", "0\u200b\u00a0a 1", {"0\u00a0a": "0\u200b\u00a0a", "1": "1"}, 0),
        (
            "p1/0 p2/0",
            "0",
            "0.png: expected the mask of one image, found the name of 2 images, such as a/images/p1/0",
            0,
        ),
        ("p1/0 p2/0", "m/0", {}, 1),
    ],
)
def test_images_of_one_name_find_the_masks_of_their_own_folders(tmp_path, images, masks, pairs, lonely):
    for kind, names in (("images", images), ("masks", masks)):
        for number, name in enumerate(names.split(" ")):
            if name:
                save(tmp_path / "a" / kind / f"{name}.png", picture(number) if kind == "images" else disc())
    if isinstance(pairs, str):
        with pytest.raises(Refused, match=pairs):
            match_masks(tmp_path / "a", tmp_path, "a")
        return
    found, left = match_masks(tmp_path / "a", tmp_path, "a")
    labelled = {one.image[len("a/images/") : -4]: one.label[len("a/masks/") : -4] for one in found if one.label}
    assert (labelled, len(left)) == (pairs, lonely)


@pytest.mark.parametrize("second", ["a_000.bmp", "a_000_segmentation.png", "more/a_000.png"])
def test_two_masks_of_one_image_are_refused(tmp_path, second):
    site(tmp_path, "public", 1, 1)
    site(tmp_path, "a", 1, 1)
    save(tmp_path / "a" / "masks" / second, disc())
    found = find_folders(tmp_path, public="public")
    assert list(found.sites) == ["public"]
    [problem] = found.problems
    assert "expected one mask for each image, found the same image's mask in a/masks/a_000" in str(problem)


RULE = "called by the image's stem: <stem>, <stem>_segmentation or <stem>_mask"


def test_masks_of_no_image_are_left_out_and_the_first_two_named(tmp_path):
    site(tmp_path, "public", 1, 1)
    site(tmp_path, "a", 1, 0)
    for name in ("d.png", "b.png", "b.bmp", "c_mask.png"):
        save(tmp_path / "a" / "masks" / name, disc())
    folders = find_folders(tmp_path, public="public")
    assert folders.sites["a"][0].label is None
    assert folders.caveats == (
        f"4 masks of a belong to no image; left out, such as b.bmp and b.png; a mask is {RULE}; "
        "rename for instance the mask of a_000 to a_000.bmp",
    )
    save(tmp_path / "a" / "masks" / "a_000.png", disc())
    [sentence] = find_folders(tmp_path, public="public").caveats
    assert sentence.endswith(RULE), "nothing is to be renamed where every image has its mask"


def test_public_masks_that_match_no_image_are_refused_with_the_rule(tmp_path):
    site(tmp_path, "public", 3, 3)
    site(tmp_path, "a", 1, 0)
    masks = tmp_path / "public" / "masks"
    for path in list(masks.iterdir()):
        path.rename(masks / f"{path.stem}_lesion.png")
    told = [str(problem) for problem in find_folders(tmp_path, public="public").problems]
    assert told[0] == (
        "public/images/public_000.png: expected a mask, as every public image, found no mask; a mask is "
        f"{RULE}; rename for instance public_000_lesion.png to public_000.png"
    )
    assert len(told) == 3
    (masks / "public_000_lesion.png").rename(masks / "public_000_mask.png")
    told = [str(problem) for problem in find_folders(tmp_path, public="public").problems]
    assert [problem.split(":")[0] for problem in told] == [f"public/images/public_00{n}.png" for n in (1, 2)]


@pytest.mark.parametrize(
    ("masks", "images", "example"),
    [
        (["img_10_gt.png"], ["img_1.jpg", "img_10.jpg"], "img_10_gt.png to img_10.png"),
        (["img_10_gt.png", "img_2_gt.png"], ["img_1.jpg", "img_2.jpg"], "img_2_gt.png to img_2.png"),
        (["IMG_7.tif"], ["img_7.jpg"], "IMG_7.tif to img_7.tif"),
        (["first.png"], ["1.jpg"], "the mask of 1 to 1.png"),
    ],
)
def test_an_example_of_renaming_is_of_a_mask_whose_image_its_name_tells(masks, images, example):
    found = [Found(f"a/images/{image}") for image in images]
    assert renaming([Path(mask) for mask in masks], found) == f"rename for instance {example}"


def test_an_image_whose_own_stem_ends_as_a_mask_finds_one_of_equal_stem(tmp_path):
    site(tmp_path, "public", 1, 1)
    save(tmp_path / "a" / "images" / "1_mask.jpg", picture(1))
    save(tmp_path / "a" / "masks" / "1_mask.png", disc())
    folders = find_folders(tmp_path, public="public")
    assert [one.label for one in folders.sites["a"]] == ["a/masks/1_mask.png"]
    assert folders.caveats == ()


def test_fault_01_all_public_images_without_masks_are_told(tmp_path):
    site(tmp_path, "public", 3, 1)
    site(tmp_path, "a", 1, 0)
    told = [str(problem) for problem in find_folders(tmp_path, public="public").problems]
    hint = "expected a mask, as every public image, found no mask; add it, or move the image"
    assert told == [f"public/images/public_{number}.png: {hint}" for number in ("001", "002")]


def test_an_unknown_public_folder_is_refused_with_those_that_exist(tmp_path):
    site(tmp_path, "a", 1, 1)
    with pytest.raises(Refused, match=r"name one of \['a'\] with --public"):
        find_folders(tmp_path, public="pubic")
    with pytest.raises(Refused, match="at least one site beside it"):
        find_folders(tmp_path, public="a")
    with pytest.raises(Refused, match=r"expected is DIR/<site>/images and DIR/<site>/masks"):
        find_folders(tmp_path / "nowhere", public="a")


def test_a_folder_of_images_that_is_no_site_is_named(tmp_path):
    site(tmp_path, "public", 1, 1)
    save(tmp_path / "hospital_c" / "img" / "1.png", picture(1))
    with pytest.raises(Refused, match=r"only 'public'; hospital_c holds images, such as hospital_c/img/1\.png, but no"):
        find_folders(tmp_path, public="public")
    site(tmp_path, "a", 1, 1)
    [sentence] = find_folders(tmp_path, public="public").caveats
    assert sentence.startswith("hospital_c holds images")


def test_images_that_lie_in_the_sites_own_folders_are_told_to_be_moved(tmp_path):
    for name in ("hospital", "public"):
        save(tmp_path / name / "1.png", picture(1))
    told = {
        name: f"{name} holds images, such as {name}/1.png, but no folder 'images', and was not read: if it is a site, "
        f"move them to {name}/images"
        for name in ("hospital", "public")
    }
    start = "expected images, found no such folder; "
    for public in ("public", None):
        with pytest.raises(Refused) as caught:
            find_folders(tmp_path, public=public)
        assert str(caught.value).endswith(f"{start}{told['hospital']}; {told['public']}")
    site(tmp_path, "site-3", 1, 1)
    with pytest.raises(Refused) as caught:
        find_folders(tmp_path, public="public")
    assert str(caught.value).endswith(f"{start}{told['public']}"), "the other folder is no help here"
    save(tmp_path / "public" / "imgs" / "1.png", picture(2))
    with pytest.raises(Refused, match=f"{start}rename public/imgs to public/images$"):
        find_folders(tmp_path, public="public")


def test_every_folder_with_images_somewhere_below_is_named_with_one_of_them(tmp_path):
    site(tmp_path, "a", 1, 1)
    save(tmp_path / "hospital_c" / "img" / "deep" / "1.jpg", picture(1))
    save(tmp_path / "hospital_d" / "Images" / "1.png", picture(2))
    save(tmp_path / "hospital_e" / "2.png", picture(3))
    save(tmp_path / "hospital_e" / "1.png", picture(4))
    ending = "but no folder 'images', and was not read: if it is a site, rename"
    assert passed_over(tmp_path, ["a"]) == [
        f"hospital_c holds images, such as hospital_c/img/deep/1.jpg, {ending} hospital_c/img to hospital_c/images",
        f"hospital_d holds images, such as hospital_d/Images/1.png, {ending} hospital_d/Images to hospital_d/images",
        f"hospital_e holds images, such as hospital_e/1.png, {ending.replace('rename', 'move them to')} "
        "hospital_e/images",
    ]


def test_masks_hidden_folders_the_output_and_runs_are_no_hospitals(tmp_path):
    site(tmp_path, "a", 1, 1)
    save(tmp_path / "masks" / "1.png", disc())
    save(tmp_path / ".cache" / "1.png", picture(1))
    save(tmp_path / "b" / "__MACOSX" / "1.png", picture(1))
    save(tmp_path / "b" / "._1.png", picture(1))
    save(tmp_path / "lists" / "figures" / "1.png", picture(1))
    save(tmp_path / "runs" / "first" / "overlays" / "1.png", picture(1))
    (tmp_path / "runs" / "first" / "run.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "1.txt").write_text("")
    assert passed_over(tmp_path, ["a"], output=tmp_path / "lists" / "new" / "list.json") == []
    assert len(passed_over(tmp_path, ["a"])) == 1
