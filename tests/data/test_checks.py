"""Every error in a list and its files, each with its words, and what is only worth a warning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from samfed_monai.data.checks import Facts, check_datalist, ids_of, inspect, repeated_stems, warnings
from samfed_monai.data.datalist import DataList, Site
from samfed_monai.data.folders import Found
from tests.data.making import disc, item, pair, picture, save, small_list


def check(datalist, root) -> list[str]:
    return [str(problem) for problem in check_datalist(datalist, root)]


def test_fault_01_missing_files_are_reported_with_hint(tmp_path):
    datalist = small_list(tmp_path)
    for gone in ("masks/p1.png", "images/u0.png", "masks/u0.png"):
        (tmp_path / gone).unlink()
    root, restore = tmp_path.resolve(), "found no such file; restore it, or check the data root"
    assert check(datalist, tmp_path) == [
        f"{root}/masks/p1.png: expected the mask of images/p1.png, found no such file; add the mask, or list the image "
        "without a label",
        f"{root}/images/u0.png: expected a readable file, {restore}",
        f"{root}/masks/u0.png: expected the mask of images/u0.png, {restore}",
    ]


@pytest.mark.parametrize("found", ["none of them (the first is images/p0.png)", "no such folder"])
def test_data_root_without_listed_files_is_reported_once(tmp_path, found):
    datalist, root = small_list(tmp_path / "right"), tmp_path / "wrong"
    if found.startswith("none"):
        root.mkdir()
    hint = "is this the data root that the list was made for?"
    assert check(datalist, root) == [f"{root.resolve()}: expected 10 files of the list 'small', found {found}; {hint}"]
    assert check(DataList("empty", []), root) == []


def test_facts_describe_image_and_mask(tmp_path):
    one = pair(tmp_path, "a", 0)
    mask = np.zeros((24, 32), np.uint8)
    mask[0] = mask[-1] = mask[:, 0] = mask[:5, -1] = 255
    save(tmp_path / one.label, Image.fromarray(mask))
    assert replace(inspect(one, tmp_path), sha256="", label_sha256="", brightest=0) == Facts(
        **{"image": one.image, "height": 24, "width": 32, "mode": "RGB", "brightest": 0, "label": one.label},
        **{"label_sha256": "", "mask_values": (0, 255), "foreground": 90 / 768, "border": 90 / 108},
    )
    assert inspect(one, tmp_path).brightest == np.array(picture(0)).max()


@pytest.mark.parametrize(("damaged", "unreadable"), [("image", True), ("label", True), ("", False)])
def test_undecodable_file_is_unreadable_and_misfit_is_not(tmp_path, damaged, unreadable):
    one = pair(tmp_path, "a", 0)
    if damaged:
        (tmp_path / getattr(one, damaged)).write_bytes(b"x")
    else:
        save(tmp_path / one.label, disc(10, 10))
    facts = inspect(one, tmp_path)
    assert (facts.unreadable, len(facts.problems)) == (unreadable, 1)


def test_ids_are_stems_or_paths_and_fault_22_same_stem_with_two_extensions_is_reported():
    images = ["a/images/p1/0.png", "a/images/p2/0.png", "a/images/p2/1.x.png"]
    assert ids_of(images) == dict(zip(images, ["p1/0", "p2/0", "1.x"], strict=True))
    assert list(ids_of(["0.png", "p/0.png"]).values()) == ["0", "p/0"]
    (problem,) = repeated_stems([("a", "a/1.png"), ("a", "a/1.jpg"), ("b", "b/1.png")])
    hint = "if both are the same image, move one away; if not, rename one and its mask"
    assert str(problem) == f"a/1.jpg: expected one file per stem, found the same stem as a/1.png; {hint}"


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (disc(24, 30), "m.png: expected 32 x 24 as a.png, found 30 x 24 pixels; resize the mask"),
        (disc().transpose(Image.Transpose.TRANSPOSE), "m.png: expected 32 x 24 as a.png, found a transposed mask, 24"),
    ],
)
def test_fault_02_and_fault_03_misfitting_mask_is_reported(tmp_path, mask, problem):
    save(tmp_path / "a.png", picture(0))
    save(tmp_path / "m.png", mask)
    (found,) = check(DataList("list", [item(tmp_path, "a.png", "m.png")]), tmp_path)
    assert found.startswith(problem)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])  # Pillow drops a TIFF's entry as it turns it
def test_fault_08_mask_without_exif_turn_of_image_is_reported(suffix, tmp_path):
    exif, name = Image.Exif(), f"a.{suffix}"
    exif[0x0112] = 6
    save(tmp_path / name, picture(0), exif=exif)
    save(tmp_path / "m.png", disc())
    (problem,) = check(DataList("list", [item(tmp_path, name, "m.png")]), tmp_path)
    assert "EXIF rotates the image but not the mask" in problem
    save(tmp_path / "m.png", disc(), exif=exif)
    assert check(DataList("list", [item(tmp_path, name, "m.png")]), tmp_path) == []
    assert inspect(Found(name), tmp_path).turned
    save(tmp_path / name, picture(0))
    assert not inspect(Found(name), tmp_path).turned


def test_problems_of_many_files_are_reported_in_list_order(tmp_path):
    datalist = small_list(tmp_path)
    (tmp_path / "images" / "p0.png").write_bytes(b"")
    save(tmp_path / "masks" / "p1.png", disc().convert("P"))
    (tmp_path / "images" / "u0.png").write_text("not found")
    files = [problem.split(":")[0] for problem in check(datalist, tmp_path) if "SHA-256" not in problem]
    assert files == ["images/p0.png", "masks/p1.png", "images/u0.png"]


@pytest.mark.parametrize("trained_on", ["p0", "u0", "v0"], ids=["public", "unlabelled", "validation"])
def test_fault_17_test_image_in_other_split_is_reported(tmp_path, trained_on):
    datalist = small_list(tmp_path)
    (tmp_path / "images" / "t0.png").write_bytes((tmp_path / "images" / f"{trained_on}.png").read_bytes())
    datalist.sites["site-1"].test[0] = item(tmp_path, "images/t0.png", "masks/t0.png")
    (problem,) = check(datalist, tmp_path)
    assert problem.startswith("images/t0.png: expected images of test in no other split, found the same bytes in")
    assert f"as images/{trained_on}.png" in problem


def test_fault_17_test_image_in_training_of_later_site_is_reported(tmp_path):
    sites = {"a": Site(test=[pair(tmp_path, "t", 0)]), "b": Site([pair(tmp_path, "u", 0)])}
    (problem,) = check(DataList("list", [], sites), tmp_path)
    found = "found the same bytes in b's unlabelled images and, as images/t.png, in a's test images"
    assert problem.startswith(f"images/u.png: expected images of test in no other split, {found}; remove it")


def test_fault_29_changed_files_are_reported(tmp_path):
    datalist = small_list(tmp_path)
    save(tmp_path / "images" / "u0.png", picture(99))
    save(tmp_path / "masks" / "t0.png", disc(radius=2))
    problems = check(datalist, tmp_path)
    assert [problem.split(":")[0] for problem in problems] == ["images/u0.png", "masks/t0.png"]
    assert all("SHA-256" in problem and "restore the file, or make the list again" in problem for problem in problems)


def test_fault_16_repeated_bytes_are_warning(tmp_path):
    items = [pair(tmp_path, name, 0) for name in "abcde"]
    datalist = DataList("list", items[:3], {"a": Site(items[3:4]), "b": Site(items[4:])})
    assert check(datalist, tmp_path) == []
    both = [f"1 image is in both {of}" for of in ("a and b", "a and the public set", "b and the public set")]
    assert warnings(datalist) == [*both, "2 images of the public set have the same bytes as another image there"]


def test_groups_across_splits_are_warning_after_normalization(tmp_path):
    spelt = ["G0", "G0 ", "G\u200b0", "g0", "G00", "P1", "P10"]
    items = [replace(pair(tmp_path, f"i{n}", n), group=group) for n, group in enumerate(spelt)]
    assert warnings(DataList("list", [], {"a": Site(items)})) == []
    (sentence,) = warnings(DataList("list", [], {"a": Site(unlabelled=items[:1], test=items[1:])}))
    assert sentence.startswith("1 of 5 groups have images in a validation or test split and elsewhere")
