"""DICOM segmentations: every frame's mask comes back exactly, and refers to its frame; nothing is invented."""

from __future__ import annotations

import importlib.util
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
from pydicom.uid import ExplicitVRLittleEndian, VLPhotographicImageStorage, generate_uid  # noqa: E402

from samfed_monai.data.dicom import read_object  # noqa: E402
from samfed_monai.inference import dicom_seg  # noqa: E402
from samfed_monai.inference.dicom_seg import refusals_of, series_of  # noqa: E402

BUNDLE = Path(__file__).parents[2] / "bundles" / "samfed_skin"
SHIPPED = ["CT_small.dcm", "examples_rgb_color.dcm", "SC_rgb_rle_2frame.dcm", "examples_ybr_color.dcm"]


def headers(paths: Sequence[Path]) -> list[pydicom.Dataset]:
    return [read_object(path, pixels=False) for path in paths]


def segmentation_of(paths: Sequence[Path], masks: Sequence[np.ndarray], **options: object) -> bytes:
    return dicom_seg.segmentation_of(headers(paths), masks, **options)


def photograph(path: Path, **attributes: object) -> Path:
    """A dermoscopic photograph: RGB, one frame, without a frame of reference."""
    content = pydicom.Dataset()
    content.file_meta = pydicom.dataset.FileMetaDataset()
    content.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content.SOPClassUID, content.SOPInstanceUID = VLPhotographicImageStorage, generate_uid(entropy_srcs=["object"])
    content.StudyInstanceUID, content.SeriesInstanceUID = (generate_uid(entropy_srcs=[word]) for word in "ab")
    content.PatientID, content.PatientName, content.PatientBirthDate, content.PatientSex = "7", "Doe^Jo", "", ""
    content.StudyID, content.StudyDate, content.StudyTime, content.AccessionNumber = "1", "", "", ""
    content.Modality, content.SeriesNumber, content.InstanceNumber = "XC", 1, 1
    content.ReferringPhysicianName, content.PixelSpacing = "", [0.1, 0.1]  # as some dermatoscopes write it
    content.Rows, content.Columns, content.SamplesPerPixel = 48, 64, 3
    content.PhotometricInterpretation, content.PlanarConfiguration = "RGB", 0
    content.BitsAllocated, content.BitsStored, content.HighBit, content.PixelRepresentation = 8, 8, 7, 0
    y, x = np.indices((48, 64))
    spot = np.where((x - 30) ** 2 + (y - 20) ** 2 < 12**2, 60, 205).astype(np.uint8)
    content.PixelData = np.stack([spot, spot // 2, spot // 2], axis=-1).tobytes()
    for name, value in attributes.items():
        setattr(content, name, value)
    content.save_as(path, enforce_file_format=True)
    return path


def enhanced(path: Path) -> Path:
    """Three slices of one CT as an enhanced object, whose functional groups say where each frame lies."""
    slices = []
    for number in range(3):
        content = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        content.SOPInstanceUID, content.InstanceNumber = generate_uid(entropy_srcs=[str(number)]), number + 1
        content.ImagePositionPatient = [0, 0, 5.0 * number]
        slices.append(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the sample's name
        whole = highdicom.legacy.LegacyConvertedEnhancedCTImage(
            slices,
            series_instance_uid=generate_uid(),
            series_number=5,
            sop_instance_uid=generate_uid(),
            instance_number=1,
        )
    whole.save_as(path)
    return path


def ct_series(folder: Path, places: Sequence[float], **attributes: object) -> list[Path]:
    """Slices of one CT as files of one series, named as they come, at places that are not in the order of names."""
    folder.mkdir()
    series, paths = generate_uid(), []
    for number, place in enumerate(places):
        content = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        content.SOPInstanceUID, content.SeriesInstanceUID = generate_uid(), series
        content.file_meta.MediaStorageSOPInstanceUID = content.SOPInstanceUID
        content.InstanceNumber, content.ImagePositionPatient = number + 1, [-158.1, -179.0, place]
        for name, value in attributes.items():
            setattr(content, name, value)
        paths.append(folder / f"{number}.dcm")
        content.save_as(paths[-1])
    return paths


def masks_for(path: Path) -> np.ndarray:
    """Random pixels, another share in each frame, and one empty frame where there are several."""
    content = pydicom.dcmread(path)
    frames = int(content.get("NumberOfFrames", 1))
    random = np.random.default_rng(0).random((frames, content.Rows, content.Columns))
    masks = random < np.linspace(0.3, 0.6, frames)[:, None, None]
    masks[1:2] = False
    return masks


@pytest.fixture(scope="module", params=[*SHIPPED, "photograph", "enhanced"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = {"photograph": photograph, "enhanced": enhanced}.get(request.param)
    if made is None:
        return Path(str(get_testdata_file(request.param)))
    return made(tmp_path_factory.mktemp("object") / f"{request.param}.dcm")


def test_every_frame_comes_back_exactly_and_refers_to_its_own(source, tmp_path):
    masks = masks_for(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # highdicom's tell the patient's name
        content = segmentation_of([source], masks, labels=["polyp"], model="abc")
    (tmp_path / "seg.dcm").write_bytes(content)
    plain = pydicom.dcmread(io.BytesIO(content))
    assert np.array_equal(plain.pixel_array.reshape(masks.shape) > 0, masks)
    given = pydicom.dcmread(source, stop_before_pixels=True)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    uid = given.SOPInstanceUID
    if len(masks) == 1:
        found = seg.get_pixels_by_source_instance([uid], ignore_spatial_locations=True)
    else:
        numbers = list(range(1, len(masks) + 1))
        found = seg.get_pixels_by_source_frame(uid, numbers, ignore_spatial_locations=True)
    assert np.array_equal(found[..., 0] > 0, masks)
    references = [
        group.DerivationImageSequence[0].SourceImageSequence[0] for group in plain.PerFrameFunctionalGroupsSequence
    ]
    assert {(each.ReferencedSOPClassUID, each.ReferencedSOPInstanceUID) for each in references} == {
        (given.SOPClassUID, uid)
    }
    frames = [int(each.get("ReferencedFrameNumber", 1)) for each in references]
    assert frames == list(range(1, len(masks) + 1))
    placed = source.name in ("CT_small.dcm", "enhanced.dcm")
    assert ("FrameOfReferenceUID" in plain) is placed
    if source.name == "enhanced.dcm":
        places = [
            [group.PlanePositionSequence[0].ImagePositionPatient for group in each.PerFrameFunctionalGroupsSequence]
            for each in (plain, given)
        ]
        assert places[0] == places[1]
        assert sorted(place[2] for place in places[0]) == [0, 5, 10]


def test_what_it_says_of_itself_and_of_the_patient(source):
    given = pydicom.dcmread(source)
    seg = pydicom.dcmread(io.BytesIO(segmentation_of([source], masks_for(source), labels=["Skin lesion"], model="abc")))
    [segment] = seg.SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("Skin lesion", "AUTOMATIC")
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Skin lesion"
    [algorithm] = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("SAM-Fed", __version__)
    assert algorithm.AlgorithmParameters == "model=abc"
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "AccessionNumber"):
        assert seg.get(name) in (given.get(name), *([None, ""] if not given.get(name) else []))
    assert seg.SeriesInstanceUID != given.SeriesInstanceUID
    assert seg.Modality == "SEG"


@pytest.mark.parametrize(
    ("label", "meaning"), [("lesion", "Lesion"), ("polyp of colon", "Polyp of colon"), ("spleen, or so", "Lesion")]
)
def test_a_label_that_the_table_lacks_is_coded_as_a_lesion(label, meaning):
    source = Path(str(get_testdata_file("CT_small.dcm")))
    seg = pydicom.dcmread(io.BytesIO(segmentation_of([source], masks_for(source), labels=[label], model="abc")))
    assert seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == meaning
    assert seg.SegmentSequence[0].SegmentLabel == label


def test_a_segment_for_each_class_holds_its_pixels_of_every_frame(source, tmp_path):
    given = pydicom.dcmread(source)
    frames = int(given.get("NumberOfFrames", 1))
    values = np.random.default_rng(0).integers(0, 3, (frames, given.Rows, given.Columns)).astype(np.uint8)
    values[:1][values[:1] == 2] = 0  # a frame without the second class, and in the third nothing
    labels = ["Small intestine", "my own", "polyp of colon"]
    (tmp_path / "seg.dcm").write_bytes(segmentation_of([source], list(values), labels=labels, model="abc"))
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert seg.NumberOfFrames == 3 * frames
    uid, segments = given.SOPInstanceUID, [1, 2, 3]
    if frames == 1:
        found = seg.get_pixels_by_source_instance([uid], ignore_spatial_locations=True, segment_numbers=segments)
    else:
        numbers = list(range(1, frames + 1))
        found = seg.get_pixels_by_source_frame(uid, numbers, ignore_spatial_locations=True, segment_numbers=segments)
    assert np.array_equal(found > 0, np.stack([values == number for number in segments], axis=-1))
    described = seg.SegmentSequence
    assert [each.SegmentLabel for each in described] == labels
    kinds = [each.SegmentedPropertyTypeCodeSequence[0] for each in described]
    assert [(each.CodingSchemeDesignator, each.CodeMeaning) for each in kinds] == [
        ("SCT", "Small intestine"),
        ("99SAMFED", "my own"),
        ("SCT", "Polyp of colon"),
    ]
    assert [each.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning for each in described] == [
        "Anatomical Structure",
        "Class of a network",
        "Morphologically Abnormal Structure",
    ]


def test_the_same_masks_have_the_same_identity_and_others_another():
    source = Path(str(get_testdata_file("CT_small.dcm")))
    masks = masks_for(source)
    ways = [(masks, "x", "abc"), (masks, "x", "abc"), (~masks, "x", "abc"), (masks, "y", "abc"), (masks, "x", "abd")]
    uids = [
        pydicom.dcmread(io.BytesIO(segmentation_of([source], each, labels=[label], model=model))).SOPInstanceUID
        for each, label, model in ways
    ]
    assert uids[0] == uids[1]
    assert len(set(uids)) == 4


def test_another_number_of_masks_and_an_object_without_identity_are_refused(tmp_path):
    source = photograph(tmp_path / "a.dcm")
    masks = masks_for(source)
    with pytest.raises(Refused, match=r"a\.dcm: expected one for each of its 1 frames, found 2 masks"):
        segmentation_of([source], [masks[0]] * 2, labels=["x"], model="abc")
    content = pydicom.dcmread(source)
    content.StudyInstanceUID = ""
    del content.PatientSex
    content.save_as(tmp_path / "b.dcm")
    with pytest.raises(Refused, match="can refer to, found no PatientSex, StudyInstanceUID; write the missing"):
        segmentation_of([tmp_path / "b.dcm"], masks, labels=["x"], model="abc")


def test_what_highdicom_refuses_is_told_without_a_traceback():
    dose = Path(str(get_testdata_file("rtdose.dcm")))  # frames by a vector of offsets, without functional groups
    [problem] = refusals_of(headers([dose]))
    assert "expected the place of each of its 15 frames in it, found a frame of reference alone" in str(problem)
    assert "leave --dicom-seg out" in str(problem)


def test_slices_of_one_series_have_one_segmentation_sorted_by_place(tmp_path):
    paths = ct_series(tmp_path / "ct", [10.0, 0.0, 5.0])
    [order] = series_of(headers(paths))
    assert order == [1, 2, 0]
    masks = np.random.default_rng(0).random((3, 128, 128)) < np.array([0.3, 0.5, 0.6])[:, None, None]
    masks[2] = False
    slices = [paths[index] for index in order]
    (tmp_path / "seg.dcm").write_bytes(segmentation_of(slices, [masks[i] for i in order], labels=["x"], model="abc"))
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    assert np.array_equal(seg.get_pixels_by_source_instance(uids)[..., 0] > 0, masks)
    assert seg.NumberOfFrames == 3
    assert seg.FrameOfReferenceUID == pydicom.dcmread(paths[0]).FrameOfReferenceUID
    groups = seg.PerFrameFunctionalGroupsSequence
    places = [float(group.PlanePositionSequence[0].ImagePositionPatient[2]) for group in groups]
    assert places == [10.0, 5.0, 0.0]  # against the normal, as highdicom sorts frames
    volume = seg.get_volume(combine_segments=True)
    assert volume.spacing[0] == pytest.approx(5.0)
    with pytest.raises(Refused, match="expected one for each of its 3 frames, found 2 masks"):
        segmentation_of(slices, list(masks[:2]), labels=["x"], model="abc")


def test_objects_that_are_no_slices_of_one_series_stay_apart(tmp_path):
    one = ct_series(tmp_path / "one", [0.0, 5.0])
    other = ct_series(tmp_path / "other", [10.0])
    twice = ct_series(tmp_path / "twice", [0.0, 5.0, 5.0])
    turned = ct_series(tmp_path / "turned", [1.0], ImageOrientationPatient=[0, 1, 0, 0, 0, 1])
    moles = [photograph(tmp_path / f"{name}.dcm") for name in "ab"]
    assert series_of(headers([*one, *other, *twice, *turned, *moles])) == [[0, 1], [2], [3], [4], [5], [6], [7], [8]]


class TestInfer:
    @pytest.fixture
    def infer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
        monkeypatch.chdir(tmp_path)

        def run(*words: str) -> int:
            there = ["--output-dir", "masks", "--dicom-seg", "segs", "--image_size", "64", "--allow-other-size"]
            return main(["infer", str(BUNDLE), *words, *there])

        return run

    def test_objects_have_segmentations_equal_to_their_masks(self, infer, tmp_path):
        (tmp_path / "in").mkdir()
        photograph(tmp_path / "in" / "mole.dcm")
        frames = Path(str(get_testdata_file("SC_rgb_rle_2frame.dcm")))
        Image.new("RGB", (40, 30)).save("in/plain.png")
        assert infer("in", str(frames)) == 0
        assert sorted(path.name for path in Path("segs").iterdir()) == ["SC_rgb_rle_2frame.dcm", "mole.dcm"]
        mole, two = (pydicom.dcmread(f"segs/{name}.dcm") for name in ("mole", "SC_rgb_rle_2frame"))
        assert np.array_equal(mole.pixel_array > 0, np.array(Image.open("masks/mole.png")) > 0)
        drawn = [np.array(Image.open(f"masks/SC_rgb_rle_2frame/000{number}.png")) > 0 for number in (1, 2)]
        assert np.array_equal(two.pixel_array > 0, np.stack(drawn))
        assert mole.SegmentSequence[0].SegmentLabel == "lesion"
        before = Path("segs/mole.dcm").read_bytes()
        assert infer("in", str(frames)) == 0  # once more: it stays, though its date would be another
        assert Path("segs/mole.dcm").read_bytes() == before

    def test_a_series_has_one_segmentation_equal_to_its_slices_masks(self, infer, tmp_path):
        paths = ct_series(tmp_path / "ct", [5.0, 0.0])
        assert infer("ct") == 0
        assert [path.name for path in Path("segs").iterdir()] == ["1.dcm"]
        seg = highdicom.seg.segread("segs/1.dcm")
        uids = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
        drawn = np.stack([np.array(Image.open(f"masks/{number}.png")) > 0 for number in (0, 1)])
        assert np.array_equal(seg.get_pixels_by_source_instance(uids)[..., 0] > 0, drawn)

    def test_nothing_is_written_where_one_cannot_have_one(self, infer, tmp_path, capsys):
        photograph(tmp_path / "a.dcm")
        photograph(tmp_path / "b.dcm", SeriesInstanceUID="")
        assert infer("a.dcm", "b.dcm") == 2
        assert "--dicom-seg: " in (told := capsys.readouterr().err)
        assert "b.dcm: expected an object that a segmentation can refer to, found no SeriesInstanceUID" in told
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.dcm", "b.dcm"]

    def test_pictures_alone_are_refused(self, infer, capsys):
        Image.new("RGB", (40, 30)).save("plain.png")
        assert infer("plain.png") == 2
        assert "--dicom-seg: expected DICOM objects to refer to, found none among the images" in capsys.readouterr().err

    def test_the_segmentation_of_other_masks_stays(self, infer, tmp_path, capsys):
        photograph(tmp_path / "mole.dcm")
        Path("segs").mkdir()
        Path("segs/mole.dcm").write_text("mine")
        assert infer("mole.dcm") == 2
        assert "segs/mole.dcm: expected none, or the same mask" in capsys.readouterr().err
        assert Path("segs/mole.dcm").read_text() == "mine"

    def test_the_package_is_named_where_it_is_missing(self, infer, tmp_path, monkeypatch, capsys):
        photograph(tmp_path / "mole.dcm")
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "highdicom" else find(name))
        assert infer("mole.dcm") == 2
        assert "found no highdicom; pip install 'samfed-monai[dicom]'" in capsys.readouterr().err
