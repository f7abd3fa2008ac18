from __future__ import annotations

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data.sources.folders import find_folders
from tests.data.making import disc, picture, save, site


def test_images_find_their_masks_by_stem(tmp_path):
    site(tmp_path, "public", 2, 2)
    site(tmp_path, "Süd 1", 3, 1)
    save(tmp_path / "Süd 1" / "masks" / "Süd 1_001_segmentation.png", disc())
    (tmp_path / "notes").mkdir()
    folders = find_folders(tmp_path, public="public")
    found = folders.sites
    assert (folders.problems, folders.passed_over) == ((), ())
    assert list(found) == ["Süd 1", "public"]
    assert [(one.image, one.label) for one in found["Süd 1"]] == [
        ("Süd 1/images/Süd 1_000.png", "Süd 1/masks/Süd 1_000.png"),
        ("Süd 1/images/Süd 1_001.png", "Süd 1/masks/Süd 1_001_segmentation.png"),
        ("Süd 1/images/Süd 1_002.png", None),
    ]


@pytest.mark.parametrize("second", ["a_000.bmp", "a_000_segmentation.png", "more/a_000.png"])
def test_two_masks_of_one_image_are_refused(tmp_path, second):
    site(tmp_path, "public", 1, 1)
    site(tmp_path, "a", 1, 1)
    save(tmp_path / "a" / "masks" / second, disc())
    found = find_folders(tmp_path, public="public")
    assert list(found.sites) == ["public"]
    [problem] = found.problems
    assert "expected one mask for each image, found the same image's mask in a/masks/a_000" in str(problem)


def test_masks_of_no_image_are_left_out_and_the_first_two_named(tmp_path, caplog):
    site(tmp_path, "public", 1, 1)
    site(tmp_path, "a", 1, 0)
    for name in ("d.png", "b.png", "b.bmp", "c_mask.png"):
        save(tmp_path / "a" / "masks" / name, disc())
    assert find_folders(tmp_path, public="public").sites["a"][0].label is None
    assert "3 masks belong to no image; left out, such as b.bmp and c_mask.png" in caplog.text


def test_hidden_files_are_not_images(tmp_path):
    site(tmp_path, "public", 1, 1)
    site(tmp_path, "a", 1, 0)
    save(tmp_path / "a" / "images" / "._a_000.png", picture(0))
    assert len(find_folders(tmp_path, public="public").sites["a"]) == 1


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


def test_an_empty_images_folder_is_told(tmp_path):
    site(tmp_path, "public", 1, 1)
    (tmp_path / "a" / "images").mkdir(parents=True)
    [problem] = find_folders(tmp_path, public="public").problems
    assert "found no images; put the site's images there" in str(problem)


def test_a_folder_of_images_that_is_no_site_is_named(tmp_path):
    site(tmp_path, "public", 1, 1)
    save(tmp_path / "hospital_c" / "img" / "1.png", picture(1))
    with pytest.raises(Refused, match=r"only 'public'; hospital_c holds images, such as hospital_c/img/1\.png, but no"):
        find_folders(tmp_path, public="public")
    site(tmp_path, "a", 1, 1)
    [sentence] = find_folders(tmp_path, public="public").passed_over
    assert sentence.startswith("hospital_c holds images")
