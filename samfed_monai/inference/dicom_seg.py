"""Masks of a DICOM object, or of a series of slices, as a DICOM segmentation that refers to it, frame by frame."""

from __future__ import annotations

import io
import json
import uuid
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from samfed_monai import __version__
from samfed_monai.core.errors import Problem, Problems, Refused, refused
from samfed_monai.core.io import sha256_bytes
from samfed_monai.core.validators import installed
from samfed_monai.data.dicom import numbers_of, read_object

PROPERTIES = {"skin lesion": "SkinLesion", "polyp of colon": "PolypOfColon", "neoplasm": "Neoplasm", "nodule": "Nodule"}
"""What a bundle's ``channel_def`` may call the foreground to be coded so (SNOMED CT, keywords of pydicom's
dictionary); everything else is coded as a lesion."""
ANATOMY = (7152, 7153, 7154, 7155, 7160, 7192)
"""DICOM's context groups of what may be segmented in heart, nerves, abdomen, thorax and pelvis, and in general: one of
several classes that has a name of theirs is coded as that (``small intestine``: SNOMED CT's)."""
_SCHEME = "99SAMFED"  # names of classes that none of these has; private schemes begin with 99 (PS3.16, chapter 8)
SERIES = 9000  # a number that no scanner is likely to have used in the study
NAME = "SAM-Fed"
_NEEDED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
)
"""Attributes without which no object refers to another; the patient's may be empty, the UIDs may not."""
_SAME = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "Rows", "Columns")
_PLANE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
_INSTEAD = "leave --dicom-seg out: the PNG masks of its frames are complete"


def require_highdicom() -> list[Problem]:
    """What is wrong if ``highdicom`` is not there."""
    return installed("highdicom", "dicom", "--dicom-seg", "no highdicom", "highdicom to write with")


def refusals_of(objects: Sequence[Any], labels: Sequence[str] = ("empty",)) -> list[Problem]:
    """Why no segmentation can refer to objects, found by making empty ones; nothing is computed or written.

    Args:
        objects: headers of DICOM objects.
        labels: of the segments.
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
    """Which objects are the slices of one series and get one segmentation; every other object has one of its own.

    Slices of one series are of one patient, study, kind, size, spacing, thickness, orientation and frame of reference,
    have one frame each, and each a place of its own along their normal: objects at the same place (phases, echoes, a
    file that is there twice) stay apart, with the whole of their series.

    Args:
        objects: headers of DICOM objects, as :func:`samfed_monai.data.dicom.read_object` reads them.

    Returns:
        Numbers of objects, each in one group, in the order of the first of them; slices by their place along the normal
        of the image plane (from feet to head where slices are axial).
    """
    groups: dict[object, list[tuple[float, int]]] = {}
    for index, header in enumerate(objects):
        key: object = index
        along = 0.0
        try:
            position, turned, sides, thick = (numbers_of(header, name) for name in _PLANE)
        except ValueError as error:
            raise _refused(header, error.args[0], "the place of the slice", _INSTEAD) from None
        if not _lacking(header) and (len(position), len(turned)) == (3, 6):
            key = (*(header.get(name) for name in _SAME), *(round(value, 4) for value in (*turned, *sides, *thick)))
            along = float(np.cross(turned[:3], turned[3:]) @ np.array(position))
        groups.setdefault(key, []).append((along, index))
    found = []
    for members in groups.values():
        together = len({round(along, 4) for along, _ in members}) == len(members)
        found += [[index for _, index in sorted(members)]] if together else [[index] for _, index in members]
    return sorted(found, key=min)


def identity_of(segmentation: str | Path | BinaryIO) -> str:
    """A DICOM object's own UID; none of a file that is no DICOM object."""
    import pydicom

    try:
        return str(read_object(segmentation, pixels=False).get("SOPInstanceUID", ""))
    except pydicom.errors.InvalidDicomError:
        return ""


def segmentation_of(
    sources: Sequence[Any], masks: Sequence[NDArray[Any]], *, labels: Sequence[str], model: str
) -> bytes:
    """A DICOM segmentation, binary, of a segment for each label and in it a frame for each of the source's, empty ones
    too.

    The source is one object, or the slices of one series (:func:`series_of`), to each of which its frame refers.

    It belongs to the source's patient and study, whose attributes are copied as the standard wants it; what is empty
    there stays empty. The algorithm is this package's, at its version, with the model as a parameter. The same masks
    of the same object and model have the same UIDs; date and time are those of writing.

    Frames that the source places in space (an image plane, or functional groups) are placed there. Others, of
    photographs and videos, only refer to the source's frame of their number, as a stack: highdicom writes one frame of
    those, so the frames behind it are added here.

    Args:
        sources: header of the DICOM object, or headers of a series' slices in the order of their places.
        masks: (H, W) of each of its frames, or of each slice: bool, or the values of several classes.
        labels: of the segments, in the order of the classes; see :data:`PROPERTIES`.
        model: what identifies the weights.

    Raises:
        Refused: another number of masks than frames; an object without identity, or one that highdicom refuses.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    content, frames = sources[0], sum(map(_frames, sources))
    if frames != len(masks):
        raise _refused(content, f"{len(masks)} masks", f"one for each of its {frames} frames")
    for each in sources:
        lacking = [name for name in _NEEDED if name not in each or (name.endswith("UID") and not each[name].value)]
        if lacking:
            hint = f"write the missing attributes into the object, or {_INSTEAD}"
            raise _refused(each, f"no {', '.join(lacking)}", "an object that a segmentation can refer to", hint)
    placed = not (lacking := _lacking(content))
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
        for category, kind in [_coded(label, number, one=len(labels) == 1)]
    ]
    objects = [each.SOPInstanceUID for each in sources]
    series, instance = (_uid([part, *objects, *labels, model], pixels) for part in ("series", "object"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they show patients' names
            made = highdicom.seg.Segmentation(
                source_images=list(sources) if placed else [_one_frame(content)],
                pixel_array=pixels if placed else pixels[:1],
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
            )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        found, expected = f"{type(error).__name__}: {error}", "an object that highdicom takes"
        if "FrameOfReferenceUID" in content and not placed:
            found = f"a frame of reference, but no {', '.join(lacking)}"
            expected = "an object that says where in it each frame is"
        raise _refused(content, found, expected, _INSTEAD) from None
    if not placed:
        made.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence", None)
        _stack(made, np.stack([pixels == number for number in range(1, len(labels) + 1)]).astype(np.uint8))
    stream = io.BytesIO()
    made.save_as(stream)
    return stream.getvalue()


def _coded(label: str, number: int, *, one: bool) -> tuple[Any, Any]:
    """Category and type of a segment's property. A single foreground is a lesion, whatever its name; of several classes
    a name that has no code gets a private one, which says nothing but the name."""
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    known = PROPERTIES.get(label.casefold())
    if known or one:
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


def _lacking(content: Any) -> list[str]:
    """Attributes that say where in space each frame is and that the object lacks; empty if it has them all."""
    places: tuple[str, ...] = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    if _frames(content) == 1:
        places = places[:1] if places[0] in content else _PLANE
    return [name for name in ("FrameOfReferenceUID", *places) if not content.get(name)]


def _one_frame(content: Any) -> Any:
    """The object's first frame without a place in space: what highdicom takes of every kind of object.

    It looks for pixel measures in the functional groups of every kind that may have several frames, also where, as in
    ultrasound and video, there are none: those given here are taken out of the segmentation again. Without a slice's
    thickness it would write measures that it cannot read.
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


def _stack(made: Any, pixels: NDArray[np.uint8]) -> None:
    """All frames of every segment in the place of its first one, each with the source's frame of its number, as one
    stack; ``pixels`` are (segments, frames, H, W)."""
    from pydicom.pixels.utils import pack_bits
    from pydicom.tag import Tag

    firsts, groups = made.PerFrameFunctionalGroupsSequence, []
    for segment, number in np.ndindex(pixels.shape[:2]):
        group = deepcopy(firsts[segment])
        if pixels.shape[1] > 1:
            group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = number + 1
        frame = group.FrameContentSequence[0]
        frame.StackID, frame.InStackPositionNumber = "1", number + 1
        frame.DimensionIndexValues = [segment + 1, number + 1]
        groups.append(group)
    index = deepcopy(made.DimensionIndexSequence[0])  # behind the segment's: which frame it is
    index.DimensionIndexPointer = Tag("InStackPositionNumber")
    index.FunctionalGroupPointer = Tag("FrameContentSequence")
    index.DimensionDescriptionLabel = "In-Stack Position Number"
    made.DimensionIndexSequence = [made.DimensionIndexSequence[0], index]
    made.PerFrameFunctionalGroupsSequence = groups
    made.NumberOfFrames = len(groups)
    made.PixelData = pack_bits(pixels.reshape(-1), pad=True)
