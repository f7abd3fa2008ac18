"""``samfed infer``: pictures, volumes and DICOM objects in; masks, outlines, polygons and areas out."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import nibabel
import numpy as np
import pytest
from PIL import Image

from samfed_monai.cli.infer import images_of
from samfed_monai.cli.main import main
from samfed_monai.inference import Predictor
from tests.modes import open_to_others

BUNDLE = Path(__file__).parents[2] / "bundles" / "samfed_skin"
SMALL = ("--image_size", "64", "--allow-other-size")
AFFINE = np.diag([0.5, 0.5, 2.0, 1.0])


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dark spot on bright skin: as a picture, and in the second of the two slices of a volume."""
    folder = tmp_path_factory.mktemp("given")
    y, x = np.indices((96, 128))
    spot = np.where((x - 60) ** 2 + (y - 40) ** 2 < 25**2, 60, 205).astype(np.uint8)
    Image.fromarray(np.stack([spot, spot // 2, spot // 2], axis=-1)).save(folder / "photo.png")
    volume = np.stack([np.full_like(spot, 205), spot], axis=-1).transpose(1, 0, 2)
    nibabel.save(nibabel.Nifti1Image(volume, AFFINE), folder / "scan.nii.gz")
    return folder


@pytest.fixture
def infer(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    return lambda *words: main(["infer", str(BUNDLE), *words, "--output-dir", "masks", *SMALL])


@pytest.fixture(scope="module")
def in_all_forms(given: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Both, segmented into all forms in a folder, and the command that does it."""
    pytest.importorskip("pycocotools", reason="pycocotools is not installed: pip install samfed-monai[coco]")
    folder = tmp_path_factory.mktemp("forms")
    forms = {"output-dir": "masks", "overlays": "looks", "geojson": "polygons"}
    forms |= {"areas": "t/areas.csv", "coco": "t/coco.json", "page": "t/looks.html"}
    words = [word for form, place in forms.items() for word in (f"--{form}", str(folder / place))]
    command = ["infer", str(BUNDLE), str(given), "--probabilities", *words, *SMALL]
    assert main(command) == 0
    return folder, command


def areas(file: Path) -> dict[str, dict[str, str]]:
    with file.open(newline="") as stream:
        return {row["name"]: row for row in csv.DictReader(stream)}


def drawn_in(file: Path) -> np.ndarray:
    """Slices of a mask (S, H, W)."""
    return np.asarray(nibabel.load(file).dataobj).transpose(2, 1, 0)


def test_folder_is_segmented_into_all_forms(in_all_forms):
    folder, _ = in_all_forms
    masks = folder / "masks"
    photo, scan = np.array(Image.open(masks / "photo.png")), nibabel.load(masks / "scan.nii.gz")
    assert photo.shape == (96, 128)
    assert (scan.shape, scan.get_data_dtype()) == ((128, 96, 2), np.uint8)
    assert np.array_equal(scan.affine, AFFINE)
    names = ["inference.json", "photo.png", "photo.probability.png", "scan.nii.gz", "scan.probability.nii.gz"]
    assert sorted(path.name for path in masks.iterdir()) == names
    drawn, certain = drawn_in(masks / "scan.nii.gz") > 0, drawn_in(masks / "scan.probability.nii.gz")
    assert certain.dtype == np.uint8
    assert certain[drawn].min(initial=255) >= 127 >= certain[~drawn].max()
    rows = areas(folder / "t" / "areas.csv")
    assert {name: (int(row["foreground_pixels"]), row["mm2"]) for name, row in rows.items()} == {
        "photo": ((photo > 0).sum(), ""),
        **{f"scan/000{n}": (each.sum(), f"{each.sum() * 0.25}") for n, each in enumerate(drawn, start=1)},
    }
    assert np.array(Image.open(folder / "looks" / "scan" / "0002.png")).shape == (96, 128, 3)
    assert json.loads((folder / "polygons" / "photo.geojson").read_text())["type"] == "FeatureCollection"


def test_coco_annotations_match_masks(in_all_forms, tmp_path):
    from samfed_monai.data.coco import read_coco

    folder, _ = in_all_forms
    read = json.loads((folder / "t" / "coco.json").read_text())
    listed = [(one["id"], one["file_name"], one.get("frame")) for one in read["images"]]
    assert listed == [(1, "photo.png", None), (2, "scan.nii.gz", 1), (3, "scan.nii.gz", 2)]
    assert read["categories"] == [{"id": 1, "name": "lesion"}]
    read["images"] = [{**one, "file_name": f"{one['id']}"} for one in read["images"]]
    (tmp_path / "renamed.json").write_text(json.dumps(read))
    photo, *slices = (one.mask() for one in read_coco(tmp_path / "renamed.json"))
    assert np.array_equal(photo, np.array(Image.open(folder / "masks" / "photo.png")) > 0)
    assert np.array_equal(np.stack(slices), drawn_in(folder / "masks" / "scan.nii.gz") > 0)


def test_fault_106_outputs_are_private_to_owner(in_all_forms):
    folder, _ = in_all_forms
    assert len(list(folder.rglob("*"))) == 20  # six folders; five masks, three outlines in two forms, three files
    assert open_to_others(*folder.iterdir()) == []


def test_only_same_inference_may_reuse_folder(in_all_forms, given, tmp_path, capsys):
    folder, command = in_all_forms
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shutil.copy(given / "scan.nii.gz", tmp_path / "other.nii.gz")
    other = ["infer", str(BUNDLE), str(tmp_path), "--output-dir", str(folder / "masks"), "--threshold", "0.3", *SMALL]
    assert main(other) == 2
    expected = f"{folder / 'masks'}/inference.json -> threshold: expected 0.3 for this run, found 0.5"
    assert expected in capsys.readouterr().err
    assert main(command) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("threshold", "first"), [("0.5", False), ("0.999999", True)])
def test_empty_mask_is_doubtful_if_whole_image_is_empty(given, tmp_path, monkeypatch, capsys, threshold, first):
    """The first slice of two is plain; above 0.999999 nothing is foreground."""
    monkeypatch.chdir(tmp_path)
    words = ["--image_size", "128", "--allow-other-size", "--threshold", threshold]
    words += ["--areas", "areas.csv", "--only-sure", "--output-dir", "masks"]
    assert main(["infer", str(BUNDLE), str(given), *words]) == 0
    rows = areas(Path("areas.csv"))
    assert rows["scan/0001"]["flags"].startswith("empty")
    assert (rows["scan/0001"]["expected_dice"] == "0.0") is (rows["scan/0001"]["doubtful"] == "yes") is first
    assert (rows["photo"]["expected_dice"] == "0.0") is Path("masks/doubtful/photo.png").is_file() is first
    captured = capsys.readouterr()
    assert ("NIfTI masks with doubtful slices were not moved: scan" in captured.err) is first
    assert ("0.7, not calibrated)" in captured.out) is first, "a calibration is for the usual threshold"
    assert main(["infer", str(BUNDLE), str(given / "scan.nii.gz"), *words]) == 2
    assert "--only-sure: expected an image that gets a PNG mask, found only NIfTI volumes" in capsys.readouterr().err


def test_doubtful_masks_are_never_overwritten(infer, given, capsys):
    """Above 0.999999 nothing of the picture is foreground; a mask there was corrected, or is another patient's."""
    words = ("a/photo.png", "--threshold", "0.999999", "--only-sure", "--flag-below")
    shutil.copytree(given, "a")
    assert infer(*words, "0.7") == 0 == infer(*words, "0.7")
    there = Path("masks/doubtful/photo.png")
    warning = "/photo.png is kept, as it differs from the new mask (corrected"
    network = there.read_bytes()
    assert infer(*words, "0") == 0
    assert ([*there.parent.iterdir()], Path("masks/photo.png").read_bytes()) == ([], network), "it is sure now"
    assert infer(*words, "0.7") == 0
    assert warning not in capsys.readouterr().err
    there.write_bytes(b"another")
    assert infer(*words, "0.7") == 0 == infer(*words, "0.7")
    assert sorted(path.name for path in Path("masks").iterdir()) == ["doubtful", "inference.json"]
    (beside,) = there.parent.glob("photo-????????.png")
    assert (there.read_bytes(), beside.read_bytes()) == (b"another", network)
    assert infer(*words, "0") == 0
    assert (there.read_bytes(), Path("masks/photo.png").read_bytes()) == (b"another", network)
    warnings = [line for line in capsys.readouterr().err.splitlines() if warning in line]
    assert [Path(line.rpartition(" ")[2]).name for line in warnings] == [beside.name, beside.name, "photo.png"]
    beside.write_bytes(b"corrected")
    assert infer(*words, "0.7") == 2
    assert beside.read_bytes() == b"corrected"
    shutil.copytree("a", "a/doubtful")
    assert infer("a", "--only-sure") == 2
    assert "  - doubtful/photo: expected one image or volume of that name, found several" in capsys.readouterr().err


def test_existing_file_does_not_stop_other_outputs(infer, given, monkeypatch, capsys):
    """A mask that was corrected, and a table of an earlier run; each volume is written before the next is segmented."""
    monkeypatch.setattr(importlib.import_module("samfed_monai.inference.segment"), "AT_ONCE", 1)
    shutil.copytree(given, "in")
    shutil.copytree(given, "masks")
    assert infer("masks/scan.nii.gz") == 2  # would replace its image
    assert "expected no existing files, or inference.json beside them, found scan.nii" in capsys.readouterr().err
    shutil.rmtree("masks")
    assert infer("in/scan.nii.gz", "--areas", "areas.csv") == 0
    first, corrected = Path("areas.csv").read_bytes(), [Path("masks/scan.nii.gz"), Path("masks/photo.png")]
    for file in corrected:
        file.write_bytes(b"corrected")
    for name in ("tomo", "xray"):
        shutil.copy("in/scan.nii.gz", f"in/{name}.nii.gz")
    write, before = Predictor.write, list[int]()

    def watched(*given, **options):
        before.append(len(list(Path("masks").glob("*.nii.gz"))))
        return write(*given, **options)

    monkeypatch.setattr(Predictor, "write", watched)
    assert infer("in", "--areas", "areas.csv", "--page", "looks.html") == 2
    (made,) = Path().glob("areas-????????.csv")
    out, error = capsys.readouterr()
    assert f"another file; the new file is {made.absolute()}\n" in error
    assert all(f"masks/{each.name}: expected none, or the same mask, found another file" in error for each in corrected)
    assert out.splitlines()[-1].startswith("doubtful: ")
    assert [file.read_bytes() for file in (*corrected, Path("areas.csv"))] == [b"corrected", b"corrected", first]
    assert [*areas(made)] == ["photo", *(f"{name}/000{n}" for name in ("scan", "tomo", "xray") for n in (1, 2))]
    assert before == [1, 1, 1, 2], "of the photo and of each volume"
    assert drawn_in(Path("masks/xray.nii.gz")).shape == (2, 96, 128)
    assert Path("looks.html").is_file()


def test_volume_masks_equal_masks_of_slices(infer, given, tmp_path, capsys):
    assert infer(str(given / "scan.nii.gz")) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "mask" in line and "|" not in line]
    assert lines == [f"masks of 1 volume or DICOM object in {tmp_path / 'masks'}"]
    volume = np.asarray(nibabel.load(given / "scan.nii.gz").dataobj)
    Path("slices").mkdir()
    Image.fromarray(np.repeat(volume[..., 1].T[..., None], 3, axis=-1)).save("slices/0002.png")
    assert main(["infer", str(BUNDLE), "slices", "--output-dir", "by_hand", *SMALL]) == 0
    assert np.array_equal(drawn_in(Path("masks/scan.nii.gz"))[1] * 255, np.array(Image.open("by_hand/0002.png")))


def test_reoriented_volume_keeps_original_axes(infer, given, capsys):
    order = np.array([[2, 1], [0, -1], [1, 1]])  # of its axes, R is the last, A the first and backwards, S the second
    nibabel.save(nibabel.load(given / "scan.nii.gz").as_reoriented(order), "turned.nii.gz")
    assert infer(str(given / "scan.nii.gz"), "turned.nii.gz", "--reorient", "--areas", "areas.csv") == 0
    assert "different directions" not in capsys.readouterr().err
    drawn, turned = (nibabel.load(f"masks/{name}.nii.gz") for name in ("scan", "turned"))
    assert np.array_equal(turned.affine, nibabel.load("turned.nii.gz").affine)
    assert np.array_equal(turned.dataobj, drawn.as_reoriented(order).dataobj)
    rows = [[row["foreground_pixels"], row["mm2"]] for row in areas(Path("areas.csv")).values()]
    assert rows[:2] == rows[2:]
    assert infer(str(given / "photo.png"), "--reorient") == 2
    assert "--reorient: expected a NIfTI volume to reorient, found none; leave it out" in capsys.readouterr().err
    assert infer(str(given / "scan.nii.gz"), "turned.nii.gz", "--areas", "turned.nii.gz") == 2  # before it computes
    assert "run in different directions: 1 " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("picture", "volume", "slices"), [("photo.png", "photo.nii.gz", 1), ("scan/0002.png", "scan.nii.gz", 2)]
)
def test_duplicate_mask_names_are_refused(infer, given, capsys, picture, volume, slices):
    (Path("in") / picture).parent.mkdir(parents=True)
    shutil.copy(given / "photo.png", Path("in") / picture)
    scan = np.asarray(nibabel.load(given / "scan.nii.gz").dataobj)
    nibabel.save(nibabel.Nifti1Image(scan[..., :slices], AFFINE), Path("in") / volume)
    other = shutil.copy(given / "scan.nii.gz", "scan.probability.nii.gz")
    assert (infer("in"), infer(str(given / "scan.nii.gz"), other, "--probabilities")) == (2, 2)
    twice, errors = ": expected one image or volume of that name, found several; rename one", capsys.readouterr().err
    assert all(f"  - {name}{twice}" in errors for name in (picture[:-4], other))
    assert not Path("masks").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--areas", "mine"], "mine: expected no file, or the same areas, found another file"),
        (["--coco", "mine"], "mine: expected no file, or the same annotations, found another file"),
        (["--page", "mine"], "mine: expected no file, or the same page, found another file"),
        (["--page", "mine/looks.html"], "mine: expected a folder that can be written to, found File exists"),
        (["--areas", "new", "--page", "new"], "--page: expected a different path from --areas, found "),
        (["--overlays", "masks"], "--overlays: expected a different path from --output-dir, found "),
        (["--overlays", "IN/looks"], "--overlays: expected a folder outside of IN (all files there are read as"),
        (["--geojson", "IN/polygons"], "--geojson: expected a folder outside of IN (all files there are read as"),
    ],
)
def test_unwritable_output_is_refused_before_inference(infer, given, capsys, words, message):
    Path("mine").write_text("<html>mine")
    assert infer(str(given), *(word.replace("IN", str(given)) for word in words)) == 2
    assert message.replace("IN", str(given)) in capsys.readouterr().err
    assert Path("mine").read_text() == "<html>mine"
    assert sorted(path.name for path in (*Path().iterdir(), *given.iterdir())) == ["mine", "photo.png", "scan.nii.gz"]


@pytest.fixture
def mixed(given: Path, tmp_path: Path) -> Path:
    """The given picture and volume, a DICOM image and others that have none, and files of other kinds and systems."""
    pytest.importorskip("pydicom", reason="pydicom is not installed: pip install samfed-monai[dicom]")
    from pydicom.data import get_testdata_file

    folder = tmp_path / "mixed"
    shutil.copytree(given, folder)
    objects = {"1.2.840.7": "CT_small.dcm", "1.2.840.8": "liver_1frame.dcm", "report.dcm": "reportsi.dcm"}
    for name, file in objects.items():
        shutil.copy(str(get_testdata_file(file)), folder / name)
    for name in ("a.gif", "b.gif", "film.mp4", ".DS_Store", "__MACOSX/._photo.png", "@eaDir/photo.png", ".old/x.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"other")
    return folder


def test_unread_files_are_counted_by_kind(infer, mixed, capsys):
    assert infer(str(mixed)) == 0
    written = {"inference.json", "photo.png", "scan.nii.gz", "1.2.840.7.png"}
    assert {path.name for path in Path("masks").iterdir()} == written
    assert [line for line in capsys.readouterr().err.splitlines() if "not read" in line] == [
        f"{mixed}: not read: 1 DICOM without an image: Basic Text SR Storage (report.dcm), 1 DICOM without an image: "
        "Segmentation Storage (1.2.840.8), 2 GIF (a.gif, …), 1 hidden (.old), 1 video (film.mp4)"
    ]


def test_patterns_ignore_system_files(mixed):
    (mixed / "deep").mkdir()
    shutil.copy(mixed / "photo.png", mixed / "deep" / "b.png")
    assert images_of([str(mixed / "**" / "*.png")]) == [str(mixed / "deep" / "b.png"), str(mixed / "photo.png")]
    assert images_of([str(mixed / "@eaDir"), str(mixed / "photo.png")]) == [str(mixed / "photo.png")]
    assert images_of([str(mixed)]) == images_of([str(mixed / "deep" / "..")]) == str(mixed)


def test_linked_image_uses_name_of_link(infer, given, capsys):
    Path("film.mp4").mkdir()
    shutil.copy(given / "photo.png", "DOE_JANE.png")
    for name in ("p001.png", "p002.png"):
        (Path("film.mp4") / name).symlink_to("../DOE_JANE.png")
    assert infer("film.mp4/p001.png", "film.mp4/p00[12].png", "--areas", "areas.csv") == 0
    assert list(areas(Path("areas.csv"))) == ["p001", "p002"]
    assert sorted(path.name for path in Path("masks").iterdir()) == ["inference.json", "p001.png", "p002.png"]
    assert infer("film.mp4") == 2
    assert "p001.png: expected a file in the folder, found a link that leads out of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["1.2.840.8"], r"1\.2\.840\.8: expected a DICOM image, found Segmentation Storage; leave it out"),
        (["report.dcm", "photo.png"], r"report\.dcm: expected an object with pixel data, found no pixels \(SR\)"),
        (["1.2.840.7", "film.mp4"], r"film\.mp4: expected a video: MP4, AVI, MKV, found no video"),
        (["@eaDir"], r"@eaDir: expected images, or folders of images, found a system file or folder"),
        ([".old"], r"found no image; not read: 1 GIF \(x\.gif\)"),
        (["pipe.png"], r"pipe\.png: expected .*, found a file of another kind \(pipe or device\)"),
        (["gone.png"], r"gone\.png: expected .*; for inference also \.nii\.gz, .*, found a broken link\n"),
        (["a.zip"], r"a\.zip: expected .*, found a file of another kind \(ZIP\); unpack it"),
    ],
)
def test_refusal_creates_no_folders(infer, mixed, capsys, named, message):
    (mixed / ".old" / "x.png").rename(mixed / ".old" / "x.gif")
    (mixed / "gone.png").symlink_to("missing.png")
    (mixed / "a.zip").touch()
    os.mkfifo(mixed / "pipe.png")
    words = [str(mixed / name) for name in named]
    assert infer(*words, "--overlays", "looks", "--dicom-seg", "objects") == 2
    assert infer(*words, "--overlays", "looks") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not any(Path(name).exists() for name in ("masks", "looks", "objects"))


def test_unreadable_file_is_refused_unless_skipped(infer, mixed, capsys):
    broken = ["broken2.nii", "broken3.dcm", "broken.jpg"]
    for name in broken:
        (mixed / name).write_bytes(b"damaged")
    (mixed / "loop.jpg").symlink_to("loop.jpg")
    assert infer(str(mixed)) == 2
    error = capsys.readouterr().err
    assert re.search(r"broken2\.nii: expected a NIfTI volume.*; or skip the file with --skip-unreadable", error)
    assert re.search(r"broken3\.dcm: .*; or skip the file with --skip-unreadable", error)
    assert not Path("masks").exists()
    assert infer(str(mixed), "--skip-unreadable", "--overlays", "looks", "--areas", "areas.csv") == 0
    drawn = {"photo.png", "1.2.840.7.png"}
    assert {path.name for path in Path("masks").iterdir()} == {"inference.json", "scan.nii.gz", *drawn}
    assert {path.name for path in Path("looks").iterdir()} == {"scan", *drawn}
    left = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert [name for text in left for name in [*broken, "loop.jpg"] if name in text] == [*broken, "loop.jpg"]
    for sound, damaged in (("photo.png", "broken2.nii"), ("scan.nii.gz", "loop.jpg")):
        assert infer(str(mixed / sound), str(mixed / damaged), "--skip-unreadable") == 0
        assert capsys.readouterr().err.count("left out: ") == 1
    assert infer(str(mixed / "scan.nii.gz"), str(mixed / "phot.png"), "--skip-unreadable") == 2
    assert "found no such folder or image; did you mean 'photo.png'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", [b"a\x1b[31mb.png", b"sub\xff/a.png", b"a\x7f.nii.gz"])
def test_unprintable_name_is_refused_and_escaped(infer, given, tmp_path, capsys, name):
    path = tmp_path / "images" / os.fsdecode(name)
    path.parent.mkdir(parents=True)
    shutil.copy(given / ("scan.nii.gz" if name.endswith(b"gz") else "photo.png"), path)
    assert infer("images", "--areas", "areas.csv") == 2
    error = capsys.readouterr().err
    assert "name of a file or folder: expected UTF-8 without control characters, found '" in error
    assert error.replace("\n", "").replace("\r", "").isprintable()
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


@pytest.mark.parametrize("word", ["--probabilities", "--geojson=shapes"])
def test_too_long_output_name_is_refused(infer, given, tmp_path, capsys, word):
    shutil.copy(given / "photo.png", f"{'a' * 248}.png")
    assert infer(f"{'a' * 248}.png", word) == 2
    assert re.search(r"a{248}\.\w+(\.png)?: expected at most 255, found a name of 2\d\d bytes", capsys.readouterr().err)
    assert len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize(
    ("option", "model", "expected"),
    [
        ("--image_size", "", "224, used to train model.pt"),
        ("--preprocessing#transforms#3#spatial_size", "mine.pt", "224, the size in the bundle"),
    ],
    ids=["the bundle's own model", "weights that do not say their size"],
)
def test_image_size_other_than_in_training_is_refused(given, tmp_path, capsys, option, model, expected):
    words = ["infer", str(BUNDLE), str(given / "photo.png"), "--output-dir", str(tmp_path / "masks"), option, "64"]
    shutil.copy(BUNDLE / "models" / "model.pt", tmp_path / "mine.pt")
    assert main(words + (["--model", str(tmp_path / model)] if model else [])) == 2
    assert f"{option}: expected {expected}, found 64" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


def test_fault_81_full_disk_of_temporary_files_is_named(infer, given, monkeypatch, capsys):
    photo = np.array(Image.open(given / "photo.png"))
    monkeypatch.setattr(Image.Image, "save", Mock(side_effect=OSError(28, "No space left on device")))
    assert infer(str(given / "scan.nii.gz")) == 3
    assert re.search(r"the disk is full \(.*/samfed-.*/000000\.png\)", capsys.readouterr().err)
    with pytest.raises(OSError, match=r"No space left on device: '.*/samfed-.*/0\.png'"):
        Predictor(BUNDLE)([photo])
