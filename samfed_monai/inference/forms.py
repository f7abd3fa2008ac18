"""Masks in other forms, for viewers, spreadsheets and browsers: outlines, polygons, areas, annotations, a page."""

from __future__ import annotations

import heapq
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samfed_monai.config.parse import lookup
from samfed_monai.core.errors import Problems, Refused
from samfed_monai.core.io import read_json, sha256_bytes, to_csv
from samfed_monai.core.text import near, printable
from samfed_monai.core.validators import installed
from samfed_monai.data.classes import colour_of, read_classes
from samfed_monai.data.coco import annotations_of, coco_of
from samfed_monai.data.image_folder import image_paths
from samfed_monai.data.reading import png_of, read_image, read_mask
from samfed_monai.handlers.mask_writer import MaskFolder
from samfed_monai.inference import assessment
from samfed_monai.inference.assessment import Assessment
from samfed_monai.inference.dicom_seg import identity_of, object_problems, require_highdicom, segmentation_of, series_of
from samfed_monai.metrics.quality import DOUBTFUL
from samfed_monai.reports.overlays import COLUMNS as AREA_COLUMNS
from samfed_monai.reports.overlays import area_of, geojson_of, outlined
from samfed_monai.reports.style import PRIVACY, data_url, environment

FOLDERS = {"overlays": "overlays", "geojson": "polygons", "dicom_seg": "DICOM segmentations"}
FILES = {"areas": "areas", "coco": "annotations", "page": "page"}
"""Forms that are folders, and forms that are single files: option of ``samfed infer``, and name in messages."""
COLUMNS = (*AREA_COLUMNS, *assessment.COLUMNS, "seconds")
"""Columns of the table of areas; ``seconds`` is the time of a video's frame."""
LONGEST_SIDE = 448
"""Longest side in pixels of a picture on the page, about 25 kB as JPEG."""
MAX_PICTURES = 1000
"""Largest number of pictures on a page, which is then about 30 MB and still opens on a phone."""


class MaskForms:
    """Writes outlines, polygons, areas, annotations, DICOM segmentations and a page of masks; replaces no file.

    Args:
        bundle: folder of the bundle, whose ``metadata.json`` names the foreground.
        classes: names of several classes; empty for one.
        places: folders and files by form (:data:`FOLDERS`, :data:`FILES`): ``overlays`` for pictures with the masks'
            outlines, ``geojson`` for polygons, ``dicom_seg`` for DICOM segmentations, ``areas`` for a CSV table,
            ``coco`` for COCO annotations, ``page`` for a page of the images with their outlines, most doubtful first.
    """

    def __init__(self, bundle: Path, classes: list[str], **places: str | None) -> None:
        self.classes, self.labels = classes, classes or [foreground_of(bundle)]
        if unknown := places.keys() - FOLDERS.keys() - FILES.keys():
            raise TypeError(f"MaskForms: expected {', '.join(FOLDERS | FILES)}, found {', '.join(sorted(unknown))}")
        given = {form: place for form, place in places.items() if place}
        self.folders = {form: MaskFolder(given[form]) for form in FOLDERS if form in given}
        self.files = {form: Path(given[form]) for form in FILES if form in given}
        self.page = MaskPage(self.labels)
        self.rows: list[dict[str, Any]] = []
        #: The assessment of each mask, by its picture's name.
        self.assessed: dict[str, Assessment] = {}
        self.outlines: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        #: Masks that were not written because another file has their path, PNG by path.
        self.unwritten: dict[Path, bytes] = {}
        #: Files that could not be written; the caller refuses them after writing all others.
        self.problems = Problems()

    def check_paths(self, images: Sequence[str], objects: Sequence[Any], output: str) -> None:
        """Checks all output paths before anything is computed.

        Args:
            images: folders of images, and images.
            objects: headers of DICOM objects.
            output: folder for the masks.

        Raises:
            Refused: a folder is inside a folder of images, or cannot be written to; a file is of another kind; two
                forms have the same path; no DICOM segmentation can be made for an object.
        """
        problems = Problems()
        if "dicom_seg" in self.folders:
            problems.extend(require_highdicom() or object_problems(objects, self.labels))
        if "coco" in self.files:
            problems.extend(installed("pycocotools", "coco", "--coco", "no pycocotools", "the package pycocotools"))
        problems.refuse_if_any()  # before the folders are checked, which creates them
        for form, folder in self.folders.items():
            for problem in folder.problems(images=images):
                option, hint = f"--{form.replace('_', '-')}", "choose another folder"
                problems.add(option, found=problem.found, expected=problem.expected, hint=hint)
        beginnings = {"areas": to_csv(COLUMNS, []).strip(), "coco": json.dumps(coco_of([], [], []))[:40], "page": _MARK}
        pictures = {form: each.folder for form, each in self.folders.items() if form == "overlays"}
        used = {Path(output).resolve(): "output-dir"}
        for form, path in {**pictures, **self.files}.items():
            if (other := used.setdefault(path.resolve(), form)) != form:
                expected = f"a different path from --{other}"
                problems.add(f"--{form}", found=str(path), expected=expected, hint="choose another name")
        for form, file in self.files.items():
            problems.extend(MaskFolder(file.parent).problems())
            if file.exists() and not (file.is_file() and beginnings[form].encode() in file.read_bytes()[:400]):
                expected, hint = f"no file, or the same {FILES[form]}", "choose another name"
                problems.add(f"--{form} {file}", found="another file", expected=expected, hint=hint)
        problems.refuse_if_any()

    def add_images(self, sources: str | list[str], masks: Path, assessed: Mapping[str, Assessment]) -> None:
        """Adds all pictures of one or several folders, with their masks from ``masks``."""
        self.assessed |= assessed
        for name, path in image_paths(sources) if self.folders or self.files else ():
            if name in assessed:  # unreadable images were left out
                file = {"file_name": f"{name}{path.suffix}"}
                self.add(name, read_image(path), self.mask_in(masks / f"{name}.png"), file, assessed[name])

    def mask_in(self, path: Path) -> NDArray[Any]:
        """Reads a written mask (H, W): bool, or class values."""
        if path in self.unwritten:
            drawn = np.array(Image.open(io.BytesIO(self.unwritten[path])))
            return drawn if self.classes else drawn > 0
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
        """Adds a picture and its mask in all forms.

        Args:
            name: of the picture.
            picture: (H, W, 3) uint8.
            mask: (H, W), as from :meth:`mask_in`.
            file: COCO's keys for the picture, such as ``file_name``.
            assessed: assessment of the mask.
            pixel_area: area of a pixel in mm², if known.
            seconds: time of a frame in its video; no outline picture is written for frames.
        """
        self.assessed[name] = assessed
        if "overlays" in self.folders and seconds is None:
            self.write_file("overlays", f"{name}.png", png_of(outlined(picture, mask)))
        if "geojson" in self.folders:
            self.write_file("geojson", f"{name}.geojson", geojson_of(mask, labels=self.classes or ("foreground",)))
        area = area_of(name, mask > 0, pixel_area)
        if "areas" in self.files:
            extra = assessed.row() | ({} if seconds is None else {"seconds": round(seconds, 3)})
            self.rows += [
                area_of(name, mask == number, pixel_area) | extra | {"class": class_name}
                for number, class_name in enumerate(self.classes, start=1)
            ] or [area | extra]
        if "page" in self.files:
            self.page.add(picture, mask, area, assessed, seconds)
        if "coco" in self.files:
            size = {"height": mask.shape[0], "width": mask.shape[1]}
            self.outlines[name] = {**file, **size}, list(annotations_of(mask))

    def add_objects(self, objects: Sequence[tuple[str, Any, Sequence[NDArray[Any]]]], model: str) -> None:
        """Writes the DICOM segmentations, if requested; an existing one with the same UID is kept.

        The segmentation of a series has the name of its first slice.

        Args:
            objects: name, header and masks of each object.
            model: identifies the weights.
        """
        if "dicom_seg" not in self.folders:
            return
        folder = self.folders["dicom_seg"]
        for group in series_of([header for _, header, _ in objects]):
            name = objects[group[0]][0]
            masks = [mask for index in group for mask in objects[index][2]]
            existing, headers = folder.folder / f"{name}.dcm", [objects[index][1] for index in group]
            with self.problems.collected():
                content = segmentation_of(headers, masks, labels=self.labels, model=model)
                if not (existing.exists() and identity_of(existing) == identity_of(io.BytesIO(content))):
                    folder.write(f"{name}.dcm", content)

    def write_file(self, form: str, name: str, content: bytes) -> None:
        """Writes a file into the folder of a form; if another file is there, adds a problem."""
        with self.problems.collected():
            self.folders[form].write(name, content)

    def write(self) -> None:
        """Writes the table of areas, the COCO annotations in the order of the pictures' names, and the page."""
        contents = {"areas": self._table, "coco": self._annotations, "page": self.page.html}
        for form, file in self.files.items():
            with self.problems.collected():
                if (written := write_beside(file, contents[form]().encode())) != file:
                    expected, hint = f"no file, or the same {FILES[form]}", f"the new file is {written}"
                    self.problems.add(f"--{form} {file}", found="another file", expected=expected, hint=hint)

    def _table(self) -> str:
        return to_csv((*COLUMNS, "class") if self.classes else COLUMNS, self.rows)

    def _annotations(self) -> str:
        pictures, annotations = zip(*(self.outlines[name] for name in sorted(self.outlines)), strict=True)
        return f"{json.dumps(coco_of(pictures, annotations, self.labels))}\n"

    def places(self) -> str:
        """Returns a sentence with the paths of the forms, or with the options that write some."""
        places = [f"{FOLDERS[form]}: {near(folder.folder)}" for form, folder in self.folders.items()]
        places += [f"{FILES[form]}: {near(file)}" for form, file in self.files.items()]
        advice = "next: look at them; --overlays DIR draws their outlines, --areas FILE.csv lists their areas"
        return "; ".join(places) or advice


def write_beside(path: Path, content: bytes) -> Path:
    """Writes a file; if one exists with other content, adds a part of the SHA-256 to the name.

    Returns:
        The path of the written file.
    """
    folder = MaskFolder(path.parent)
    try:
        folder.write(path.name, content)
    except Refused:
        path = path.with_name(f"{path.stem}-{sha256_bytes(content)[:8]}{path.suffix}")
        folder.write(path.name, content)
    return path


def foreground_of(bundle: Path) -> str:
    """Returns the bundle's name of the foreground: ``channel_def`` of its output, in ``metadata.json``."""
    metadata = read_json(bundle / "configs" / "metadata.json")
    label = lookup(metadata, ["network_data_format", "outputs", "pred", "channel_def", "1"])
    return label if isinstance(label, str) and label else "foreground"


_MARK = '<meta name="generator" content="samfed infer --page">'


def _downscaled(mask: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resizes the mask to (width, height); objects smaller than a pixel are kept."""
    small = np.zeros(size[::-1], mask.dtype)
    for number in range(1, int(mask.max()) + 1):
        shares = np.array(Image.fromarray((mask == number).astype(np.uint8) * 255).resize(size, Image.Resampling.BOX))
        small[(shares > 0) & (shares >= min(128, shares.max()))] = number
    return small


class MaskPage:
    """Collects pictures for ``--page`` and shows the :data:`MAX_PICTURES` most doubtful.

    Args:
        labels: name of the foreground, or names of the classes.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self.total = self.doubtful = 0
        self._shown: list[tuple[float, int, dict[str, Any]]] = []

    def add(
        self,
        picture: NDArray[np.uint8],
        mask: NDArray[Any],
        area: Mapping[str, Any],
        assessed: Assessment,
        seconds: float | None = None,
    ) -> None:
        """Adds a picture, reduced to :data:`LONGEST_SIDE`; drops the least doubtful one if there are too many.

        Args:
            picture: (H, W, 3) uint8.
            mask: (H, W), bool or class values.
            area: a row of :data:`samfed_monai.reports.overlays.COLUMNS`.
            assessed: assessment of the mask.
            seconds: time of a frame in its video.
        """
        self.total += 1
        self.doubtful += assessed.doubtful
        place = -assessed.expected_dice, -self.total
        if len(self._shown) == MAX_PICTURES and place < self._shown[0][:2]:
            return
        small, stream = Image.fromarray(picture), io.BytesIO()
        small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        small.save(stream, "JPEG", quality=80, optimize=True)
        lines = outlined(np.zeros((small.height, small.width, 3), np.uint8), _downscaled(mask, small.size))
        layer = np.dstack([lines, np.where(lines.any(axis=-1), 255, 0).astype(np.uint8)])  # transparent elsewhere
        entry = {"area": area, "assessed": assessed, "seconds": seconds, "size": small.size}
        entry |= {"picture": data_url(stream.getvalue(), "jpeg"), "outline": data_url(png_of(layer))}
        (heapq.heappushpop if len(self._shown) == MAX_PICTURES else heapq.heappush)(self._shown, (*place, entry))

    @property
    def looks(self) -> list[dict[str, Any]]:
        """The pictures to show, most doubtful first."""
        looks = [look for _, _, look in self._shown]
        return sorted(looks, key=lambda look: (look["assessed"].expected_dice, look["area"]["name"]))

    def html(self, template: str = "looks.html.j2") -> str:
        """Returns the self-contained page, or the part of it that another template renders."""
        looks = self.looks
        several = len(self.labels) > 1
        shown = {
            "page": self,
            "looks": looks,
            "flags": sorted({flag for look in looks for flag in look["assessed"].flags}),
            "below": max((look["assessed"].doubtful_below for look in looks), default=DOUBTFUL),
            "calibrated": all(look["assessed"].lower_bound is not None for look in looks),
            "colours": {name: f"rgb{colour_of(n)}" for n, name in enumerate(self.labels, start=1)} if several else {},
            "timed": any(look["seconds"] is not None for look in looks),
            "privacy": PRIVACY,
        }
        return printable(environment().get_template(template).render(shown))
