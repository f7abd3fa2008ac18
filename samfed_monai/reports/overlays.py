"""Draws masks and outlines on pictures, measures areas, makes polygons, and selects the images of a run's report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.data import DataList, load_records, read_image, read_mask
from samfed_monai.data.classes import colour_of, is_multiclass, read_classes
from samfed_monai.data.reading import png_of
from samfed_monai.metrics import surface
from samfed_monai.reports.run_data import RunData

Colour = tuple[int, int, int]
Pixels = NDArray[np.uint8]

# Okabe & Ito's green, vermilion and blue; correct pixels are shaded less, so that the skin stays visible
COLOURS: dict[str, tuple[Colour, float]] = {
    "TP": ((0, 158, 115), 0.30),
    "FP": ((213, 94, 0), 0.62),
    "FN": ((0, 114, 178), 0.62),
}
LONGEST_SIDE = 320
OUTLINES: dict[str, Colour] = {"teacher": (86, 180, 233), "student": (240, 228, 66)}
"""Okabe & Ito's sky blue and yellow, on a dark rim; the student's outline is on top."""
RIM = 32
SHADE = 0.5
NO_LIST = "the run does not record where its images are; give --datalist and --data-root to `samfed report`"
OTHER_LIST = "this data list has another hash than the run's; give --datalist and --data-root of the run"


def draw_overlay(image: Pixels, label: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> Pixels:
    """Shades right and wrong pixels and draws the label's outline.

    Args:
        image: (H, W, 3).
        label, prediction: (H, W).

    Returns:
        (H, W, 3): green where both are set, vermilion where only the prediction is, blue where only the label is.
        The outline is white.
    """
    areas = {"TP": prediction & label, "FP": prediction & ~label, "FN": ~prediction & label}
    picture = _shaded(image, [(where, *COLOURS[kind]) for kind, where in areas.items()])
    picture[surface(label)] = 255
    return picture


def draw_classes(image: Pixels, label: Pixels, prediction: Pixels, count: int) -> Pixels:
    """Shades the prediction and draws the label's outlines, each class in its colour.

    Args:
        image: (H, W, 3).
        label, prediction: (H, W) in 0..K.
        count: K.

    Returns:
        (H, W, 3); see :func:`samfed_monai.data.classes.colour_of`.
    """
    numbers = range(1, count + 1)
    picture = _shaded(image, [(prediction == number, colour_of(number), SHADE) for number in numbers])
    for number in numbers:
        picture[surface(label == number)] = colour_of(number)
    return picture


def _shaded(image: Pixels, areas: Sequence[tuple[NDArray[np.bool_], Colour, float]]) -> Pixels:
    picture = image.astype(np.float32)
    for where, colour, strength in areas:
        picture[where] = (1 - strength) * picture[where] + strength * np.array(colour, np.float32)
    return picture.round().astype(np.uint8)


def draw_outlines(
    image: Pixels, masks: Mapping[str, NDArray[np.bool_]], colours: Mapping[str, Colour] = OUTLINES
) -> Pixels:
    """Draws the outlines of masks, each two pixels wide on a dark rim.

    Args:
        image: (H, W, 3).
        masks: (H, W) by name; the last is on top.
        colours: colour by name.

    Returns:
        (H, W, 3).
    """
    from scipy.ndimage import binary_dilation

    picture = image.copy()
    lines = {name: binary_dilation(surface(mask)) for name, mask in masks.items()}
    for line in lines.values():
        picture[binary_dilation(line)] = RIM
    for name, line in lines.items():
        picture[line] = colours[name]
    return picture


def outlined(picture: Pixels, mask: NDArray[Any]) -> Pixels:
    """Returns a picture (H, W, 3) with the outline of its mask (H, W): bool, or class values, with an outline for each
    class in its colour (:func:`samfed_monai.data.classes.colour_of`)."""
    if mask.dtype == bool:
        return draw_outlines(picture, {"student": mask})
    numbers = range(1, int(mask.max()) + 1)
    lines = {str(each): mask == each for each in numbers}
    return draw_outlines(picture, lines, {str(each): colour_of(each) for each in numbers})


COLUMNS = ("name", "width", "height", "foreground_pixels", "share", "components", "mm2")
"""Columns of a table of areas: a picture's name and size in pixels; its foreground in pixels, as a share in [0, 1], in
connected components (8 neighbours), and in mm² if the pixel size is known."""


def area_of(name: str, mask: NDArray[np.bool_], pixel_area: float | None = None) -> dict[str, Any]:
    """Returns a row of :data:`COLUMNS`.

    Args:
        name: of the picture.
        mask: (H, W).
        pixel_area: area of a pixel in mm², if known.
    """
    from scipy.ndimage import label

    pixels, (height, width) = int(mask.sum()), mask.shape
    pieces = int(label(mask, np.ones((3, 3)))[1])
    row = dict(zip(COLUMNS, (name, width, height, pixels, round(pixels / mask.size, 6), pieces), strict=False))
    return row if pixel_area is None else row | {"mm2": float(f"{pixels * pixel_area:.6g}")}


def polygons_of(mask: NDArray[np.bool_]) -> list[list[list[list[float]]]]:
    """Returns the foreground as GeoJSON polygons, each a closed outer ring followed by the rings of its holes.

    Points are (x, y) in pixels from the picture's upper left corner; a pixel is a square of side 1, and lines run
    halfway between the centres of foreground and background pixels (marching squares, ``contourpy``).

    Args:
        mask: (H, W).
    """
    from contourpy import FillType, contour_generator

    padded = np.pad(mask, 1).astype(np.float64)
    lines = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    return [
        [(points[start:end] - 0.5).tolist() for start, end in pairwise(offsets)]
        for points, offsets in zip(*lines, strict=True)
    ]


def geojson_of(mask: NDArray[Any], *, labels: Sequence[str] = ("foreground",)) -> bytes:
    """Returns a GeoJSON feature collection of :func:`polygons_of`, for QuPath and others.

    Args:
        mask: (H, W) bool, or class values; features of classes have the colours of the outlines.
        labels: name of the foreground, or names of the classes.
    """
    features = []
    for number, label in enumerate(labels, start=1):
        kind = {"name": label, **({"color": list(colour_of(number))} if mask.dtype != bool else {})}
        about = {"objectType": "annotation", "classification": kind}
        features += [
            {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": about}
            for rings in polygons_of(mask == number)
        ]
    return (json.dumps({"type": "FeatureCollection", "features": features}) + "\n").encode()


@dataclass(frozen=True)
class Shown:
    """An image of a report, side by side with a copy that shows its masks.

    Args:
        site: name.
        place: ``best``, ``median`` or ``worst`` by Dice; for an image without a mask its number, from 1.
        id: the image's id.
        dice: between prediction and label, or between student and teacher, in [0, 1].
        hd95: pixels; ``None`` for an image without a mask.
        png: both pictures, side by side.
    """

    site: str
    place: str
    id: str
    dice: float
    hd95: float | None
    png: bytes


def make_overlays(
    run: RunData, *, datalist: str | Path | None, data_root: str | Path | None
) -> tuple[list[Shown], list[str]]:
    """Draws the best, median and worst test image of every site, if masks were kept and images can be read.

    Args:
        run: the run.
        datalist: the data list of the run.
        data_root: folder of its images.

    Returns:
        The images, and notes on sites without images.
    """
    if datalist is None or data_root is None:
        return [], [f"all sites: {NO_LIST}"]
    with suppress(Refused):  # an unreadable list is noted for each site below
        if not run.used(DataList.load(datalist)):
            return [], [f"all sites: {OTHER_LIST}"]  # images may differ despite equal names
    shown, notes = list[Shown](), list[str]()
    for site in run.sites:
        rows = run.image_scores(site)
        if not rows:
            unmasked = not run.results["sites"][site]["test"]["n"]
            reason = "none of its test images has a mask" if unmasked else "no table of test scores in the run folder"
            notes += [f"{site}: {reason}"] * (not run.disagreement(site))  # else see make_own_images
            continue
        with errors_as_notes(notes, site):
            if is_multiclass(run.classes):  # images without any class show nothing
                rows = [row for row in rows if row["empty"] != "both"] or rows
            rows_shown, site_images = best_median_worst(rows), []
            scored = [row["id"] for row in rows_shown.values()]  # files that must not have changed since
            found = load_records(datalist, data_root, split="test", site=site, verify=scored)
            records = {each["id"]: each for each in found}
            for place, row in rows_shown.items():
                mask = run.evaluation(site) / "masks" / (row.get("mask") or f"{row['id']}.png")
                png = _side_by_side(*_draw_test_image(records[row["id"]], mask))
                site_images.append(Shown(site, place, row["id"], row["dice"], row["hd95"], png))
            shown += site_images
    return shown, notes


def make_own_images(
    run: RunData, *, datalist: str | Path | None, data_root: str | Path | None
) -> tuple[list[Shown], list[str]]:
    """Draws, for sites without masks, the images on which student and teacher differ most.

    If a run has a teacher, a site without test masks compares the two itself, after every round and at the end.
    Arguments and return values are those of :func:`make_overlays`.
    """
    if datalist is None or data_root is None:
        return [], [f"{site}: {NO_LIST}" for site in run.student_and_teacher()]
    shown, notes = list[Shown](), list[str]()
    for site in run.student_and_teacher():
        with errors_as_notes(notes, site):
            rows, site_images = [row for row in run.disagreement(site) if row["mask"]], []
            found = load_records(datalist, data_root, split="unlabelled", site=site, verify=[row["id"] for row in rows])
            records = {each["image_sha256"]: each for each in found}
            for number, row in enumerate(rows, start=1):
                image = Image.fromarray(read_image(records[row["image_sha256"]]["image"]))
                size = _size(image)
                pixels = np.array(image.resize(size, Image.Resampling.LANCZOS))
                masks = {}
                for name in OUTLINES:
                    mask = Image.open(run.own_images(site) / name / row["mask"]).convert("L")
                    if is_multiclass(run.classes):  # foreground of all classes
                        mask = mask.point([0] + [255] * 255)
                    masks[name] = _resized(mask, size)
                png = _side_by_side(pixels, draw_outlines(pixels, masks))
                site_images.append(Shown(site, str(number), row["id"], row["dice"], None, png))
            shown += site_images
    return shown, notes


def best_median_worst(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the best, median and worst row by Dice; fewer for fewer than three images."""
    order = sorted(rows, key=lambda row: (-row["dice"], row["id"]))
    if len(order) < 3:
        return dict(zip(("best", "worst"), order, strict=False))
    return {"best": order[0], "median": order[(len(order) - 1) // 2], "worst": order[-1]}


def _draw_test_image(record: dict[str, Any], mask: Path) -> tuple[Pixels, Pixels]:
    """Returns a test image without and with prediction and label: (H, W, 3), longest side :data:`LONGEST_SIDE`."""
    prediction = Image.open(mask).convert("L")
    size = _size(prediction)
    pixels = np.array(Image.fromarray(read_image(record["image"])).resize(size, Image.Resampling.LANCZOS))
    if record.get("classes") is not None:
        count = int(record["classes"])
        values = [Image.fromarray(read_classes(record["label"], count)), prediction]
        truth, found = (np.array(each.resize(size, Image.Resampling.NEAREST)) for each in values)
        return pixels, draw_classes(pixels, truth, found, count)
    label = Image.fromarray(read_mask(record["label"], record.get("mask_threshold")) * np.uint8(255))
    return pixels, draw_overlay(pixels, _resized(label, size), _resized(prediction, size))


def _size(image: Image.Image) -> tuple[int, int]:
    """Returns the width and height of an image scaled to :data:`LONGEST_SIDE`."""
    scale = LONGEST_SIDE / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _side_by_side(left: Pixels, right: Pixels) -> bytes:
    """Returns two pictures side by side as PNG bytes."""
    return png_of(np.concatenate([left, np.full((len(left), 6, 3), 255, np.uint8), right], axis=1))


def _resized(mask: Image.Image, size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.array(mask.resize(size, Image.Resampling.BILINEAR)) > 127


@contextmanager
def errors_as_notes(notes: list[str], site: str) -> Iterator[None]:
    """Turns errors of reading a site's images inside the block into notes, without folder names."""
    try:
        yield
    except KeyError as error:
        notes.append(f"{site}: image {error.args[0]!r} has no readable record or label in the data list")
    except OSError as error:
        notes.append(f"{site}: {error.strerror or type(error).__name__}: {Path(error.filename or '').name}")
    except Refused as error:
        first, *others = error.problems
        more = f" (and {len(others)} more)" if others else ""
        notes.append(f"{site}: {Path(first.where).name}: expected {first.expected}, found {first.found}{more}")
