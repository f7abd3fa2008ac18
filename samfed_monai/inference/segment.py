"""Pictures, volumes and DICOM objects in; masks, and what viewers and spreadsheets take of them, out."""

from __future__ import annotations

import io
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samfed_monai.config.parse import lookup
from samfed_monai.core.errors import Problem, Problems, Refused, name_problems, or_skip
from samfed_monai.core.io import make_folder, read_json, to_csv
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.words import counted, near
from samfed_monai.data.classes import read_classes
from samfed_monai.data.coco import annotations_of, coco_of, require_pycocotools
from samfed_monai.data.dicom import read_object
from samfed_monai.data.image_folder import DICOM, NIFTI, VIDEO, image_paths, kind_of, report_not_read, volumes_in
from samfed_monai.data.reading import png_of, read_image, read_mask
from samfed_monai.data.volumes import different_orientations, nifti_of, read_slices
from samfed_monai.handlers.mask_writer import RECORD, MaskFolder
from samfed_monai.inference import assessment
from samfed_monai.inference.assessment import EMPTY, Assessment
from samfed_monai.inference.dicom_seg import identity_of, refusals_of, require_highdicom, segmentation_of, series_of
from samfed_monai.inference.looks import LooksPage, look_of
from samfed_monai.inference.video import Video, segment_video
from samfed_monai.reports.overlays import COLUMNS as OF_AREA
from samfed_monai.reports.overlays import area_of, geojson_of, outlined

if TYPE_CHECKING:
    from samfed_monai.inference.predictor import Predictor

logger = logging.getLogger(__name__)

APART = "doubtful"
"""Folder below the masks for those that are doubtful."""
COLUMNS = (*OF_AREA, *assessment.COLUMNS, "seconds")
"""Heads of the table of areas; ``seconds`` are those of a video's frame."""


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
    volumes, others = volumes_in([Path(source) for source in listed])
    report_not_read("; ".join(source for source in listed if Path(source).is_dir()), others)
    if reorient and not any(kind_of(path) == NIFTI for _, path in volumes):
        raise Refused([Problem("--reorient", "no NIfTI volume", "one to reorient", "leave it out")])
    options = {"probabilities": probabilities, "skip_unreadable": skip_unreadable}
    pictures: str | list[str] = listed[0] if len(listed) == 1 and Path(listed[0]).is_dir() else listed
    with tempfile.TemporaryDirectory(prefix="samfed-") as folder, muted("samfed_monai.data.image_folder.not_read"):
        scratch, stack = Path(folder), None  # volumes of a folder are not to be reported as not read
        if volumes:
            if odd := name_problems(name for name, _ in volumes):
                raise Refused(odd)
            places = {str(path) for _, path in volumes}
            pictures = [
                each for each in listed if each not in places and (image_paths(each) or not Path(each).is_dir())
            ]
            stack = SliceStack(volumes, scratch / "slices", reorient=reorient, skip_unreadable=skip_unreadable)
            read = [path for _, path in stack.volumes if kind_of(path) == NIFTI]
            for sentence in [] if reorient else different_orientations(read):
                logger.warning("%s", sentence)
            _refuse_twins(
                [*(name for name, _ in image_paths(pictures)), *(name for names in stack.names for name in names)]
            )
        also.refuse_misplaced(listed, stack.objects if stack else [])
        if stack or videos:
            problems = Problems()
            problems.extend(MaskFolder(output).problems(images=listed))
            problems.refuse_if_any()
        if pictures:
            also.of_images(pictures, Path(output), predictor.write(pictures, output, **options))
        if stack:
            masks, record = scratch / "masks", Path(output) / RECORD
            if record.is_file():  # what is there was made with: another model is refused before it computes
                masks.mkdir()
                shutil.copy(record, masks / RECORD)
            try:
                with muted("samfed_monai.handlers.mask_writer"):  # of single slices, whose folder is gone afterwards
                    assessed = predictor.write(str(stack.folder), str(masks), parts=True, **options)
            except Refused as refused:
                there = [replace(each, where=each.where.replace(str(masks), output)) for each in refused.problems]
                raise Refused(there) from None
            stack.write_masks(masks, output, also, assessed)
    for video in videos:
        with muted("samfed_monai.handlers.mask_writer"):  # of some of its frames
            segment_video(predictor, video, output, also, every=every, probabilities=probabilities)
    also.write()
    for name in sorted(name for name, assessed in also.assessed.items() if assessed.doubtful) if only_sure else ():
        _put_apart(Path(output), name)
    if stack:
        number = counted(len(stack.volumes), "volume or DICOM object", "volumes and DICOM objects")
        logger.info("masks of %s in %s", number, output)
    logger.info("%s", also.places())


def _put_apart(output: Path, name: str) -> None:
    """Moves a mask, and its map of probabilities, into the folder of doubtful ones; a volume's NIfTI stays."""
    for file in (f"{name}.png", f"{name}.probability.png"):
        if (output / file).is_file():
            make_folder((output / APART / file).parent)
            (output / file).replace(output / APART / file)


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
    some = bool(videos) or len(named) < len(listed)
    if problems and not (some and skip_unreadable):
        raise Refused([or_skip(problem) if some else problem for problem in problems])
    for problem in problems:
        logger.warning("left out: %s", problem)
    return videos, [source for source in listed if Path(source) not in named]


@contextmanager
def muted(name: str) -> Iterator[None]:
    """Without records and warnings of a module."""
    muted = logging.getLogger(name)
    before = muted.level
    muted.setLevel(logging.ERROR)
    try:
        yield
    finally:
        muted.setLevel(before)


class SliceStack:
    """Slices of volumes and DICOM objects as PNG files that are segmented like any others.

    Args:
        volumes: name and path of each.
        folder: where the slices go, ``<number of the volume>/<number of the slice>.png``.
        reorient: whether NIfTI volumes are turned to RAS+ first.
        skip_unreadable: whether to leave out files that cannot be read, each with a warning.

    Raises:
        Refused: a file that cannot be read; all of them at once, before anything is computed.
    """

    def __init__(
        self, volumes: Sequence[tuple[str, Path]], folder: Path, *, reorient: bool, skip_unreadable: bool = False
    ) -> None:
        self.folder, self.reorient = folder, reorient
        self.volumes: list[tuple[str, Path]] = []
        #: Of each volume, what its slices are called: by its own name where it is one, else with a number behind it.
        self.names: list[list[str]] = []
        problems = Problems()
        for name, path in progress_bar(volumes, desc="reading", unit="volume"):
            with problems.collected():
                there = folder / f"{len(self.volumes):06d}"
                pictures = read_slices(path, reorient=reorient).pictures
                there.mkdir(parents=True)
                for number, picture in enumerate(pictures):
                    Image.fromarray(picture).save(there / f"{number:06d}.png")
                several = [f"{name}/{number:04d}" for number in range(1, len(pictures) + 1)]
                self.names.append(several if len(several) > 1 else [name])
                self.volumes.append((name, path))
        if problems and not (self.volumes and skip_unreadable):
            raise Refused([or_skip(problem) if self.volumes else problem for problem in problems])
        for problem in problems:
            logger.warning("left out: %s", problem)

    @property
    def objects(self) -> list[tuple[Path, int]]:
        """The DICOM objects, with the number of their frames."""
        read = zip(self.volumes, self.names, strict=True)
        return [(path, len(names)) for (_, path), names in read if kind_of(path) == DICOM]

    def write_masks(self, masks: Path, output: str, also: MaskForms, assessed: Mapping[str, Assessment]) -> None:
        """A NIfTI of each volume, a PNG of each DICOM frame, and likewise of probabilities if there are any."""
        made_with = read_json(masks / RECORD)
        folder, assessed = MaskFolder(output, made_with), self._whole(assessed)
        objects: list[tuple[str, Path, list[NDArray[Any]]]] = []
        for index, ((name, path), names) in enumerate(zip(self.volumes, self.names, strict=True)):
            slices, there = read_slices(path, reorient=self.reorient), masks / f"{index:06d}"
            for form in ("", ".probability"):
                files = [there / f"{number:06d}{form}.png" for number in range(len(names))]
                if not files[0].exists():
                    continue
                if slices.kind == "nifti":
                    drawn = [np.array(Image.open(file)) for file in files]
                    drawn = drawn if form or also.classes else [mask > 0 for mask in drawn]
                    folder.write(f"{name}{form}.nii.gz", nifti_of(drawn, path, reorient=self.reorient))
                    continue
                for each, file in zip(names, files, strict=True):
                    folder.write(f"{each}{form}.png", file.read_bytes())
            found = [also.mask_in(there / f"{number:06d}.png") for number in range(len(names))]
            volume = (Path(name).parent / path.name).as_posix()
            for number, (each, picture, mask) in enumerate(zip(names, slices.pictures, found, strict=True), start=1):
                entry = {"file_name": volume, **({"frame": number} if len(names) > 1 else {})}
                also.add(
                    each, picture, mask, entry, assessed[f"{index:06d}/{number - 1:06d}"], pixel_area=slices.pixel_area
                )
            if slices.kind == "dicom":
                objects.append((name, path, found))
        also.add_objects(objects, str(made_with["model_sha256"]))

    def _whole(self, assessed: Mapping[str, Assessment]) -> dict[str, Assessment]:
        """Where no slice of a volume, or of a DICOM series, has a mask, those of all are doubtful."""
        groups: dict[str, list[str]] = {}
        for index, ((_, path), names) in enumerate(zip(self.volumes, self.names, strict=True)):
            groups.setdefault(_series(path) or str(index), []).extend(f"{index:06d}/{n:06d}" for n in range(len(names)))
        found = dict(assessed)
        for slices in groups.values():
            if all(EMPTY in found[each].flags for each in slices):
                found |= {each: found[each].of_nothing() for each in slices}
        return found


class MaskForms:
    """Outlines, polygons, areas, annotations and DICOM segmentations of masks; no file is replaced.

    Args:
        bundle: folder of the bundle, whose ``metadata.json`` names the foreground.
        classes: names of several classes; empty for one.
        overlays: folder for pictures with the masks' outlines.
        geojson: folder for polygons.
        dicom_seg: folder for DICOM segmentations.
        areas: file for a table of areas, CSV.
        coco: file for COCO annotations.
        page: file for a page of the images with their outlines, most doubtful first.
    """

    def __init__(
        self,
        bundle: Path,
        classes: list[str],
        *,
        overlays: str | None = None,
        geojson: str | None = None,
        dicom_seg: str | None = None,
        areas: str | None = None,
        coco: str | None = None,
        page: str | LooksPage | None = None,
    ) -> None:
        self.classes, self.labels = classes, classes or [foreground_of(bundle)]
        self.folders = {
            form: MaskFolder(folder) for form, folder in (("png", overlays), ("geojson", geojson)) if folder
        }
        self.segmentations = MaskFolder(dicom_seg) if dicom_seg else None
        self.table, self.coco = (Path(file) if file else None for file in (areas, coco))
        self.page = LooksPage(Path(page), self.labels) if isinstance(page, str) else page
        self.rows: list[dict[str, Any]] = []
        #: How far each mask is to be trusted, by its picture's name.
        self.assessed: dict[str, Assessment] = {}
        self.outlines: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}

    def refuse_misplaced(self, images: Sequence[str], objects: Sequence[tuple[Path, int]]) -> None:
        """Before anything is computed: no outlines among the images, no file in the place of the table of areas.

        Args:
            images: folders of images, and images.
            objects: DICOM objects, with the number of their frames.

        Raises:
            Refused: a folder is in one of the images', or cannot be written to; the table's file is something else;
                no DICOM segmentation can be made of an object.
        """
        problems = Problems()
        if self.segmentations:
            problems.extend(require_highdicom() or refusals_of(objects, self.labels))
        problems.refuse_if_any()  # before folders are looked at, which are made for that
        placed = {"--overlays": self.folders.get("png"), "--geojson": self.folders.get("geojson")}
        for option, folder in {**placed, "--dicom-seg": self.segmentations}.items():
            for problem in folder.problems(images=images) if folder else ():
                hint = "choose another folder"
                problems.add(option, found=problem.found, expected=problem.expected, hint=hint)
        for option, file, ours, what in (
            ("--areas", self.table, _is_table, "table"),
            ("--coco", self.coco, _is_coco, "annotations"),
            ("--page", self.page and self.page.path, LooksPage.is_one, "page"),
        ):
            if file and file.exists() and not ours(file):
                found, hint = "another file", "choose another name"
                problems.add(f"{option} {file}", found=found, expected=f"none, or the same {what}", hint=hint)
        if self.coco:
            problems.extend(require_pycocotools("--coco"))
        problems.refuse_if_any()

    def of_images(self, sources: str | list[str], masks: Path, assessed: Mapping[str, Assessment]) -> None:
        """All pictures of a folder, or of several, whose masks are in ``masks``."""
        self.assessed |= assessed
        if not self.folders and not self.table and not self.coco and not self.page:
            return
        for name, path in image_paths(sources):
            if name in assessed:  # not so of images that were left out as unreadable
                file = {"file_name": f"{name}{path.suffix}"}
                self.add(name, read_image(path), self.mask_in(masks / f"{name}.png"), file, assessed[name])

    def mask_in(self, path: Path) -> NDArray[Any]:
        """A written mask (H, W): bool, or of several classes their values."""
        return read_classes(path, self.classes) if self.classes else read_mask(path) > 0

    def add(
        self,
        name: str,
        picture: NDArray[np.uint8],
        mask: NDArray[Any],
        file: Mapping[str, Any],
        assessed: Assessment,
        *,
        pixel_area: float | None = None,
        seconds: float | None = None,
    ) -> None:
        """One picture and its mask, in all forms.

        Args:
            name: of the picture.
            picture: (H, W, 3) uint8.
            mask: (H, W), as :meth:`mask_in` has it.
            file: what COCO calls the picture.
            assessed: how far the mask is to be trusted.
            pixel_area: mm² of a pixel, where the file says it.
            seconds: since the beginning of its video; of a frame no picture is written.
        """
        self.assessed[name] = assessed
        labels = self.classes or ("foreground",)
        made = {"png": lambda: png_of(outlined(picture, mask)), "geojson": lambda: geojson_of(mask, labels=labels)}
        for form, folder in self.folders.items():
            if form != "png" or seconds is None:
                folder.write(f"{name}.{form}", made[form]())
        time = {} if seconds is None else {"seconds": round(seconds, 3)}
        area = area_of(name, mask > 0, pixel_area)
        if self.table and not self.classes:
            self.rows.append(area | assessed.row() | time)
        for number, of_class in enumerate(self.classes if self.table else (), start=1):
            row = area_of(name, mask == number, pixel_area) | assessed.row() | time
            self.rows.append({**row, "class": of_class})
        if self.page:
            self.page.add(look_of(picture, mask, area, assessed, seconds))
        if self.coco:
            size = {"height": mask.shape[0], "width": mask.shape[1]}
            self.outlines[name] = {**file, **size}, list(annotations_of(mask))

    def add_objects(self, objects: Sequence[tuple[str, Path, Sequence[NDArray[Any]]]], model: str) -> None:
        """The segmentations of DICOM objects, if asked for; one of the same UID, of another time, is kept.

        That of a series of slices has the name of its first slice.

        Args:
            objects: name, file and masks of each.
            model: what identifies the weights.
        """
        if self.segmentations is None:
            return
        for group in series_of([path for _, path, _ in objects]):
            name = objects[group[0]][0]
            masks = [mask for index in group for mask in objects[index][2]]
            content = segmentation_of([objects[index][1] for index in group], masks, labels=self.labels, model=model)
            there = self.segmentations.folder / f"{name}.dcm"
            if not (there.exists() and identity_of(there) == identity_of(io.BytesIO(content))):
                self.segmentations.write(f"{name}.dcm", content)

    def write(self) -> None:
        """The table of areas, COCO's annotations in the order of the pictures' names, and the page."""
        if self.table:
            columns = (*COLUMNS, "class") if self.classes else COLUMNS
            MaskFolder(self.table.parent).write(self.table.name, to_csv(columns, self.rows).encode())
        if self.coco:
            pictures, annotations = zip(*(self.outlines[name] for name in sorted(self.outlines)), strict=True)
            content = json.dumps(coco_of(pictures, annotations, self.labels))
            MaskFolder(self.coco.parent).write(self.coco.name, f"{content}\n".encode())
        if self.page:
            self.page.write()

    def places(self) -> str:
        """Where the forms are, or which options make some to look at."""
        folders = {"overlays": self.folders.get("png"), "polygons": self.folders.get("geojson")}
        places = {name: folder.folder for name, folder in folders.items() if folder}
        places |= {"DICOM segmentations": self.segmentations.folder} if self.segmentations else {}
        files = {"areas": self.table, "annotations": self.coco, "page": self.page and self.page.path}
        places |= {name: file for name, file in files.items() if file}
        if not places:
            return "next: look at them; --overlays DIR draws their outlines, --areas FILE.csv lists their areas"
        return "; ".join(f"{name}: {near(place)}" for name, place in places.items())


def foreground_of(bundle: Path) -> str:
    """What a bundle calls the foreground: ``channel_def`` of its output, in ``metadata.json``."""
    metadata = read_json(bundle / "configs" / "metadata.json")
    label = lookup(metadata, ["network_data_format", "outputs", "pred", "channel_def", "1"])
    return label if isinstance(label, str) and label else "foreground"


def _is_table(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(to_csv(COLUMNS, []).strip().encode())


def _is_coco(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(json.dumps(coco_of([], [], []))[:40].encode())


def _series(path: Path) -> str:
    """The UID of the series that a DICOM object is a slice of; empty of all else."""
    content = read_object(path, pixels=False) if kind_of(path) == DICOM else {}
    return str(content.get("SeriesInstanceUID", "")) if "ImagePositionPatient" in content else ""


def _refuse_twins(names: Sequence[str]) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    hint = "rename one of them: both masks would have the same name"
    if twins:
        raise Refused([Problem(name, "it twice", "one image or volume of that name", hint) for name in twins])
