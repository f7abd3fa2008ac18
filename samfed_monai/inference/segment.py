"""Pictures, volumes, DICOM objects and videos in; masks, and what viewers and spreadsheets take of them, out."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from samfed_monai.core.errors import Problem, Problems, Refused, name_problems, or_skip, refused
from samfed_monai.core.io import make_folder, read_json
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.validators import require
from samfed_monai.core.words import counted
from samfed_monai.data.dicom import read_object
from samfed_monai.data.image_folder import DICOM, NIFTI, VIDEO, image_paths, kind_of, report_not_read, volumes_in
from samfed_monai.data.reading import read_image
from samfed_monai.data.volumes import different_orientations, nifti_of, read_slices
from samfed_monai.handlers.mask_writer import RECORD, MaskFolder
from samfed_monai.inference.assessment import EMPTY, Assessment
from samfed_monai.inference.forms import MaskForms
from samfed_monai.inference.predictor import muted
from samfed_monai.inference.video import Video, segment_video

if TYPE_CHECKING:
    from samfed_monai.inference.predictor import Predictor

logger = logging.getLogger(__name__)

APART = "doubtful"
"""Folder below the masks for those that are doubtful."""


def segment(
    predictor: Predictor,
    sources: str | list[str],
    output: str,
    also: MaskForms,
    *,
    probabilities: bool = False,
    reorient: bool = False,
    skip_unreadable: bool = False,
    every: int | None = None,
    only_sure: bool = False,
) -> None:
    """Writes a PNG mask of every picture, DICOM frame and n-th frame of a video, a NIfTI mask of every volume, and the
    other forms.

    Args:
        predictor: what segments.
        sources: a folder, searched with its sub-folders, or a list of folders and files; videos by name alone.
        output: folder for the masks, outside of the images'. No file is replaced.
        also: the other forms.
        probabilities: whether to write 8-bit maps of probabilities, too.
        reorient: whether NIfTI volumes are turned to RAS+ before they are cut into slices; masks have their own axes.
        skip_unreadable: whether to leave out files that cannot be read, each with a warning.
        every: n of videos; ``None``: two frames of a second.
        only_sure: whether PNG masks that are doubtful go into the folder :data:`APART` of ``output`` instead.

    Raises:
        Refused: files that cannot be read, names that are there twice, folders and files that cannot be written to;
            before anything is computed.
    """
    listed = [sources] if isinstance(sources, str) else sources
    videos, listed = _videos(listed, every, skip_unreadable=skip_unreadable)
    found, others = volumes_in([Path(source) for source in listed])
    report_not_read("; ".join(source for source in listed if Path(source).is_dir()), others)
    if reorient and not any(kind_of(path) == NIFTI for _, path in found):
        raise refused("--reorient", "no NIfTI volume", "one to reorient", "leave it out")
    options = {"probabilities": probabilities, "skip_unreadable": skip_unreadable}
    pictures: str | list[str] = listed[0] if len(listed) == 1 and Path(listed[0]).is_dir() else listed
    with tempfile.TemporaryDirectory(prefix="samfed-") as folder, muted("samfed_monai.data.image_folder.not_read"):
        scratch, volumes = Path(folder), list[_Volume]()  # volumes of a folder are not to be reported as not read
        if found:
            places = {str(path) for _, path in found}
            pictures = [
                each for each in listed if each not in places and (image_paths(each) or not Path(each).is_dir())
            ]
            volumes, unread = _cut(found, scratch / "slices", reorient=reorient)
            _leave_out(unread, bool(volumes or pictures or videos), skip_unreadable=skip_unreadable)
            read = [volume.path for volume in volumes if volume.header is None]
            for sentence in [] if reorient else different_orientations(read):
                logger.warning("%s", sentence)
            names = [name for name, _ in image_paths(pictures)]
            _refuse_twins([*names, *(name for volume in volumes for name in volume.slices.values())])
        also.refuse_misplaced(listed, [volume.header for volume in volumes if volume.header is not None])
        if volumes or videos:
            require(MaskFolder(output).problems(images=listed))
        if pictures:
            also.of_images(pictures, Path(output), predictor.write(pictures, output, **options))
        if volumes:
            masks, record = scratch / "masks", Path(output) / RECORD
            if record.is_file():  # what is there was made with: another model is refused before it computes
                masks.mkdir()
                shutil.copy(record, masks / RECORD)
            try:
                with muted("samfed_monai.handlers.mask_writer"):  # of single slices, whose folder is gone afterwards
                    assessed = predictor.write(str(scratch / "slices"), str(masks), parts=True, **options)
            except Refused as error:
                there = [replace(each, where=each.where.replace(str(masks), output)) for each in error.problems]
                raise Refused(there) from None
            _write(volumes, scratch, output, also, assessed, reorient=reorient)
    for video in videos:
        with muted("samfed_monai.handlers.mask_writer"):  # of some of its frames
            segment_video(predictor, video, output, also, every=every, probabilities=probabilities)
    also.write()
    if only_sure:
        _set_apart(sorted(name for name, assessed in also.assessed.items() if assessed.doubtful), Path(output))
    if volumes:
        number = counted(len(volumes), "volume or DICOM object", "volumes and DICOM objects")
        logger.info("masks of %s in %s", number, output)
    logger.info("%s", also.places())


def _set_apart(names: Sequence[str], folder: Path) -> None:
    """Moves PNG masks into :data:`APART`; a file that is there stays, for it may have been corrected since."""
    for file in (f"{name}{end}" for name in names for end in (".png", ".probability.png")):
        fresh, there = folder / file, folder / APART / file
        if not fresh.is_file():  # a volume's NIfTI
            continue
        if not there.exists():
            make_folder(there.parent)
            fresh.replace(there)
            continue
        if fresh.read_bytes() != there.read_bytes():
            logger.warning("%s is not what the network says now (corrected by hand?): it stays as it is", there)
        fresh.unlink()


def _videos(listed: Sequence[str], every: int | None, *, skip_unreadable: bool) -> tuple[list[Video], list[str]]:
    """The videos among files and folders, and the others."""
    videos, problems = list[Video](), Problems()
    named = [Path(source) for source in listed if kind_of(Path(source)) == VIDEO]
    if every is not None:
        problems.unless(every > 0, "--every", every, "a whole number from 1")
        problems.unless(bool(named), "--every", every, "a video among the images, named as a file", "leave it out")
    problems.refuse_if_any()
    _refuse_twins([path.stem for path in named])
    for path in named:
        with problems.collected():
            videos.append(Video(path))
    _leave_out(problems, bool(videos) or len(named) < len(listed), skip_unreadable=skip_unreadable)
    return videos, [source for source in listed if Path(source) not in named]


def _leave_out(problems: Problems, some: bool, *, skip_unreadable: bool) -> None:
    """Files that cannot be read are refused, or left out with a warning each, as long as ``some`` can be read."""
    if problems and not (some and skip_unreadable):
        raise Refused([or_skip(problem) if some else problem for problem in problems])
    for problem in problems:
        logger.warning("left out: %s", problem)


class _Volume(NamedTuple):
    """A volume or DICOM object whose slices are PNG files.

    Args:
        name: of its mask.
        path: its file.
        slices: what each slice is called, by its file's name in the scratch folder: by the volume's name where it is
            the only one, else with a number behind it.
        pixel_area: mm² of a pixel, where the file says it.
        header: of a DICOM object.
    """

    name: str
    path: Path
    slices: Mapping[str, str]
    pixel_area: float | None
    header: Any


def _cut(volumes: Sequence[tuple[str, Path]], folder: Path, *, reorient: bool) -> tuple[list[_Volume], Problems]:
    """Slices of volumes and DICOM objects as PNG files that are segmented like any others.

    Args:
        volumes: name and path of each.
        folder: where the slices go, ``<number of the volume>/<number of the slice>.png``.
        reorient: whether NIfTI volumes are turned to RAS+ first.

    Returns:
        those that can be read, and what is wrong with the others.

    Raises:
        Refused: a name that no table can hold.
    """
    require(name_problems(name for name, _ in volumes))
    problems, found = Problems(), list[_Volume]()
    for name, path in progress_bar(volumes, desc="reading", unit="volume"):
        with problems.collected():
            read = read_slices(path, reorient=reorient)
            keys = [f"{len(found):06d}/{number:06d}" for number in range(len(read.pictures))]
            (folder / keys[0]).parent.mkdir(parents=True)
            for key, picture in zip(keys, read.pictures, strict=True):
                Image.fromarray(picture).save(folder / f"{key}.png")
            names = [f"{name}/{number:04d}" for number in range(1, len(keys) + 1)] if len(keys) > 1 else [name]
            header = read_object(path, pixels=False) if kind_of(path) == DICOM else None
            found.append(_Volume(name, path, dict(zip(keys, names, strict=True)), read.pixel_area, header))
    return found, problems


def _write(
    volumes: Sequence[_Volume],
    scratch: Path,
    output: str,
    also: MaskForms,
    assessed: Mapping[str, Assessment],
    *,
    reorient: bool,
) -> None:
    """A NIfTI of each volume, a PNG of each DICOM frame, likewise of probabilities if there are any, and other forms.

    Args:
        volumes: as :func:`_cut` has them.
        scratch: folder with ``slices`` and ``masks``.
        output: folder for the masks.
        also: the other forms.
        assessed: how far each mask is to be trusted, by its slice's file.
        reorient: whether volumes were turned.
    """
    made_with, masks, objects = read_json(scratch / "masks" / RECORD), dict[str, Any](), list[Any]()
    folder, assessed = MaskFolder(output, made_with), {**assessed, **_of_nothing(volumes, assessed)}
    for volume in volumes:
        for form in ("", ".probability"):
            files = [scratch / "masks" / f"{key}{form}.png" for key in volume.slices]
            if volume.header is None and files[0].exists():
                drawn = [np.array(Image.open(file)) for file in files]
                drawn = drawn if form or also.classes else [mask > 0 for mask in drawn]
                folder.write(f"{volume.name}{form}.nii.gz", nifti_of(drawn, volume.path, reorient=reorient))
            elif files[0].exists():
                for name, file in zip(volume.slices.values(), files, strict=True):
                    folder.write(f"{name}{form}.png", file.read_bytes())
        masks = {key: also.mask_in(scratch / "masks" / f"{key}.png") for key in volume.slices}
        file_name = (Path(volume.name).parent / volume.path.name).as_posix()
        for number, (key, name) in enumerate(volume.slices.items(), start=1):
            entry = {"file_name": file_name, **({"frame": number} if len(masks) > 1 else {})}
            picture = read_image(scratch / "slices" / f"{key}.png")
            also.add(name, picture, masks[key], entry, assessed[key], pixel_area=volume.pixel_area)
        if volume.header is not None:
            objects.append((volume.name, volume.header, list(masks.values())))
    also.add_objects(objects, str(made_with["model_sha256"]))


def _of_nothing(volumes: Sequence[_Volume], assessed: Mapping[str, Assessment]) -> dict[str, Assessment]:
    """Where no slice of a volume, or of a DICOM series, has a mask, those of all are doubtful."""
    groups: dict[object, list[str]] = defaultdict(list)
    for index, volume in enumerate(volumes):
        header = volume.header if volume.header is not None and "ImagePositionPatient" in volume.header else {}
        groups[header.get("SeriesInstanceUID") or index].extend(volume.slices)
    empty = [keys for keys in groups.values() if all(EMPTY in assessed[key].flags for key in keys)]
    return {key: assessed[key].of_nothing() for keys in empty for key in keys}


def _refuse_twins(names: Sequence[str]) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    hint = "rename one of them: both masks would have the same name"
    require(Problem(name, "it twice", "one image or volume of that name", hint) for name in twins)
