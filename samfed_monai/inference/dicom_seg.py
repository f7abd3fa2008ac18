"""Writes masks of a DICOM object, or of a series of slices, as a DICOM segmentation that refers to its frames."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from samfed_monai import __version__
from samfed_monai.core.errors import Problem, Problems, Refused, refused
from samfed_monai.core.io import sha256_bytes
from samfed_monai.core.run_log import without_warnings
from samfed_monai.core.validators import installed
from samfed_monai.data.dicom import numbers_of, read_object

PROPERTIES = {"skin lesion": "SkinLesion", "polyp of colon": "PolypOfColon", "neoplasm": "Neoplasm", "nodule": "Nodule"}
"""Foreground names in a bundle's ``channel_def`` with their SNOMED CT codes (keywords of pydicom's dictionary); other
names are coded as a lesion."""
ANATOMY = (7152, 7153, 7154, 7155, 7160, 7192)
"""DICOM context groups of segmented anatomy (heart, nerves, abdomen, thorax, pelvis, general). With several classes, a
class with a name of these groups gets its code (``small intestine``: SNOMED CT's)."""
_SCHEME = "99SAMFED"  # for other names of classes; private schemes start with 99 (PS3.16, chapter 8)
SERIES = 9000  # a number that no scanner is likely to have used in the study
NAME = "SAM-Fed"
_NOT_EMPTY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality")
_REQUIRED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber"),
    *_NOT_EMPTY,
)
"""Attributes that an object needs for references; those of :data:`_NOT_EMPTY` may not be empty."""
_SAME = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "Rows", "Columns")
_PLANE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
_LEAVE_OUT = "leave --dicom-seg out: the PNG masks of its frames are complete"


def require_highdicom() -> list[Problem]:
    """Returns a problem if ``highdicom`` is not installed."""
    return installed("highdicom", "dicom", "--dicom-seg", "no highdicom", "the package highdicom")


def object_problems(objects: Sequence[Any], labels: Sequence[str] = ("empty",)) -> list[Problem]:
    """Returns the problems of segmentations of these objects by making empty ones; writes nothing.

    Args:
        objects: headers of DICOM objects.
        labels: names of the segments.
    """
    problems = Problems()
    if not objects:
        expected, hint = "DICOM objects to refer to", "leave it out, or name DICOM objects"
        problems.add("--dicom-seg", found="none among the images", expected=expected, hint=hint)
    for group in series_of(objects):
        with problems.collected():
            sources = [objects[index] for index in group]
            empty = np.zeros((sum(map(_frames, sources)), sources[0].Rows, sources[0].Columns), np.uint8)
            segmentation_of(sources, list(empty), labels=labels, model="none")
    return list(problems)


def series_of(objects: Sequence[Any]) -> list[list[int]]:
    """Groups objects that are the slices of one series and get one segmentation; other objects are groups of one.

    Slices of a series have the same patient, study, kind, size, spacing, thickness, orientation and frame of reference,
    one frame each, and different positions along their normal. If positions repeat (phases, echoes, a file twice), all
    objects of the series stay separate.

    Args:
        objects: headers of DICOM objects, from :func:`samfed_monai.data.dicom.read_object`.

    Returns:
        Groups of indices, ordered by their smallest index; slices are ordered by position along the normal of the image
        plane (from feet to head for axial slices).
    """
    groups: dict[object, list[tuple[float, int]]] = {}
    for index, header in enumerate(objects):
        key: object = index
        along = 0.0
        try:
            position, orientation, sides, thick = (numbers_of(header, name) for name in _PLANE)
        except ValueError as error:
            raise _refused(header, error.args[0], "the position of the slice", _LEAVE_OUT) from None
        if not _missing_geometry(header) and (len(position), len(orientation)) == (3, 6):
            geometry = (round(value, 4) for value in (*orientation, *sides, *thick))
            key = (*(header.get(name) for name in _SAME), *geometry)
            along = float(np.cross(orientation[:3], orientation[3:]) @ np.array(position))
        groups.setdefault(key, []).append((along, index))
    series = []
    for members in groups.values():
        distinct = len({round(along, 4) for along, _ in members}) == len(members)
        series += [[index for _, index in sorted(members)]] if distinct else [[index] for _, index in members]
    return sorted(series, key=min)


def identity_of(segmentation: str | Path | BinaryIO) -> str:
    """Returns a DICOM object's own UID; empty for a file that is not a DICOM object."""
    import pydicom

    try:
        return str(read_object(segmentation, pixels=False).get("SOPInstanceUID", ""))
    except pydicom.errors.InvalidDicomError:
        return ""


def segmentation_of(
    sources: Sequence[Any], masks: Sequence[NDArray[Any]], *, labels: Sequence[str], model: str
) -> bytes:
    """Returns a binary DICOM segmentation with a segment for each label and a frame for each frame of the source.

    The source is one object, or the slices of one series (:func:`series_of`); empty frames are included.

    The segmentation belongs to the source's patient and study; their attributes are copied as the standard requires,
    empty ones included. The algorithm is this package at its version, with the model as a parameter. The same masks of
    the same object and model have the same UIDs; date and time are those of writing.

    Frames with a position in space in the source (an image plane, or functional groups) keep it. Other frames, of
    photographs and videos, only refer to the source's frame by number, as a stack: highdicom writes one frame of these,
    and the others are added here.

    Args:
        sources: header of the DICOM object, or headers of a series' slices ordered by position.
        masks: (H, W) of each frame or slice: bool, or class values.
        labels: names of the segments, in the order of the classes; see :data:`PROPERTIES`.
        model: identifies the weights.

    Raises:
        Refused: the number of masks is not that of the frames; an object without the attributes for references, or one
            that highdicom refuses.
    """
    import highdicom
    from pydicom.charset import python_encoding
    from pydicom.sr.codedict import codes

    content, frames = sources[0], sum(map(_frames, sources))
    if frames != len(masks):
        raise _refused(content, f"{len(masks)} masks", f"one mask for each of its {frames} frames")
    for source in sources:
        lacking = [name for name in _REQUIRED if name not in source or (name in _NOT_EMPTY and not source[name].value)]
        known = {*np.atleast_1d(source.get("SpecificCharacterSet") or "")} <= python_encoding.keys()
        lacking += [] if known and "\ufffd" not in str(source.get("PatientName")) else ["valid SpecificCharacterSet"]
        if lacking:
            hint = f"add the missing attributes to the object, or {_LEAVE_OUT}"
            raise _refused(source, f"no {', '.join(lacking)}", "an object that a segmentation can refer to", hint)
    lacking = _missing_geometry(content)
    has_positions = not lacking
    pixels = np.stack(masks).astype(np.uint8)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=NAME, family=codes.DCM.ArtificialIntelligence, version=__version__, parameters={"model": model}
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label[:64],  # LO
            segmented_property_category=category,
            segmented_property_type=kind,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, label in enumerate(labels, start=1)
        for category, kind in [_codes(label, number, single=len(labels) == 1)]
    ]
    objects = [source.SOPInstanceUID for source in sources]
    series, instance = (_uid([part, *objects, *labels, model], pixels) for part in ("series", "object"))
    try:
        with without_warnings():  # warnings contain patients' names
            for source in sources:
                source.decode()  # all text, so that it is written in UTF-8
            dataset = highdicom.seg.Segmentation(
                source_images=list(sources) if has_positions else [_one_frame(content)],
                pixel_array=pixels if has_positions else pixels[:1],
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=segments,
                series_instance_uid=series,
                series_number=SERIES,
                sop_instance_uid=instance,
                instance_number=1,
                manufacturer="samfed-monai",
                manufacturer_model_name=NAME,
                software_versions=__version__,
                device_serial_number="0",
                series_description=f"Segmentation: {', '.join(labels)}"[:64],
                omit_empty_frames=False,
                specific_character_set="ISO_IR 192",  # UTF-8, for labels too; highdicom refuses some sets of sources
            )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        found, expected = f"{type(error).__name__}: {error}", "an object that highdicom accepts"
        if "FrameOfReferenceUID" in content and not has_positions:
            found = f"a frame of reference, but no {', '.join(lacking)}"
            expected = "an object with the position of each frame"
        raise _refused(content, found, expected, _LEAVE_OUT) from None
    if not has_positions:
        dataset.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence", None)
        _stack_frames(dataset, np.stack([pixels == number for number in range(1, len(labels) + 1)]).astype(np.uint8))
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def _codes(label: str, number: int, *, single: bool) -> tuple[Any, Any]:
    """Returns the category and type of a segment's property. A single foreground that is not in :data:`PROPERTIES` is a
    lesion; with several classes, a name without a code gets a private one."""
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    known = PROPERTIES.get(label.casefold())
    if known or single:
        return codes.SCT.MorphologicallyAbnormalStructure, getattr(codes.SCT, known or "Lesion")
    word = "".join(part.capitalize() for part in label.split())
    for group in (getattr(codes, f"cid{number}") for number in ANATOMY):
        if word in dir(group):
            return codes.SCT.AnatomicalStructure, getattr(group, word)
    return Code("CLASS", _SCHEME, "Class of a network"), Code(f"CLASS{number}", _SCHEME, label[:64])


def _refused(header: Any, found: str, expected: str, hint: str = "") -> Refused:
    return refused(f"--dicom-seg: {header.filename}", found=found, expected=expected, hint=hint)


def _frames(header: Any) -> int:
    return int(header.get("NumberOfFrames", 1) or 1)


def _uid(about: Sequence[str], pixels: NDArray[np.uint8]) -> Any:
    import highdicom

    content = json.dumps([*about, __version__, pixels.shape]).encode() + pixels.tobytes()
    return highdicom.UID.from_uuid(str(uuid.UUID(sha256_bytes(content)[:32], version=4)))


def _missing_geometry(content: Any) -> list[str]:
    """Returns the missing attributes for the positions of the object's frames in space; empty if there are none."""
    places: tuple[str, ...] = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    if _frames(content) == 1:
        places = places[:1] if places[0] in content else _PLANE
    return [name for name in ("FrameOfReferenceUID", *places) if not content.get(name)]


def _one_frame(content: Any) -> Any:
    """Returns the object's first frame without a position in space, which highdicom accepts for every kind of object.

    highdicom requires pixel measures in the functional groups of all multi-frame kinds, which ultrasound and video do
    not have: those given here are removed from the segmentation again. Without a slice thickness it would write
    measures that it cannot read.
    """
    import highdicom
    import pydicom

    single = deepcopy(content)
    single.NumberOfFrames = 1
    for name in ("FrameOfReferenceUID", "PixelSpacing", "PerFrameFunctionalGroupsSequence"):
        single.pop(name, None)
    group = pydicom.Dataset()
    group.PixelMeasuresSequence = highdicom.PixelMeasuresSequence([1, 1], slice_thickness=1)
    single.SharedFunctionalGroupsSequence = [group]
    return single


def _stack_frames(dataset: Any, pixels: NDArray[np.uint8]) -> None:
    """Replaces the single frame of every segment by all its frames, as one stack, each with a reference to the source's
    frame of its number; ``pixels`` are (segments, frames, H, W)."""
    from pydicom.pixels.utils import pack_bits
    from pydicom.tag import Tag

    firsts, groups = dataset.PerFrameFunctionalGroupsSequence, []
    for segment, number in np.ndindex(pixels.shape[:2]):
        group = deepcopy(firsts[segment])
        if pixels.shape[1] > 1:
            group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = number + 1
        frame = group.FrameContentSequence[0]
        frame.StackID, frame.InStackPositionNumber = "1", number + 1
        frame.DimensionIndexValues = [segment + 1, number + 1]
        groups.append(group)
    index = deepcopy(dataset.DimensionIndexSequence[0])  # second index after the segment: the frame
    index.DimensionIndexPointer = Tag("InStackPositionNumber")
    index.FunctionalGroupPointer = Tag("FrameContentSequence")
    index.DimensionDescriptionLabel = "In-Stack Position Number"
    dataset.DimensionIndexSequence = [dataset.DimensionIndexSequence[0], index]
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.NumberOfFrames = len(groups)
    dataset.PixelData = pack_bits(pixels.reshape(-1), pad=True)
