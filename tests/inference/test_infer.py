"""``samfed infer``: pictures, volumes and DICOM objects in; masks, outlines, polygons and areas out."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from samfed_monai.cli.infer import images_of
from samfed_monai.cli.main import main
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

    def run(*words: str) -> int:
        return main(["infer", str(BUNDLE), *words, "--output-dir", "masks", *SMALL])

    return run


def test_what_is_told_of_a_volume_is_where_its_mask_is(infer, given, tmp_path, capsys):
    assert infer(str(given / "scan.nii.gz")) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "mask" in line and "|" not in line]
    assert told == [f"masks of 1 volume or DICOM object in {tmp_path / 'masks'}"]


def test_a_folder_of_both(infer, given, tmp_path):
    words = [str(given), "--overlays", "looks", "--geojson", "polygons", "--areas", "areas.csv"]
    assert infer(*words) == 0
    photo = np.array(Image.open("masks/photo.png"))
    scan = nibabel.load("masks/scan.nii.gz")
    assert photo.shape == (96, 128)
    assert (scan.shape, scan.get_data_dtype()) == ((128, 96, 2), np.uint8)
    assert np.array_equal(scan.affine, AFFINE)
    assert sorted(path.name for path in Path("masks").iterdir()) == ["inference.json", "photo.png", "scan.nii.gz"]
    with open("areas.csv", newline="") as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    assert sorted(rows) == ["photo", "scan/0001", "scan/0002"]
    assert int(rows["photo"]["foreground_pixels"]) == (photo > 0).sum()
    for number in (1, 2):
        drawn = int((np.asarray(scan.dataobj)[..., number - 1] > 0).sum())
        row = rows[f"scan/{number:04d}"]
        assert (int(row["foreground_pixels"]), float(row["mm2"])) == (drawn, drawn * 0.25)
    assert rows["photo"]["mm2"] == ""
    assert np.array(Image.open("looks/scan/0002.png")).shape == (96, 128, 3)
    assert json.loads(Path("polygons/photo.geojson").read_text())["type"] == "FeatureCollection"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert infer(*words) == 0  # once more: the same files, byte for byte
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("threshold", "first"), [("0.5", False), ("0.999999", True)])
def test_empty_masks_are_doubtful_unless_other_slices_hold_something(given, tmp_path, monkeypatch, threshold, first):
    """The first slice of two is plain; above 0.999999 nothing is foreground."""
    monkeypatch.chdir(tmp_path)
    words = ["--image_size", "128", "--allow-other-size", "--threshold", threshold]
    words += ["--areas", "areas.csv", "--only-sure", "--output-dir", "masks"]
    assert main(["infer", str(BUNDLE), str(given), *words]) == 0
    with open("areas.csv", newline="") as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    assert rows["scan/0001"]["flags"].startswith("empty")
    assert (rows["scan/0001"]["expected_dice"] == "0.0") is (rows["scan/0001"]["doubtful"] == "yes") is first
    assert (rows["photo"]["expected_dice"] == "0.0") is Path("masks/doubtful/photo.png").is_file() is first


def test_coco_annotations_draw_the_same_masks(infer, given):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed: pip install samfed-monai[coco]")
    from samfed_monai.data.coco import read_coco

    assert infer(str(given), "--coco", "coco.json") == 0
    read = json.loads(Path("coco.json").read_text())
    assert [(one["id"], one["file_name"], one.get("frame")) for one in read["images"]] == [
        (1, "photo.png", None),
        (2, "scan.nii.gz", 1),
        (3, "scan.nii.gz", 2),
    ]
    assert read["categories"] == [{"id": 1, "name": "lesion"}]
    read["images"] = [{**one, "file_name": f"{one['id']}"} for one in read["images"]]
    Path("renamed.json").write_text(json.dumps(read))
    photo, *slices = (one.mask() for one in read_coco(Path("renamed.json")))
    assert np.array_equal(photo, np.array(Image.open("masks/photo.png")) > 0)
    drawn = np.asarray(nibabel.load("masks/scan.nii.gz").dataobj) > 0
    assert np.array_equal(np.stack(slices), drawn.transpose(2, 1, 0))
    before = Path("coco.json").read_bytes()
    assert infer(str(given), "--coco", "coco.json") == 0
    assert Path("coco.json").read_bytes() == before


def test_a_volume_alone_has_the_masks_that_its_slices_would_have(infer, given):
    assert infer(str(given / "scan.nii.gz")) == 0
    volume = np.asarray(nibabel.load(given / "scan.nii.gz").dataobj)
    Path("slices").mkdir()
    Image.fromarray(np.repeat(volume[..., 1].T[..., None], 3, axis=-1)).save("slices/0002.png")
    assert main(["infer", str(BUNDLE), "slices", "--output-dir", "by_hand", *SMALL]) == 0
    drawn = np.asarray(nibabel.load("masks/scan.nii.gz").dataobj)[..., 1].T * 255
    assert np.array_equal(drawn, np.array(Image.open("by_hand/0002.png")))


def test_another_inference_into_the_same_folder_is_refused_before_it_computes(infer, given, tmp_path, capsys):
    assert infer(str(given / "scan.nii.gz")) == 0
    record = Path("masks/inference.json").read_text()
    Path("more").mkdir()
    nibabel.save(nibabel.load(given / "scan.nii.gz"), "more/other.nii.gz")
    assert infer("more", "--threshold", "0.3") == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'masks'}/inference.json -> threshold: expected 0.3, as now, found 0.5" in said
    assert sorted(path.name for path in Path("masks").iterdir()) == ["inference.json", "scan.nii.gz"]
    assert infer("more") == 0, "the same into the same folder"
    assert Path("masks/inference.json").read_text() == record


def test_nothing_is_written_where_one_of_them_cannot_be_read(infer, given, tmp_path, capsys):
    Path("bad.nii").write_text("no volume")
    assert infer(str(given / "photo.png"), "bad.nii", "--areas", "areas.csv") == 2
    assert "bad.nii: expected a NIfTI volume" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.nii"]


def test_probabilities_of_a_volume_are_one_beside_its_mask(infer, given):
    assert infer(str(given / "scan.nii.gz"), "--probabilities") == 0
    mask, certain = (np.asarray(nibabel.load(f"masks/scan{form}.nii.gz").dataobj) for form in ("", ".probability"))
    assert certain.dtype == np.uint8
    assert certain[mask > 0].min(initial=255) >= 127 >= certain[mask == 0].max()


def test_a_reoriented_volume_has_its_mask_on_its_own_axes(infer, given, capsys):
    scan = nibabel.load(given / "scan.nii.gz")
    order = np.array([[2, 1], [0, -1], [1, 1]])  # of its axes, R is the last, A the first and backwards, S the second
    nibabel.save(scan.as_reoriented(order), "turned.nii.gz")
    assert infer(str(given / "scan.nii.gz"), "turned.nii.gz", "--reorient", "--areas", "areas.csv") == 0
    assert "different directions" not in capsys.readouterr().err
    drawn, turned = (nibabel.load(f"masks/{name}.nii.gz") for name in ("scan", "turned"))
    assert np.array_equal(turned.affine, nibabel.load("turned.nii.gz").affine)
    assert np.array_equal(turned.dataobj, drawn.as_reoriented(order).dataobj)
    with open("areas.csv", newline="") as stream:
        rows = [[row["foreground_pixels"], row["mm2"]] for row in csv.DictReader(stream)]
    assert rows[:2] == rows[2:]
    assert infer(str(given / "photo.png"), "--reorient") == 2
    assert "--reorient: expected one to reorient, found no NIfTI volume; leave it out" in capsys.readouterr().err
    assert infer(str(given / "scan.nii.gz"), "turned.nii.gz", "--areas", "turned.nii.gz") == 2  # before it computes
    assert "run in different directions: 1 " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("picture", "volume", "slices"), [("photo.png", "photo.nii.gz", 1), ("scan/0002.png", "scan.nii.gz", 2)]
)
def test_two_masks_of_one_name_are_refused(infer, given, capsys, picture, volume, slices):
    (Path("in") / picture).parent.mkdir(parents=True)
    shutil.copy(given / "photo.png", Path("in") / picture)
    scan = np.asarray(nibabel.load(given / "scan.nii.gz").dataobj)
    nibabel.save(nibabel.Nifti1Image(scan[..., :slices], AFFINE), Path("in") / volume)
    assert infer("in") == 2
    said = f"{picture[:-4]}: expected one image or volume of that name, found it twice; rename one"
    assert said in capsys.readouterr().err
    assert not Path("masks").exists()


@pytest.mark.parametrize(
    ("option", "file", "what"), [("--areas", "areas.csv", "areas"), ("--coco", "coco.json", "annotations")]
)
def test_a_file_of_somebody_else_stays(infer, given, capsys, option, file, what):
    Path(file).write_text("mine")
    assert infer(str(given / "photo.png"), option, file) == 2
    assert f"{file}: expected none, or the same {what}, found another file" in capsys.readouterr().err
    assert Path(file).read_text() == "mine"


@pytest.mark.parametrize("option", ["--overlays", "--geojson"])
def test_nothing_is_drawn_among_the_images(infer, given, capsys, option):
    assert infer(str(given), option, str(given / "looks")) == 2
    assert f"{option}: expected a folder outside of {given}" in capsys.readouterr().err
    assert not Path("masks").exists()
    assert not (given / "looks").exists()


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


def test_what_of_a_folder_is_not_read_is_counted_once_by_kind(infer, mixed, capsys):
    assert infer(str(mixed)) == 0
    written = {"inference.json", "photo.png", "scan.nii.gz", "1.2.840.7.png"}
    assert {path.name for path in Path("masks").iterdir()} == written
    assert [line for line in capsys.readouterr().err.splitlines() if "not read" in line] == [
        f"{mixed}: not read: 1 DICOM without an image: Basic Text SR Storage (report.dcm), 1 DICOM without an image: "
        "Segmentation Storage (1.2.840.8), 2 GIF (a.gif, …), 1 hidden (.old), 1 video (film.mp4)"
    ]


def test_patterns_do_not_fit_files_of_systems(mixed):
    (mixed / "deep").mkdir()
    shutil.copy(mixed / "photo.png", mixed / "deep" / "b.png")
    assert images_of([str(mixed / "**" / "*.png")]) == [str(mixed / "deep" / "b.png"), str(mixed / "photo.png")]
    assert images_of([str(mixed / "@eaDir"), str(mixed / "photo.png")]) == [str(mixed / "photo.png")]
    assert images_of([str(mixed)]) == str(mixed)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (["1.2.840.8"], r"1\.2\.840\.8: expected a DICOM image, found Segmentation Storage; leave it out"),
        (["report.dcm", "photo.png"], r"report\.dcm: expected an object with pixel data, found no pixels \(SR\)"),
        (["1.2.840.7", "film.mp4"], r"film\.mp4: expected a video: MP4, AVI, MKV, found no video"),
        (["@eaDir"], r"@eaDir: expected images, or folders of images, found a file or folder of a system"),
        ([".old"], r"found no image; not read: 1 GIF \(x\.gif\)"),
    ],
)
def test_a_refusal_leaves_no_folder_behind(infer, mixed, capsys, named, told):
    (mixed / ".old" / "x.png").rename(mixed / ".old" / "x.gif")
    words = [str(mixed / name) for name in named]
    assert infer(*words, "--overlays", "looks", "--dicom-seg", "objects") == 2
    assert infer(*words, "--overlays", "looks") == 2
    assert re.search(told, capsys.readouterr().err)
    assert not any(Path(name).exists() for name in ("masks", "looks", "objects"))


def test_an_unreadable_file_refuses_all_unless_it_is_to_be_skipped(infer, mixed, capsys):
    for name in ("broken.jpg", "broken2.nii", "broken3.dcm"):
        (mixed / name).write_bytes(b"damaged")
    assert infer(str(mixed)) == 2
    assert re.search(r"broken3\.dcm: .*; or --skip-unreadable goes on without it", capsys.readouterr().err)
    assert infer(str(mixed), "--skip-unreadable", "--overlays", "looks", "--areas", "areas.csv") == 0
    drawn = {"photo.png", "1.2.840.7.png"}
    assert {path.name for path in Path("masks").iterdir()} == {"inference.json", "scan.nii.gz", *drawn}
    assert {path.name for path in Path("looks").iterdir()} == {"scan", *drawn}
    left = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert [next(name for name in ("broken2.nii", "broken3.dcm", "broken.jpg") if name in text) for text in left] == [
        *("broken2.nii", "broken3.dcm", "broken.jpg")
    ]


def test_fault_106_every_output_is_its_owners_alone(infer, given, tmp_path):
    forms = ["--overlays", "o/png", "--geojson", "o/geojson", "--areas", "t/areas.csv", "--coco", "t/coco.json"]
    assert infer(str(given), "--probabilities", *forms) == 0
    assert len(list(tmp_path.rglob("*"))) == 20  # seven folders; five masks, three outlines in two forms, two tables
    assert open_to_others(*tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [b"bef\xfcnd.png", b"a\x1b[31mb.png", b"a\nb.png", b"sub\xff/a.png", b"a\x7f.nii.gz"])
def test_a_name_that_no_table_can_hold_is_refused_before_work_and_shown_without_its_control_characters(
    infer, given, tmp_path, capsys, name
):
    path = tmp_path / "images" / os.fsdecode(name)
    path.parent.mkdir(parents=True)
    shutil.copy(given / ("scan.nii.gz" if name.endswith(b"gz") else "photo.png"), path)
    assert infer("images", "--areas", "areas.csv") == 2
    said = capsys.readouterr().err
    assert "name of a file or folder: expected UTF-8 without control characters, found '" in said
    assert said.replace("\n", "").replace("\r", "").isprintable()
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


@pytest.mark.parametrize(("images", "masks"), [("", "masks"), (".", "")])
def test_an_empty_path_is_not_the_current_folder(given, tmp_path, monkeypatch, capsys, images, masks):
    monkeypatch.chdir(tmp_path)
    assert main(["infer", str(BUNDLE), images, "--output-dir", masks]) == 2
    assert "found an empty path; is a variable of the shell empty?" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--image_size", "--preprocessing#transforms#3#spatial_size"])
@pytest.mark.parametrize("where", ["the bundle", "elsewhere"])
def test_another_image_size_than_the_models_is_refused(given, tmp_path, capsys, option, where):
    words = ["infer", str(BUNDLE), str(given / "photo.png"), "--output-dir", str(tmp_path / "masks"), option, "64"]
    if where == "elsewhere":
        shutil.copy(BUNDLE / "models" / "model.pt", tmp_path / "mine.pt")
        words += ["--model", str(tmp_path / "mine.pt")]
    assert main(words) == 2
    says = "224, as model.pt was trained" if where == "the bundle" else "224, the bundle's"
    assert f"{option}: expected {says}, found 64" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()
