from __future__ import annotations

import pytest
from PIL import Image

from samfed_monai.core.errors import Refused, folded
from samfed_monai.data.checks import check_datalist, ids_of, look, repeated_stems, warnings
from samfed_monai.data.datalist import DataList, Site
from samfed_monai.data.folders import Found
from tests.data.making import disc, item, pair, picture, save, small_list


def told(datalist, root) -> list[str]:
    return [str(problem) for problem in check_datalist(datalist, root)]


def test_a_sound_list_has_no_problems(tmp_path):
    datalist = small_list(tmp_path)
    datalist.save(tmp_path / "list.json")
    assert check_datalist(tmp_path / "list.json", tmp_path) == []


def test_a_site_that_is_called_as_the_server_is_refused(tmp_path):
    datalist = small_list(tmp_path)
    datalist.sites["public"] = Site()
    with pytest.raises(
        Refused, match="sites#public: expected another name, found 'public'; rename the site, or its fo"
    ):
        datalist.save(tmp_path / "list.json")


def test_fault_01_a_missing_mask_is_told_with_its_image(tmp_path):
    datalist = small_list(tmp_path)
    (tmp_path / "masks" / "p1.png").unlink()
    assert told(datalist, tmp_path) == [
        f"{tmp_path.resolve()}/masks/p1.png: expected the mask of images/p1.png, found no such file; "
        "add the mask, or list the image without a label"
    ]


def test_a_data_root_without_any_listed_file_is_told_once(tmp_path):
    datalist = small_list(tmp_path / "right")
    for name, found in (("wrong", "none of them (the first is images/p0.png)"), ("nowhere", "no such folder")):
        root = tmp_path / name
        if name == "wrong":
            root.mkdir()
        assert told(datalist, root) == [
            f"{root.resolve()}: expected 10 files of the list 'small', found {found}; "
            "is this the data root that the list was made for?"
        ]
    assert told(DataList("empty", []), tmp_path / "nowhere") == []


def test_of_many_missing_files_every_one_is_a_problem_and_two_lines_say_it(tmp_path):
    items = [pair(tmp_path, f"i{number:02d}", number) for number in range(16)]
    for number in range(12):
        (tmp_path / "images" / f"i{number:02d}.png").unlink()
        (tmp_path / "masks" / f"i{number:02d}.png").unlink()
    (tmp_path / "masks" / "i12.png").unlink()
    for number in (13, 14, 15):
        (tmp_path / "images" / f"i{number:02d}.png").write_bytes(b"")
    problems = told(DataList("list", items), tmp_path)
    restore = "found no such file; restore it, or check the data root"
    assert problems[:2] == [
        f"{tmp_path.resolve()}/images/i00.png: expected a readable file, {restore}",
        f"{tmp_path.resolve()}/masks/i00.png: expected the mask of images/i00.png, {restore}",
    ]
    assert sum(restore in problem for problem in problems) == 24
    assert sum("found a file of zero bytes" in problem for problem in problems) == 3
    images, masks, *others = folded(check_datalist(DataList("list", items), tmp_path))
    names = ", ".join(f"{tmp_path.resolve()}/{{0}}/i0{number}.png" for number in (0, 1)) + " and "
    names += f"{tmp_path.resolve()}/{{0}}/i02.png"
    assert images == f"12 times, such as {names.format('images')}: expected a readable file, {restore}"
    first = f"the first: expected the mask of images/i00.png, {restore}"
    assert masks == f"12 times, such as {names.format('masks')}; {first}"
    assert len(others) == 7  # one mask, three empty files, whose hashes differ, too


def test_images_are_named_by_stem_or_by_their_path_from_where_their_folders_part():
    assert ids_of(["a/images/p1/0.png", "a/images/p2/0.png", "a/images/p2/1.x.png"]) == {
        "a/images/p1/0.png": "p1/0",
        "a/images/p2/0.png": "p2/0",
        "a/images/p2/1.x.png": "1.x",
    }
    assert list(ids_of(["0.png", "p/0.png"]).values()) == ["0", "p/0"]


def test_groups_that_look_the_same_are_one(tmp_path):
    spelt = ["G0", "G0 ", "G\u200b0", "g0", "G00", "P1", "P10"]
    items = [item(tmp_path, pair(tmp_path, f"i{n}", n).image, None, group) for n, group in enumerate(spelt)]
    found = warnings(DataList("list", [], {"a": Site(unlabelled=items[:1], test=items[1:])}))
    assert len(found) == 1
    assert found[0].startswith("1 of 5 groups have images in a validation or test split and elsewhere")


def test_fault_02_sizes_that_differ_are_told(tmp_path):
    save(tmp_path / "a.png", picture(0))
    save(tmp_path / "m.png", disc(24, 30))
    (problem,) = told(DataList("list", [item(tmp_path, "a.png", "m.png")]), tmp_path)
    assert problem.startswith("m.png: expected 32 x 24 as a.png, found 30 x 24 pixels; resize the mask")


def test_fault_03_a_transposed_mask_is_told(tmp_path):
    save(tmp_path / "a.png", picture(0))
    save(tmp_path / "m.png", disc().transpose(Image.Transpose.TRANSPOSE))
    (problem,) = told(DataList("list", [item(tmp_path, "a.png", "m.png")]), tmp_path)
    assert problem.startswith("m.png: expected 32 x 24 as a.png, found a transposed mask, 24 x 32; turn the mask")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])  # Pillow drops a TIFF's entry as it turns it
def test_fault_08_a_mask_that_does_not_follow_its_images_exif_is_told(suffix, tmp_path):
    exif, name = Image.Exif(), f"a.{suffix}"
    exif[0x0112] = 6
    save(tmp_path / name, picture(0), exif=exif)
    save(tmp_path / "m.png", disc())
    (problem,) = told(DataList("list", [item(tmp_path, name, "m.png")]), tmp_path)
    assert "the image's EXIF turns it, the mask's does not" in problem
    save(tmp_path / "m.png", disc(), exif=exif)
    assert told(DataList("list", [item(tmp_path, name, "m.png")]), tmp_path) == []
    assert look(Found(name), tmp_path).turned
    save(tmp_path / name, picture(0))
    assert not look(Found(name), tmp_path).turned


def test_faults_of_many_files_are_told_at_once_in_the_lists_order(tmp_path):
    datalist = small_list(tmp_path)
    (tmp_path / "images" / "p0.png").write_bytes(b"")
    save(tmp_path / "masks" / "p1.png", disc().convert("P"))
    (tmp_path / "images" / "u0.png").write_text("not found")
    problems = told(datalist, tmp_path)
    assert [problem.split(":")[0] for problem in problems if "SHA-256" not in problem] == [
        "images/p0.png",
        "masks/p1.png",
        "images/u0.png",
    ]


def test_fault_13_the_lists_threshold_is_used(tmp_path):
    save(tmp_path / "a.png", picture(0))
    save(tmp_path / "m.png", disc(value=200))
    items = [item(tmp_path, "a.png", "m.png")]
    assert "`--mask-threshold 128`" in told(DataList("list", items), tmp_path)[0]
    assert told(DataList("list", items, mask_threshold=128), tmp_path) == []


def test_fault_16_the_same_image_at_two_sites_is_a_warning(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name / f"{name}.png", picture(5))
    sites = {name: Site([item(tmp_path, f"{name}/{name}.png")]) for name in ("a", "b")}
    datalist = DataList("list", [], sites)
    assert told(datalist, tmp_path) == []
    assert warnings(datalist) == ["1 image is both at a and at b"]


@pytest.mark.parametrize("trained_on", ["public", "unlabelled", "validation"])
def test_fault_17_a_test_image_that_also_stands_elsewhere_is_told(tmp_path, trained_on):
    datalist = small_list(tmp_path)
    name = {"public": "p0", "unlabelled": "u0", "validation": "v0"}[trained_on]
    content = (tmp_path / "images" / f"{name}.png").read_bytes()
    (tmp_path / "images" / "t0.png").write_bytes(content)
    site = datalist.sites["site-1"]
    leaky = item(tmp_path, "images/t0.png", "masks/t0.png")
    datalist = DataList("list", datalist.public, {"site-1": Site(site.unlabelled, site.validation, [leaky])})
    (problem,) = told(datalist, tmp_path)
    assert problem.startswith("images/t0.png: expected an image of test in no other split, found the same bytes in")
    assert f"as images/{name}.png" in problem


def test_fault_19_a_link_out_of_the_root_is_told(tmp_path):
    root = tmp_path / "root"
    datalist = small_list(root)
    (root / "images" / "u0.png").rename(tmp_path / "u0.png")
    (root / "images" / "u0.png").symlink_to(tmp_path / "u0.png")
    (problem,) = told(datalist, root)
    assert "'images/u0.png' is a link out of the data root" in problem


def test_fault_20_unicode_and_spaces_work(tmp_path):
    names = ["Läsion 1", "病变 2", "o\u0308 3"]
    items = [pair(tmp_path, name, seed) for seed, name in enumerate(names)]
    DataList("Söllö", items, {"Klinik Süd": Site()}).save(tmp_path / "Liste ä.json")
    assert told(DataList.load(tmp_path / "Liste ä.json"), tmp_path) == []


def test_fault_22_the_same_stem_with_two_extensions_is_told():
    (problem,) = repeated_stems([("a", "a/1.png"), ("a", "a/1.jpg"), ("b", "b/1.png")])
    assert str(problem) == (
        "a/1.jpg: expected one file per stem, found the same stem as a/1.png; if they are one image, "
        "move one of the files away; if not, rename one, with its mask"
    )


def test_fault_29_a_file_that_changed_is_told(tmp_path):
    datalist = small_list(tmp_path)
    save(tmp_path / "images" / "u0.png", picture(99))
    save(tmp_path / "masks" / "t0.png", disc(radius=2))
    problems = told(datalist, tmp_path)
    assert [problem.split(":")[0] for problem in problems] == ["images/u0.png", "masks/t0.png"]
    assert all("SHA-256" in problem and "restore the file, or make the list again" in problem for problem in problems)


def test_repeated_bytes_and_straddling_groups_are_warnings(tmp_path):
    for name in ("1", "2", "3"):
        save(tmp_path / f"{name}.png", picture(int(name != "1")))
        save(tmp_path / f"m{name}.png", disc())
    one, two = (item(tmp_path, f"{name}.png", f"m{name}.png", "sequence") for name in ("2", "3"))
    assert warnings(DataList("list", [one, two])) == [
        "1 image of the public set repeats the bytes of another one there"
    ]
    other = item(tmp_path, "1.png", "m1.png", "sequence")
    (sentence,) = warnings(DataList("list", [one], {"a": Site(test=[other])}))
    assert sentence.startswith("1 of 1 groups have images in a validation or test split and elsewhere")
