"""Segments pictures, volumes, DICOM objects and videos, and writes masks and the other forms."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from samfed_monai.core.errors import Problem, Problems, Refused, name_problems, refused
from samfed_monai.core.io import naming, read_json
from samfed_monai.core.run_log import muted, progress_bar
from samfed_monai.core.text import counted
from samfed_monai.core.validators import require
from samfed_monai.data.dicom import read_object
from samfed_monai.data.image_folder import DICOM, NIFTI, VIDEO, image_paths, kind_of, report_not_read, volumes_in
from samfed_monai.data.reading import left_out, read_image
from samfed_monai.data.volumes import different_orientations, nifti_of, read_slices
from samfed_monai.handlers.mask_writer import RECORD, MaskFolder
from samfed_monai.inference.assessment import EMPTY, Assessment
from samfed_monai.inference.forms import MaskForms, write_beside
from samfed_monai.inference.video import AT_ONCE, Video, segment_video

if TYPE_CHECKING:
    from samfed_monai.inference.predictor import Predictor

logger = logging.getLogger(__name__)

PART_LOGGERS = "samfed_monai.handlers.mask_writer", "samfed_monai.data.image_folder"
"""Loggers that would report single slices and frames in a temporary folder."""
LONGEST_NAME = 255  # bytes, the limit of most file systems
DOUBTFUL_FOLDER = "doubtful"
"""Folder below the masks for those that are doubtful."""


def segment(
    predictor: Predictor,
    sources: str | list[str],
    output: str,
    forms: MaskForms,
    *,
    probabilities: bool = False,
    reorient: bool = False,
    skip_unreadable: bool = False,
    every: int | None = None,
    only_sure: bool = False,
) -> None:
    """Writes PNG masks of pictures, DICOM frames and every n-th frame of videos, NIfTI masks of volumes, other forms.

    Args:
        predictor: the predictor.
        sources: a folder, searched with its subfolders, or a list of folders and files; videos only as named files.
        output: folder for the masks, outside of the images' folders. No file is replaced.
        forms: the other forms.
        probabilities: whether to write 8-bit probability maps too.
        reorient: whether to reorient NIfTI volumes to RAS+ before cutting them into slices; masks keep the volume's
            axes.
        skip_unreadable: whether to leave out files that cannot be read, each with a warning.
        every: n for videos; ``None``: two frames per second.
        only_sure: whether doubtful PNG masks go into the subfolder :data:`DOUBTFUL_FOLDER` of ``output``.

    Raises:
        Refused: unreadable files, duplicate names, and folders and files that cannot be written, before anything is
            computed; existing files with other content in place of a volume's mask or another form, after all others
            are written.
    """
    listed = [sources] if isinstance(sources, str) else sources
    videos, listed = _videos(listed, every, skip_unreadable=skip_unreadable)
    found, rest = volumes_in([Path(source) for source in listed])
    report_not_read("; ".join(source for source in listed if Path(source).is_dir()), rest)
    if reorient and not any(kind_of(path) == NIFTI for _, path in found):
        raise refused("--reorient", "none", "a NIfTI volume to reorient", "leave it out")
    options: dict[str, Any] = {"probabilities": probabilities, "skip_unreadable": skip_unreadable}
    with tempfile.TemporaryDirectory(prefix="samfed-") as folder, muted("samfed_monai.data.image_folder.not_read"):
        # muted, as the volumes of a folder would be reported as not read
        scratch, volumes, pictures = Path(folder), list[_Volume](), listed
        if found:
            places = {str(path) for _, path in found}
            others = [each for each in listed if each not in places]
            pictures = [each for each in others if image_paths(each) or not Path(each).is_dir()]
            volumes, unread = _cut_slices(found, scratch / "slices", reorient=reorient)
            require(left_out(unread, bool(volumes or pictures or videos), skip_unreadable=skip_unreadable))
            read = [volume.path for volume in volumes if volume.header is None]
            for sentence in [] if reorient else different_orientations(read):
                logger.warning("%s", sentence)
        if skip_unreadable and (volumes or videos) and (unread := _unreadable(pictures)):
            left_out(unread, True, skip_unreadable=True)
            pictures = []
        headers = [volume.header for volume in volumes if volume.header is not None]
        if only_sure and not (pictures or videos or headers):
            hint = "leave it out; --areas FILE.csv lists their doubtful slices"
            raise refused("--only-sure", "only NIfTI volumes", "an image that gets a PNG mask", hint)
        names = list({name for name, _ in image_paths(pictures)})  # image_folder reports duplicate pictures
        names += [name for volume in volumes for name in volume.slices.values()]
        _refuse_twins([*names, *(f"{DOUBTFUL_FOLDER}/{name}" for name in names if only_sure)])
        suffixes = ("", ".probability")[: 1 + probabilities]
        files = [file for volume in volumes for suffix in suffixes for file in volume.files(suffix)]
        _refuse_twins(files)  # the probabilities of one volume and the mask of another
        endings = [*(f"{suffix}.png" for suffix in suffixes), *([".geojson"] if "geojson" in forms.folders else [])]
        _refuse_long([*files, *(f"{name}{ending}" for name in names for ending in endings)])
        forms.check_paths(listed, headers, output)
        record = Path(output) / RECORD
        if volumes or videos:  # without a record, existing files are not masks of this program
            require(MaskFolder(output, None if record.is_file() else {RECORD: ""}).problems(files, images=listed))
        if pictures:
            forms.add_images(pictures, Path(output), predictor.write(pictures, output, forms=forms, **options))
        assessed, masks = dict[str, Assessment](), scratch / "masks"
        if volumes and record.is_file():  # so that masks of another model are refused before computing
            masks.mkdir()
            shutil.copy(record, masks / RECORD)
        for part, group in groupby(volumes, attrgetter("part")):
            try:
                with muted(*PART_LOGGERS):
                    assessed |= predictor.write(str(scratch / "slices" / part), str(masks), parts=True, **options)
            except Refused as error:
                problems = (replace(each, where=each.where.replace(str(masks), output)) for each in error.problems)
                raise Refused(problems) from None
            _write_masks(group, masks, output, forms, reorient=reorient)
        if volumes:
            _add_forms(volumes, scratch, forms, assessed)
    for video in videos:
        with muted(*PART_LOGGERS):
            segment_video(predictor, video, output, forms, every=every, probabilities=probabilities)
    forms.write()
    if only_sure:
        _move_doubtful(forms, Path(output))
        nifti = [volume for volume in volumes if volume.header is None]
        if unmoved := [each.name for each in nifti if any(forms.assessed[of].doubtful for of in each.slices.values())]:
            logger.warning("--only-sure: NIfTI masks with doubtful slices were not moved: %s", ", ".join(unmoved))
    if volumes:
        number = counted(len(volumes), "volume or DICOM object", "volumes and DICOM objects")
        logger.info("masks of %s in %s", number, output)
    logger.info("%s", forms.places())
    forms.problems.refuse_if_any()


def _move_doubtful(forms: MaskForms, folder: Path) -> None:
    """Moves doubtful PNG masks into :data:`DOUBTFUL_FOLDER` and others out of it; a file there with other content is
    kept, as it may have been corrected, or be of another image."""
    files = ((name, f"{name}{end}") for name in sorted(forms.assessed) for end in (".png", ".probability.png"))
    not_written = {problem.where for problem in forms.problems}  # paths of masks that hold other files
    for name, file in files:
        new, apart, doubtful = folder / file, folder / DOUBTFUL_FOLDER / file, forms.assessed[name].doubtful
        if not os.path.isfile(new) or str(new) in not_written or not (doubtful or apart.exists()):  # or NIfTI
            continue
        with forms.problems.collected():
            content, written = new.read_bytes(), new
            if doubtful:
                written = write_beside(apart, content)
                new.unlink()
            if content != apart.read_bytes():
                why = "as it differs from the new mask (corrected by hand, or of another image of that name?)"
                logger.warning("%s is kept, %s; the new mask is %s", apart, why, written)
            elif not doubtful:
                apart.unlink()  # the same mask, doubtful in an earlier run


def _unreadable(pictures: list[str]) -> Problems:
    """Returns the problems of the pictures if none can be read, else none; missing files are reported elsewhere."""
    problems = Problems()
    for _, path in image_paths(pictures):
        with problems.collected():
            if path.is_symlink() or path.exists():
                read_image(path)
            return Problems()
    return problems


def _videos(listed: Sequence[str], every: int | None, *, skip_unreadable: bool) -> tuple[list[Video], list[str]]:
    """Returns the videos among files and folders, and the other sources."""
    videos, problems = list[Video](), Problems()
    named = [path for path in map(Path, listed) if kind_of(path) == VIDEO and not path.is_dir()]
    if every is not None:
        problems.unless(every > 0, "--every", every, "a whole number from 1")
        problems.unless(bool(named), "--every", every, "a video file among the images, not a folder", "leave it out")
    problems.refuse_if_any()
    _refuse_twins([path.stem for path in named])
    for path in named:
        with problems.collected():
            videos.append(Video(path))
    require(left_out(problems, bool(videos) or len(named) < len(listed), skip_unreadable=skip_unreadable))
    return videos, [source for source in listed if Path(source) not in named]


class _Volume(NamedTuple):
    """A volume or DICOM object whose slices are PNG files.

    Args:
        name: name of its mask.
        path: its file.
        slices: name of each slice by its file's name in the scratch folder: the volume's name, followed by a number if
            there are several slices.
        pixel_area: area of a pixel in mm², if known.
        header: header of a DICOM object.
        part: scratch folder of its slices and of other volumes', about :data:`AT_ONCE` slices in all.
    """

    name: str
    path: Path
    slices: Mapping[str, str]
    pixel_area: float | None
    header: Any
    part: str

    def files(self, form: str = "") -> list[str]:
        """Returns the file names of its masks, or, with ``.probability``, of its probability maps."""
        if self.header is None:
            return [f"{self.name}{form}.nii.gz"]
        return [f"{name}{form}.png" for name in self.slices.values()]


def _cut_slices(volumes: Sequence[tuple[str, Path]], folder: Path, *, reorient: bool) -> tuple[list[_Volume], Problems]:
    """Writes the slices of volumes and DICOM objects as PNG files.

    Args:
        volumes: name and path of each.
        folder: folder for the slices, ``<part>/<number of the volume>/<number of the slice>.png``.
        reorient: whether to reorient NIfTI volumes to RAS+ first.

    Returns:
        The readable volumes, and the problems of the others.

    Raises:
        Refused: a name that no table can hold.
    """
    require(name_problems(name for name, _ in volumes))
    problems, written, total = Problems(), list[_Volume](), 0
    for name, path in progress_bar(volumes, desc="reading", unit="volume"):
        with problems.collected():
            read = read_slices(path, reorient=reorient)
            keys = [f"{len(written):06d}/{number:06d}" for number in range(len(read.pictures))]
            part = f"{total // AT_ONCE}"
            (folder / part / keys[0]).parent.mkdir(parents=True)
            for key, picture in zip(keys, read.pictures, strict=True):
                with naming(slice_path := folder / part / f"{key}.png"):
                    Image.fromarray(picture).save(slice_path)
            names = [f"{name}/{number:04d}" for number in range(1, len(keys) + 1)] if len(keys) > 1 else [name]
            header = read_object(path, pixels=False) if kind_of(path) == DICOM else None
            written.append(_Volume(name, path, dict(zip(keys, names, strict=True)), read.pixel_area, header, part))
            total += len(keys)
    return written, problems


def _write_masks(volumes: Iterable[_Volume], masks: Path, output: str, forms: MaskForms, *, reorient: bool) -> None:
    """Writes a NIfTI mask of each volume and a PNG mask of each DICOM frame, and probability maps if there are any.

    Args:
        volumes: from :func:`_cut_slices`.
        masks: folder with the masks of their slices.
        output: folder for the masks.
        forms: collects the problems.
        reorient: whether volumes were reoriented.
    """
    folder = MaskFolder(output, read_json(masks / RECORD))
    for volume, form in ((volume, form) for volume in volumes for form in ("", ".probability")):
        files = [masks / f"{key}{form}.png" for key in volume.slices]
        if not files[0].exists():
            continue
        contents = [file.read_bytes() for file in files]
        if volume.header is None:
            drawn = [np.array(Image.open(file)) for file in files]
            drawn = drawn if form or forms.classes else [mask > 0 for mask in drawn]
            contents = [nifti_of(drawn, volume.path, reorient=reorient)]
        for name, content in zip(volume.files(form), contents, strict=True):
            with forms.problems.collected():
                folder.write(name, content)


def _add_forms(volumes: Sequence[_Volume], scratch: Path, forms: MaskForms, assessed: Mapping[str, Assessment]) -> None:
    """Adds all volumes to the other forms.

    Args:
        volumes: from :func:`_cut_slices`.
        scratch: folder with ``slices`` and ``masks``.
        forms: the other forms.
        assessed: assessment of each mask by its slice's file name.
    """
    assessed, objects = {**assessed, **_without_foreground(volumes, assessed)}, list[Any]()
    for volume in volumes:
        masks = {key: forms.mask_in(scratch / "masks" / f"{key}.png") for key in volume.slices}
        file_name = (Path(volume.name).parent / volume.path.name).as_posix()
        for number, (key, name) in enumerate(volume.slices.items(), start=1):
            entry = {"file_name": file_name, **({"frame": number} if len(masks) > 1 else {})}
            picture = read_image(scratch / "slices" / volume.part / f"{key}.png")
            forms.add(name, picture, masks[key], entry, assessed[key], pixel_area=volume.pixel_area)
        if volume.header is not None:
            objects.append((volume.name, volume.header, list(masks.values())))
    forms.add_objects(objects, str(read_json(scratch / "masks" / RECORD)["model_sha256"]))


def _without_foreground(volumes: Sequence[_Volume], assessed: Mapping[str, Assessment]) -> dict[str, Assessment]:
    """Returns assessments with Dice 0 for volumes and DICOM series in which the masks of all slices are empty."""
    groups: dict[object, list[str]] = defaultdict(list)
    for index, volume in enumerate(volumes):
        header = volume.header if volume.header is not None and "ImagePositionPatient" in volume.header else {}
        groups[header.get("SeriesInstanceUID") or index].extend(volume.slices)
    empty = [keys for keys in groups.values() if all(EMPTY in assessed[key].flags for key in keys)]
    return {key: assessed[key].with_zero_dice() for keys in empty for key in keys}


def _refuse_long(files: Iterable[str]) -> None:
    """Refuses file names that are too long for most file systems, before anything is computed."""
    sizes = {file: len(os.fsencode(Path(file).name)) for file in files}
    expected, hint = f"at most {LONGEST_NAME}", "rename the image: its output files are named after it"
    long = {file: f"a name of {size} bytes" for file, size in sizes.items() if size > LONGEST_NAME}
    require(Problem(file, found, expected, hint) for file, found in long.items())


def _refuse_twins(names: Iterable[str]) -> None:
    twins = sorted(name for name, number in Counter(names).items() if number > 1)
    hint = "rename one of them: their output files would have the same name"
    require(Problem(name, "several", "one image or volume of that name", hint) for name in twins)
