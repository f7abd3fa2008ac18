"""``samfed prepare``: the source, the written files, and the report at the end."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from samfed_monai.cli.main import build_parser
from samfed_monai.core.errors import Refused
from samfed_monai.data.datalist import DataList
from tests.data.making import disc, picture, save, site
from tests.data.test_volumes import saved
from tests.modes import open_to_others


def run(*words: object) -> None:
    arguments = build_parser().parse_args(["prepare", *map(str, words)])
    arguments.run(arguments)


def sites(folder, *names: str, images: int = 4, masks: int = 4) -> None:
    """A public folder with masks, and others of that many images and masks."""
    site(folder, "public", 2, 2)
    for number, name in enumerate(names, start=1):
        site(folder, name, images, masks, first=100 * number)


def test_folders_command_reports_unread_files_by_kind(tmp_path, capsys):
    sites(tmp_path, "a", "b", images=10, masks=10)
    for name in ("images/film.mp4", "images/x.gif", "masks/a_000.gif", "images/@eaDir/a_000.png", "images/._b"):
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_bytes(b"other")
    for folder in ("#recycle", ".Trashes", "__MACOSX"):
        site(tmp_path, folder, 1, 0, first=300)
    output = tmp_path / "list.json"
    run("folders", tmp_path, "--public", "public", "--output", output, "--limit-per-site", 4)
    printed = capsys.readouterr().out
    assert "list: 2 public images, 2 sites\n" in printed
    assert "a: 4 unlabelled, 1 validation, 1 test" in printed
    assert DataList.load(output).hash[:12] in printed
    assert [line for line in printed.splitlines() if "not read" in line] == [
        "  please check: a/images: not read: 1 GIF (x.gif), 1 video (film.mp4)",
        "  please check: a/masks: not read: 1 GIF (a_000.gif)",
    ]
    assert "a/masks: not read: 1 GIF" in (tmp_path / "list.report.html").read_text()
    assert (tmp_path / "list.report.csv").is_file()


def test_folders_command_works_without_public_folder(tmp_path, capsys):
    for number, name in enumerate("ab"):
        site(tmp_path, name, 10, 10, first=100 * number)
    run("folders", tmp_path, "--public", "none", "--output", tmp_path / "list.json", "--no-report")
    assert "list: 0 public images, 2 sites" in capsys.readouterr().out
    parent = re.escape(f"found the folder 'images' of a single site; give {tmp_path.resolve()} if it contains")
    with pytest.raises(Refused, match=rf"/a: expected a folder of sites, .*{parent}.* --public none or --test-only"):
        run("folders", tmp_path / "a", "--public", "public", "--output", tmp_path / "one.json")
    alone = "--allow_single_site true --variant supervised --output-dir RUN"
    for words, following in ((("--public", "none"), alone), (("--test-only",), "--output-dir SCORES")):
        run("folders", tmp_path / "a", *words, "--output", tmp_path / f"one{words[0]}.json")
        assert capsys.readouterr().out.endswith(f" {following}\n")
    with pytest.raises(Refused, match=r"/nowhere: expected the folder of the images, found no such folder; check the"):
        run("folders", tmp_path / "nowhere", "--public", "none", "--output", tmp_path / "new.json")
    (tmp_path / "a" / "masks").rename(tmp_path / "masks")
    run("folders", tmp_path, "--public", "none", "--output", tmp_path / "bare.json", "--no-report")
    assert "next    add public images with masks (--public), or masks at every" in capsys.readouterr().out


def test_list_command_reports_missing_images(tmp_path, capsys):
    save(tmp_path / "images" / "1.png", picture(1))
    (tmp_path / "mine.json").write_text(json.dumps({"Clinic": {"unlabeled_train": ["1.png", "2.png"]}}))
    words = ("--split", tmp_path / "mine.json", "--data-root", tmp_path, "--output", tmp_path / "l.json", "--no-report")
    run("list", *words)
    assert "missing: 1 of 2 images of Clinic (unlabelled)" in capsys.readouterr().out
    assert not (tmp_path / "l.report.html").exists()
    save(tmp_path / "masks" / "1.png", disc())
    (tmp_path / "public.json").write_text(
        json.dumps({"P": {"labeled_train": ["1.png"]}, "Clinic": {"test_list": ["2"]}})
    )
    run("list", "--split", tmp_path / "public.json", *words[2:4], "--output", tmp_path / "p.json", "--no-report")
    assert "next" not in capsys.readouterr().out, "no site is left to train or test at"
    save(tmp_path / "Su\u0308d" / "images" / "3.png", picture(3))
    with pytest.raises(Refused, match=r"found none of the images of mine\.json"):  # and the folder is there
        run("list", *words, "--folder", "Clinic=S\u00fcd")
    for folder, message in (
        ("Clinic", "--folder: expected clients among"),
        ("Clinic=", "--folder: expected a value after the name and '=', found 'Clinic='"),
        ("Clinic=imags", "--folder Clinic: expected a folder in .*, found no folder 'imags'; did you mean 'im"),
    ):
        with pytest.raises(Refused, match=message):
            run("list", *words, "--folder", folder)


def test_unseen_sites_are_test_only_and_others_divided(tmp_path, capsys):
    sites(tmp_path, "a", "b", "Ko\u0308ln", "Su\u0308d", images=10, masks=10)  # typed in another form of Unicode
    (tmp_path / "public").rename(tmp_path / "c")
    words = ("--output", tmp_path / "list.json", "--no-report", "--test", 0.2, "--label-kind", "K\u00f6ln=mask")
    words += ("--public", "S\u00fcd", "--by-folder")
    run("folders", tmp_path, *words, "--validation", 0.2, "--unseen", "b,K\u00f6ln,c", "--divide", 2)
    printed = capsys.readouterr().out
    assert "list: 10 public images, 5 sites" in printed
    assert "a-1: 3 unlabelled, 1 validation, 1 test" in printed
    assert "K\u00f6ln: 0 unlabelled, 0 validation, 10 test" in printed


def test_synthetic_is_repeatable_and_never_overwrites(tmp_path):
    output = tmp_path / "list.json"
    words = ("--sites", 2, "--images-per-site", 3, "--public", 2, "--size", 64, 96)
    run("synthetic", tmp_path / "data", *words, "--output", output)
    assert len(DataList.load(output).sites) == 2
    with pytest.raises(OSError, match="No such file"):
        run("synthetic", tmp_path / "others", *words, "--output", "/proc/list.json")
    assert open_to_others(tmp_path / "data", output, *tmp_path.glob("list.report.*")) == []
    before = output.read_bytes()
    run("synthetic", tmp_path / "data", *words, "--output", output)
    assert output.read_bytes() == before
    images = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.jpg")}
    for other in (("--seed", 1), ("--scene", "polyp")):
        with pytest.raises(Refused, match="expected no file, or an identical one, found another file; render"):
            run("synthetic", tmp_path / "data", *words, "--output", tmp_path / "other.json", *other)
        with pytest.raises(Refused, match=r"expected no file, or the list 'synthetic-.*, found the list 'synthetic-0'"):
            run("synthetic", tmp_path / "others", *words, "--output", output, *other)
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.jpg")} == images
    with pytest.raises(Refused, match="found another data list, 'synthetic-0'"):
        run("synthetic", tmp_path / "others", *words, "--output", output, "--labelled")
    assert not (tmp_path / "others").exists(), "nothing is rendered"
    assert output.read_bytes() == before


def test_option_without_usable_value_is_refused(capsys):
    lists = "compare --variants a,", "compare --seeds ,0", "audit --attack ,", "prepare nifti --classes a,,b"
    for words in (*lists, "prepare folders --unseen ,", "prepare isic --sites many"):
        with pytest.raises(SystemExit):
            build_parser().parse_args(words.split())
        assert f"argument {words.split()[-2]}: expected " in capsys.readouterr().err


def test_split_writes_lists_of_sites_and_server(tmp_path, capsys):
    sites(tmp_path, "a", "b", images=2, masks=2)
    with pytest.raises(Refused, match="found 'public'; if its images are public, give --public public;"):
        run("folders", tmp_path, "--public", "none", "--output", tmp_path / "list.json", "--no-report")
    run("folders", tmp_path, "--public", "public", "--output", tmp_path / "list.json", "--no-report")
    run("split", tmp_path / "list.json", "--output-dir", tmp_path / "lists")
    assert f"b: {tmp_path / 'lists' / 'b.json'}" in capsys.readouterr().out
    whole = DataList.load(tmp_path / "list.json")
    of_b, of_server = (DataList.load(tmp_path / "lists" / f"{name}.json") for name in ("b", "server"))
    assert list(of_b.sites) == ["b"]
    assert of_server.sites == {}
    assert of_b.public_hash() == of_server.public_hash() == whole.public_hash()
    assert of_b.part_hash("b") == whole.part_hash("b") != whole.part_hash("a")
    run("split", tmp_path / "list.json", "--output-dir", tmp_path / "lists")
    of_b.for_server().save(tmp_path / "lists" / "a.json")
    (tmp_path / "lists" / "b.json").unlink()
    with pytest.raises(Refused, match=r"lists/a\.json: expected no file, or the same list"):
        run("split", tmp_path / "list.json", "--output-dir", tmp_path / "lists")
    assert not (tmp_path / "lists" / "b.json").exists()
    DataList("empty", []).save(tmp_path / "empty.json")
    with pytest.raises(Refused, match="empty -> sites: expected sites to divide by"):
        run("split", tmp_path / "empty.json", "--output-dir", tmp_path)


def test_coco_list_skips_unreadable_images(tmp_path, capsys):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed: pip install samfed-monai[coco]")
    site(tmp_path, "public", 3, 3)
    outlines = [{"id": n, "image_id": n, "category_id": 4, "segmentation": [[2, 2, 20, 2, 20, 15]]} for n in (0, 1)]
    pictures = [{"id": number, "file_name": f"a_{number:03d}.png", "height": 24, "width": 32} for number in range(4)]
    content = {"images": pictures, "annotations": outlines, "categories": [{"id": 4, "name": "polyp"}]}
    site(tmp_path, "a", 5, 0, first=100)
    (tmp_path / "a" / "images" / "a_000.png").write_bytes(b"damaged")
    (tmp_path / "a" / "annotations").mkdir()
    (tmp_path / "a" / "annotations" / "instances.json").write_text(json.dumps(content))
    words = ("coco", tmp_path, "--public", "public", "--no-report", "--output", tmp_path / "list.json")
    words += ("--category", "polyp", "--test", 0.25, "--validation", 0)
    with pytest.raises(Refused, match=r"a_000\.png: .*; or skip the file with --skip-unreadable"):
        run(*words)
    for source, *option in (("coco", "--classes", "a,b"), ("polyp", "--classes", "a,b"), ("nifti", "--mask-thr", 9)):
        with pytest.raises(SystemExit):  # nothing would read it
            run(source, *words[1:6], *option, *(("--slices", tmp_path) if source == "nifti" else ()))
    with pytest.raises(Refused, match=r"1 problem\n.*--unseen: expected one of \['a'\], found 'b'"):  # before drawing
        run(*words, "--unseen", "b")
    run(*words, "--skip-unreadable")
    printed = capsys.readouterr().out
    assert "a: 3 unlabelled, 0 validation, 1 test" in printed
    assert "please check: 2 images of a have no annotation of polyp: used as unlabelled" in printed
    assert "please check: 1 unreadable image was left out, such as a/images/a_000.png" in printed
    [tested] = DataList.load(tmp_path / "list.json").sites["a"].test
    assert (tested.image, tested.label) == ("a/images/a_001.png", "a/masks/a_001.png")


def test_slices_of_volume_stay_in_one_split(tmp_path, capsys):
    random = np.random.default_rng(0)
    for name, number in (("public", 0), *(("a", number) for number in range(6))):
        data = random.integers(0, 255, (24, 24, 4)).astype(np.uint8)
        saved(tmp_path / "in" / name / "images" / f"{name}{number}.nii.gz", data)
        saved(tmp_path / "in" / name / "masks" / f"{name}{number}.nii.gz", (data > 150).astype(np.uint8))
    words = ("nifti", tmp_path / "in", "--slices", tmp_path / "out", "--output", tmp_path / "list.json", "--no-report")
    run(*words, "--public", "public", "--test", 0.3, "--validation", 0.3)
    assert "list: 4 public images, 1 site\n" in capsys.readouterr().out
    assert open_to_others(tmp_path / "out", tmp_path / "list.json") == []
    site_a = DataList.load(tmp_path / "list.json").sites["a"]
    volumes = [{item.image.split("/")[2] for item in items} for _, items in site_a.splits()]
    assert sorted(name for names in volumes for name in names) == [f"a{number}" for number in range(6)]
    assert {item.group for item in site_a.test} == {f"a/images/{name}" for name in volumes[-1]}
    (photos := tmp_path / "out" / "photo" / "images" / "kind").mkdir(parents=True)
    for name in "xyz":
        Image.fromarray(random.integers(0, 255, (24, 24), np.uint8)).save(photos / f"{name}.png")
    again = ("folders", tmp_path / "out", "--output", tmp_path / "again.json", *words[-1:])
    run(*again, "--public", "public", "--test", 0.3, "--validation", 0.3)
    assert DataList.load(tmp_path / "again.json").sites["a"] == site_a, "slices are known by volumes.json"
    assert {item.group for item in DataList.load(tmp_path / "again.json").sites["photo"].unlabelled} == {None}
    (tmp_path / "in/a/images/a0.nii.gz").write_bytes(b"damaged")  # as only cutting shows
    (tmp_path / "in/public/masks/public0.nii.gz").unlink()
    for options, message in (
        ("--public unknown", "1 problem.*/in/unknown/images: expected a folder of images"),
        ("--public public --unseen b", r"public0\.nii\.gz: expected a mask.*--unseen: expected one of \['a'\]"),
        ("--test-only", "1 problem.*b.json -> sites#public: expected another name"),
    ):
        with pytest.raises(Refused, match=f"(?s){message}"):
            run(*words[:3], tmp_path / "two", "--output", tmp_path / "b.json", *options.split())
        assert not (tmp_path / "two").exists()


def test_unreadable_volumes_are_skipped_on_request(tmp_path, capsys):
    for number in range(4):
        for kind in ("images", "masks"):
            saved(tmp_path / "in" / "a" / kind / f"v{number}.nii", np.full((8, 8, 2), number % 2, np.uint8))
    (tmp_path / "in/a/images/v0.nii").write_bytes(b"damaged")
    (tmp_path / "in/a/masks/v1.nii").write_bytes(b"damaged")
    (tmp_path / "in/a/images/notes.txt").write_bytes(b"")
    words = ("nifti", tmp_path / "in", "--slices", tmp_path / "out", "--output", tmp_path / "l.json", "--no-report")
    with pytest.raises(Refused, match=r"(?s)--validation: expected nothing with --test-only.*--unseen: expected not"):
        run(*words, "--test-only", "--validation", 0.2, "--unseen", "a")
    with pytest.raises(Refused, match=r"v0\.nii: .*; or skip the file .*\n.*v1\.nii: .*; or skip the file with --s"):
        run(*words, "--test-only")
    run(*words, "--test-only", "--skip-unreadable")
    printed = capsys.readouterr().out
    assert "0 validation, 4 test" in printed
    assert "please check: a/images: not read: 1 text (notes.txt)" in printed
    assert "please check: 2 unreadable volumes were left out, such as a/images/v0.nii" in printed
    saved(tmp_path / "in/a/masks/v2.nii", np.full((8, 8, 2), np.nan, np.float32))  # which can be read, and is no mask
    with pytest.raises(Refused, match=r"1 problem\n.*v2\.nii: expected whole numbers.*save it as integers$"):
        run(*words, "--test-only", "--skip-unreadable")


def test_unreadable_images_and_masks_are_skipped_on_request(tmp_path, capsys, caplog):
    sites(tmp_path, "a", "b", images=6, masks=6)
    (tmp_path / "a" / "images" / "a_001.png").write_bytes(b"damaged")
    (tmp_path / "a" / "masks" / "a_002.png").write_bytes(b"damaged")
    words = ("folders", tmp_path, "--public", "public", "--output", tmp_path / "list.json")
    with pytest.raises(Refused, match=r"a_001\.png: .*skip the file with --skip-unreadable\n.*a_002\.png: .*--skip"):
        run(*words)
    run(*words, "--skip-unreadable")
    printed = capsys.readouterr().out
    assert "a: 4 unlabelled, 0 validation, 0 test" in printed
    assert "please check: 2 unreadable images were left out, such as a/images/a_001.png" in printed
    assert [name in text for name, text in zip(("a_001", "a_002"), caplog.messages, strict=True)] == [True, True]
    save(tmp_path / "a" / "masks" / "a_002.png", disc(value=77))  # which can be read, and is no mask
    (tmp_path / "list.json").unlink()
    with pytest.raises(Refused, match=r"1 problem\n.*a_002\.png: expected a binary mask.*mask-threshold 77`$"):
        run(*words, "--skip-unreadable")


def test_invalid_file_names_are_reported_in_one_line(tmp_path):
    sites(tmp_path, "a", images=5, masks=0)
    for path in list((tmp_path / "a" / "images").iterdir()):
        path.rename(path.with_name(os.fsdecode(b"\xfc" + os.fsencode(path.name))))
    with pytest.raises(Refused, match=r"refused: 1 problem\n.* found 'a/images/\\xfc.*, '.*, '.* and 2 more; rename"):
        run("folders", tmp_path, "--public", "public", "--output", tmp_path / "list.json", "--no-report")
    assert not (tmp_path / "list.json").exists()
