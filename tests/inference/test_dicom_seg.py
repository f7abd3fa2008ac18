"""DICOM segmentations: every frame's mask comes back exactly, and refers to its frame; nothing is invented."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from samfed_monai import __version__
from samfed_monai.cli.main import main
from samfed_monai.core.errors import Refused

highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed: pip install samfed-monai[dicom]")
import pydicom  # noqa: E402
from PIL import Image  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.uid import generate_uid  # noqa: E402

from samfed_monai.data.dicom import read_object  # noqa: E402
from samfed_monai.inference import dicom_seg  # noqa: E402
from samfed_monai.inference.dicom_seg import object_problems, series_of  # noqa: E402
from tests.data.test_dicom import made  # noqa: E402

BUNDLE = Path(__file__).parents[2] / "bundles" / "samfed_skin"
SHIPPED = ["CT_small.dcm", "examples_rgb_color.dcm", "SC_rgb_rle_2frame.dcm", "examples_ybr_color.dcm"]


def headers(paths: Sequence[Path]) -> list[pydicom.Dataset]:
    return [read_object(path, pixels=False) for path in paths]


def segmentation_of(paths: Sequence[Path], masks: Sequence[np.ndarray], *labels: str, model: str = "abc") -> bytes:
    return dicom_seg.segmentation_of(headers(paths), masks, labels=labels, model=model)


def read(content: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def sample(name: str = "CT_small.dcm") -> Path:
    return Path(str(get_testdata_file(name)))


def photograph(path: Path, **attributes: object) -> Path:
    """A dermoscopic photograph: RGB, one frame, without a frame of reference; its pixels have a size, as some
    dermatoscopes write it."""
    y, x = np.indices((48, 64))
    spot = np.where((x - 30) ** 2 + (y - 20) ** 2 < 12**2, 60, 205).astype(np.uint8)
    elements = {name: generate_uid(entropy_srcs=[name]) for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    elements |= {"PatientID": "7", "PatientName": "Doe^Jo", "StudyID": "1", "SeriesNumber": 1, "InstanceNumber": 1}
    empty = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName")
    elements |= {**dict.fromkeys(empty, ""), "PixelSpacing": [0.1, 0.1], **attributes}
    return made(path, np.stack([spot, spot // 2, spot // 2], axis=-1), **elements)


def ct_series(folder: Path, positions: Sequence[float], **attributes: object) -> list[Path]:
    """Slices of one CT as files of one series, named as they come, at places that are not in the order of names."""
    folder.mkdir()
    series, paths = generate_uid(), [folder / f"{number}.dcm" for number in range(len(positions))]
    for number, (path, position) in enumerate(zip(paths, positions, strict=True), start=1):
        content = pydicom.dcmread(sample())
        content.SOPInstanceUID, content.SeriesInstanceUID = generate_uid(), series
        content.file_meta.MediaStorageSOPInstanceUID = content.SOPInstanceUID
        content.InstanceNumber, content.ImagePositionPatient = number, [-158.1, -179.0, position]
        for name, value in attributes.items():
            setattr(content, name, value)
        content.save_as(path)
    return paths


def enhanced(path: Path) -> Path:
    """Three slices of one CT as an enhanced object, whose functional groups hold each frame's position."""
    slices = [pydicom.dcmread(each) for each in ct_series(path.parent / "slices", [0, 5, 10])]
    of_series = {"series_instance_uid": generate_uid(), "series_number": 5}
    of_object = {"sop_instance_uid": generate_uid(), "instance_number": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the sample's name
        highdicom.legacy.LegacyConvertedEnhancedCTImage(slices, **of_series, **of_object).save_as(path)
    return path


@pytest.fixture(scope="module", params=[*SHIPPED, "photograph", "enhanced"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = {"photograph": photograph, "enhanced": enhanced}.get(request.param)
    return made(tmp_path_factory.mktemp("object") / f"{request.param}.dcm") if made else sample(request.param)


def masks_for(path: Path, classes: int = 1) -> np.ndarray:
    """Random values of classes, another share in each frame, and an empty frame where there are several."""
    content = pydicom.dcmread(path)
    frames = int(content.get("NumberOfFrames", 1))
    values = np.random.default_rng(0).integers(0, classes + 1, (frames, content.Rows, content.Columns), np.uint8)
    values[1:2] = 0
    return values


LABELS = {
    "Small intestine": ("SCT", "Small intestine", "Anatomical Structure"),
    "my own": ("99SAMFED", "my own", "Class of a network"),
    "polyp of colon": ("SCT", "Polyp of colon", "Morphologically Abnormal Structure"),
}
"""Of several classes: scheme and meaning of the code, and its category."""


@pytest.mark.parametrize("labels", [["polyp"], list(LABELS)], ids=["one", "several"])
def test_segmentation_keeps_every_frame_and_reference(source, tmp_path, labels):
    values = masks_for(source, len(labels))
    values[values == 3] = 0  # of the third class there is nothing
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # highdicom's contain the patient's name
        content = segmentation_of([source], values if len(labels) > 1 else values > 0, *labels)
    (tmp_path / "seg.dcm").write_bytes(content)
    given, seg = pydicom.dcmread(source, stop_before_pixels=True), highdicom.seg.segread(tmp_path / "seg.dcm")
    uid, segments, frames = given.SOPInstanceUID, list(range(1, len(labels) + 1)), list(range(1, len(values) + 1))
    options = {"ignore_spatial_locations": True, "segment_numbers": segments}
    of_file, of_frames = seg.get_pixels_by_source_instance, seg.get_pixels_by_source_frame
    found = of_file([uid], **options) if len(frames) == 1 else of_frames(uid, frames, **options)
    assert np.array_equal(found > 0, np.stack([values == number for number in segments], axis=-1))
    plain = read(content)
    assert plain.NumberOfFrames == len(labels) * len(frames)
    groups = plain.PerFrameFunctionalGroupsSequence
    references = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in groups]
    referenced = {(each.ReferencedSOPClassUID, each.ReferencedSOPInstanceUID) for each in references}
    assert referenced == {(given.SOPClassUID, uid)}
    assert [int(each.get("ReferencedFrameNumber", 1)) for each in references] == frames * len(labels)
    assert ("FrameOfReferenceUID" in plain) is (source.name in ("CT_small.dcm", "enhanced.dcm"))
    if source.name == "enhanced.dcm":
        own = [*given.PerFrameFunctionalGroupsSequence] * len(labels)
        assert [group.PlanePositionSequence for group in groups] == [group.PlanePositionSequence for group in own]
        assert sorted({group.PlanePositionSequence[0].ImagePositionPatient[2] for group in own}) == [0, 5, 10]


def test_segmentation_describes_algorithm_patient_and_classes(tmp_path):
    source = photograph(tmp_path / "mole.dcm")
    given, seg = pydicom.dcmread(source), read(segmentation_of([source], masks_for(source, 3), *LABELS))
    described = seg.SegmentSequence
    assert {each.SegmentAlgorithmType for each in described} == {"AUTOMATIC"}
    codes = {
        each.SegmentLabel: (*each.SegmentedPropertyTypeCodeSequence, *each.SegmentedPropertyCategoryCodeSequence)
        for each in described
    }
    found = [(label, (a.CodingSchemeDesignator, a.CodeMeaning, b.CodeMeaning)) for label, (a, b) in codes.items()]
    assert found == list(LABELS.items())
    [algorithm] = described[0].SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("SAM-Fed", __version__)
    assert algorithm.AlgorithmParameters == "model=abc"
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "AccessionNumber"):
        assert seg.get(name) in (given.get(name), *([None, ""] if not given.get(name) else []))
    assert seg.SeriesInstanceUID != given.SeriesInstanceUID
    assert seg.Modality == "SEG"


@pytest.mark.parametrize(
    ("label", "meaning"), [("lesion", "Lesion"), ("polyp of colon", "Polyp of colon"), ("spleen, or so", "Lesion")]
)
def test_unknown_single_label_is_coded_as_lesion(label, meaning):
    [segment] = read(segmentation_of([sample()], masks_for(sample()), label)).SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning) == (label, meaning)


def test_identity_depends_on_masks_label_and_model():
    masks = masks_for(sample())
    ways = [(masks, "x", "abc"), (masks, "x", "abc"), (1 - masks, "x", "abc"), (masks, "y", "abc"), (masks, "x", "abd")]
    uids = [read(segmentation_of([sample()], each, label, model=model)).SOPInstanceUID for each, label, model in ways]
    assert uids[0] == uids[1]
    assert len(set(uids)) == 4


def test_wrong_mask_count_and_missing_identity_are_refused(tmp_path):
    source = photograph(tmp_path / "a.dcm")
    masks = masks_for(source)
    with pytest.raises(Refused, match=r"a\.dcm: expected one mask for each of its 1 frames, found 2 masks"):
        segmentation_of([source], [masks[0]] * 2, "x")
    content = pydicom.dcmread(photograph(tmp_path / "b.dcm", StudyInstanceUID=""))
    del content.PatientSex, content.StudyDate
    content.save_as(tmp_path / "b.dcm")
    message = "can refer to, found no PatientSex, StudyDate, StudyInstanceUID; add the missing"
    with pytest.raises(Refused, match=message):
        segmentation_of([tmp_path / "b.dcm"], masks, "x")


@pytest.mark.parametrize(
    ("characters", "name", "encoded"),
    [
        ("\\ISO 2022 IR 87", "Yamada=山田", b"Yamada=\x1b$B;3ED\x1b(B"),
        ("ISO_IR 101", "Łódź", "Łódź".encode("latin2")),
        *((characters, None, b"M\xfcller") for characters in ("ISO_IR 192", "cp1252")),
    ],
)
def test_text_of_every_character_set_is_written_in_utf_8(tmp_path, characters, name, encoded):
    (code := pydicom.Dataset()).CodeMeaning = "n" * 32
    texts = {"SpecificCharacterSet": "c" * 16, "PatientName": "n" * 32, "ProcedureCodeSequence": [code]}
    path = photograph(tmp_path / "a.dcm", **texts)
    content = path.read_bytes().replace(b"c" * 16, characters.encode().ljust(16))
    path.write_bytes(content.replace(b"n" * 32, encoded.ljust(32)))
    if name is None:
        with pytest.raises(Refused, match="found no valid SpecificCharacterSet; add the missing attributes"):
            segmentation_of([path], masks_for(path), "x")
    else:
        found = read(segmentation_of([path], masks_for(path), "Läsion"))
        assert found.PatientName == found.ProcedureCodeSequence[0].CodeMeaning == name
        assert found.SegmentSequence[0].SegmentLabel == "Läsion"


def test_highdicom_errors_are_refused_with_missing_attributes(tmp_path):
    objects = [sample("rtdose.dcm"), *ct_series(tmp_path / "ct", [0.0], SliceThickness=None)]
    lacking = "SharedFunctionalGroupsSequence, PerFrameFunctionalGroupsSequence", "SliceThickness"
    for problem, names in zip(object_problems(headers(objects)), lacking, strict=True):
        assert f"found a frame of reference, but no {names}; leave --dicom-seg out" in str(problem)


def test_slices_of_series_share_sorted_segmentation(tmp_path):
    paths = ct_series(tmp_path / "ct", [10.0, 0.0, 5.0])
    [order] = series_of(headers(paths))
    assert order == [1, 2, 0]
    masks = np.random.default_rng(0).random((3, 128, 128)) < np.array([0.3, 0.5, 0.6])[:, None, None]
    masks[2] = False
    slices = [paths[index] for index in order]
    (tmp_path / "seg.dcm").write_bytes(segmentation_of(slices, [masks[index] for index in order], "x"))
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    assert np.array_equal(seg.get_pixels_by_source_instance(uids)[..., 0] > 0, masks)
    assert seg.NumberOfFrames == 3
    assert seg.FrameOfReferenceUID == pydicom.dcmread(paths[0]).FrameOfReferenceUID
    groups = seg.PerFrameFunctionalGroupsSequence
    positions = [float(group.PlanePositionSequence[0].ImagePositionPatient[2]) for group in groups]
    assert positions == [10.0, 5.0, 0.0]  # against the normal, as highdicom sorts frames
    assert seg.get_volume(combine_segments=True).spacing[0] == pytest.approx(5.0)
    with pytest.raises(Refused, match="expected one mask for each of its 3 frames, found 2 masks"):
        segmentation_of(slices, list(masks[:2]), "x")


def test_unrelated_slices_are_kept_separate(tmp_path):
    one = ct_series(tmp_path / "one", [0.0, 5.0])
    other = ct_series(tmp_path / "other", [10.0])
    twice = ct_series(tmp_path / "twice", [0.0, 5.0, 5.0])
    same = {"SeriesInstanceUID": pydicom.dcmread(one[0]).SeriesInstanceUID}
    odd = {"ImageOrientationPatient": [0, 1, 0, 0, 0, 1], "PixelSpacing": [1, 1], "SliceThickness": 8, "PatientID": "B"}
    lone = [ct_series(tmp_path / name, [1.0], **same, **{name: value})[0] for name, value in odd.items()]
    apart = [*other, *twice, *lone, *(photograph(tmp_path / f"{name}.dcm") for name in "ab")]
    assert series_of(headers([*one, *apart])) == [[0, 1], *([number] for number in range(2, 12))]


@pytest.fixture
def infer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    there = ["--output-dir", "masks", "--dicom-seg", "segs", "--image_size", "64", "--allow-other-size"]
    return lambda *words: main(["infer", str(BUNDLE), *words, *there])


def test_infer_segmentations_equal_masks(infer, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    photograph(tmp_path / "in" / "mole.dcm")
    ct = ct_series(tmp_path / "in" / "ct", [5.0, 0.0])
    Image.new("RGB", (40, 30)).save("in/plain.png")
    words = ["in", str(sample("SC_rgb_rle_2frame.dcm"))]
    assert infer(*words) == 0
    made = sorted(path.relative_to("segs").as_posix() for path in Path("segs").rglob("*.dcm"))
    assert made == ["SC_rgb_rle_2frame.dcm", "ct/1.dcm", "mole.dcm"]
    mole, two = (pydicom.dcmread(f"segs/{name}.dcm") for name in ("mole", "SC_rgb_rle_2frame"))
    mask, *frames, upper, lower = (
        np.array(Image.open(f"masks/{name}.png")) > 0
        for name in ("mole", "SC_rgb_rle_2frame/0001", "SC_rgb_rle_2frame/0002", "ct/0", "ct/1")
    )
    assert np.array_equal(mole.pixel_array > 0, mask)
    assert np.array_equal(two.pixel_array > 0, np.stack(frames))
    assert mole.SegmentSequence[0].SegmentLabel == "lesion"
    series = highdicom.seg.segread("segs/ct/1.dcm")
    found = series.get_pixels_by_source_instance([pydicom.dcmread(path).SOPInstanceUID for path in ct])
    assert np.array_equal(found[..., 0] > 0, np.stack([upper, lower]))
    before = Path("segs/mole.dcm").read_bytes()
    assert infer(*words) == 0  # once more: it stays, though its date would be another
    assert Path("segs/mole.dcm").read_bytes() == before
    mine = Path("segs/mole.dcm"), Path("masks/mole.png")
    for path in mine:
        path.write_text("mine")
    assert infer(*words, "--only-sure", "--flag-below", "100%") == 2
    text = capsys.readouterr().err
    assert [path.read_text() for path in mine if f"{path}: expected none, or the same mask" in text] == ["mine", "mine"]


def test_infer_writes_nothing_without_valid_identity(infer, tmp_path, capsys):
    photograph(tmp_path / "a.dcm")
    photograph(tmp_path / "b.dcm", SeriesInstanceUID="")
    assert infer("a.dcm", "b.dcm") == 2
    assert "--dicom-seg: " in (text := capsys.readouterr().err)
    assert "b.dcm: expected an object that a segmentation can refer to, found no SeriesInstanceUID" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.dcm", "b.dcm"]
