"""Overlays of the best, the median and the worst test image of every site; without masks, of student and teacher."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samfed_monai.core.errors import Problem, Refused, SamFedError
from samfed_monai.core.io import PRIVATE
from samfed_monai.data import load_records, read_image, read_mask
from samfed_monai.data.classes import colour_of, read_classes, several
from samfed_monai.data.reading import png_of
from samfed_monai.metrics import surface
from samfed_monai.reports.run_data import RunData

# Okabe & Ito's green, vermilion and blue; the strengths let the skin shine through where nothing is wrong.
COLOURS = {"TP": ((0, 158, 115), 0.30), "FP": ((213, 94, 0), 0.62), "FN": ((0, 114, 178), 0.62)}
PLACES = ("best", "median", "worst")
LONGEST_SIDE = 320
OUTLINES = {"teacher": (86, 180, 233), "student": (240, 228, 66)}
"""Okabe & Ito's sky blue and yellow, on a dark rim; where both run along each other, the student's is on top."""
RIM = 32
SHADE = 0.5
GIVE = "the run does not record where its images are; give --datalist and --data-root to `samfed report`"


@dataclass(frozen=True)
class Overlay:
    """One test image beside its overlay.

    Args:
        site: name.
        place: ``best``, ``median`` or ``worst`` by Dice.
        id: the image's id.
        dice: in [0, 1].
        hd95: pixels.
        png: the image and its overlay, side by side.
    """

    site: str
    place: str
    id: str
    dice: float
    hd95: float
    png: bytes


@dataclass(frozen=True)
class OwnImage:
    """An image without a mask, with the outlines of student and teacher.

    Args:
        id: the image's id.
        dice: between the two masks, in [0, 1].
        png: the image, and the same with the outlines, side by side.
    """

    id: str
    dice: float
    png: bytes


@dataclass(frozen=True)
class OwnImages:
    """A site whose images have no masks.

    Args:
        site: name.
        count: images that student and teacher were compared on.
        dice: mean Dice between their masks.
        apart: how many of them are below a Dice of 0.5.
        shown: those with the lowest Dice, lowest first.
    """

    site: str
    count: int
    dice: float
    apart: int
    shown: list[OwnImage]


def make_own_images(
    run: RunData, *, datalist: str | Path | None, data_root: str | Path | None
) -> tuple[list[OwnImages], list[str]]:
    """What sites without masks can look at: those of their images on which student and teacher differ most.

    A site compares the two itself, after every round and at the end, where none of its test images has a mask and
    the run has a teacher; sites that did not are left out here.

    Args:
        run: the run.
        datalist: the data list of the run.
        data_root: folder of its images.

    Returns:
        Sites that compared, and notes on those of them whose images cannot be read.
    """
    sites: list[OwnImages] = []
    notes: list[str] = []
    for site in run.sites:
        rows = run.disagreement(site)
        if not rows:
            continue
        shown: list[OwnImage] = []
        if datalist is None or data_root is None:
            notes.append(f"{site}: {GIVE}")
        else:
            with noted(notes, site):
                shown = _own(run, site, [row for row in rows if row["mask"]], datalist, data_root)
        dices = [row["dice"] for row in rows]
        sites.append(OwnImages(site, len(rows), sum(dices) / len(rows), sum(dice < 0.5 for dice in dices), shown))
    return sites, notes


def make_overlays(
    run: RunData, *, datalist: str | Path | None, data_root: str | Path | None
) -> tuple[list[Overlay], list[str]]:
    """Overlays of every site of a run that kept its masks and whose images can be read.

    Args:
        run: the run.
        datalist: the data list of the run.
        data_root: folder of its images.

    Returns:
        The overlays, and notes on the sites without.
    """
    if datalist is None or data_root is None:
        return [], [f"all sites: {GIVE}"]
    overlays: list[Overlay] = []
    notes: list[str] = []
    for site in run.sites:
        rows = run.image_scores(site)
        if not rows and run.disagreement(site):
            continue  # it has no masks: see make_own_images
        if not rows:
            none = not run.results["sites"][site]["test"]["n"]
            why = "none of its test images has a mask" if none else "no table of test scores in the run folder"
            notes.append(f"{site}: {why}")
        else:
            with noted(notes, site):
                overlays += _of_site(run, site, rows, datalist, data_root)
    return overlays, notes


def chosen(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Best, median and worst row by Dice; fewer where there are fewer images."""
    order = sorted(rows, key=lambda row: (-row["dice"], row["id"]))
    picks = {"best": order[0], "median": order[(len(order) - 1) // 2], "worst": order[-1]}
    unique: dict[str, dict[str, Any]] = {}
    for place in ("best", "worst", "median"):
        if all(picks[place] is not row for row in unique.values()):
            unique[place] = picks[place]
    return {place: unique[place] for place in PLACES if place in unique}


def draw_overlay(image: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Shades right and wrong pixels and draws the label's outline.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) bool.
        prediction: (H, W) bool.

    Returns:
        (H, W, 3) uint8: green where both are set, vermilion where only the prediction is, blue where only the label is.
    """
    picture = image.astype(np.float32)
    for kind, where in {"TP": prediction & label, "FP": prediction & ~label, "FN": ~prediction & label}.items():
        colour, strength = COLOURS[kind]
        picture[where] = (1 - strength) * picture[where] + strength * np.array(colour, np.float32)
    picture[surface(label)] = 255
    return picture.round().astype(np.uint8)


def draw_classes(image: np.ndarray, label: np.ndarray, prediction: np.ndarray, count: int) -> np.ndarray:
    """Shades what was predicted and draws the label's outlines, each class in its colour.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) in 0..K.
        prediction: the same.
        count: K.

    Returns:
        (H, W, 3) uint8; see :func:`samfed_monai.data.classes.colour_of`.
    """
    picture = image.astype(np.float32)
    for number in range(1, count + 1):
        found = prediction == number
        picture[found] = (1 - SHADE) * picture[found] + SHADE * np.array(colour_of(number), np.float32)
    for number in range(1, count + 1):
        picture[surface(label == number)] = colour_of(number)
    return picture.round().astype(np.uint8)


def draw_outlines(
    image: np.ndarray, masks: Mapping[str, np.ndarray], colours: Mapping[str, tuple[int, int, int]] | None = None
) -> np.ndarray:
    """Draws the outlines of masks, each two pixels wide on a dark rim.

    Args:
        image: (H, W, 3) uint8.
        masks: names to (H, W) bool; the last is on top.
        colours: names to colours; ``None`` is :data:`OUTLINES`.

    Returns:
        (H, W, 3) uint8.
    """
    from scipy.ndimage import binary_dilation

    picture = image.copy()
    lines = {name: binary_dilation(surface(mask)) for name, mask in masks.items()}
    for line in lines.values():
        picture[binary_dilation(line)] = RIM
    for name, line in lines.items():
        picture[line] = (colours or OUTLINES)[name]
    return picture


def _own(
    run: RunData, site: str, rows: list[dict[str, Any]], datalist: str | Path, data_root: str | Path
) -> list[OwnImage]:
    records = {
        record["image_sha256"]: record for record in load_records(datalist, data_root, split="unlabelled", site=site)
    }
    folder = run.own_images(site)
    shown = []
    for row in rows:
        image = Image.fromarray(read_image(records[row["image_sha256"]]["image"]))
        size = _size(image)
        pixels = np.array(image.resize(size, Image.Resampling.LANCZOS))
        masks = {whose: _resized(_seen(folder / whose / row["mask"], several(run.classes)), size) for whose in OUTLINES}
        shown.append(OwnImage(row["id"], row["dice"], _beside(pixels, draw_outlines(pixels, masks))))
    return shown


def _of_site(
    run: RunData, site: str, rows: list[dict[str, Any]], datalist: str | Path, data_root: str | Path
) -> list[Overlay]:
    records = {record["id"]: record for record in load_records(datalist, data_root, split="test", site=site)}
    masks = run.evaluation(site) / "masks"
    if several(run.classes):  # an image without any of them shows nothing
        rows = [row for row in rows if row["empty"] != "both"] or rows
    pictures = {
        place: _beside(*drawn(records[row["id"]], masks / mask_name(row))) for place, row in chosen(rows).items()
    }
    return [
        Overlay(site, place, row["id"], row["dice"], row["hd95"], pictures[place])
        for place, row in chosen(rows).items()
    ]


def drawn(record: dict[str, Any], mask: Path) -> tuple[np.ndarray, np.ndarray]:
    """A test image, and the same with a predicted mask and its label on it: (H, W, 3) uint8, :data:`LONGEST_SIDE` long.

    Args:
        record: of the image, with its label.
        mask: file of the prediction.
    """
    prediction = Image.open(mask).convert("L")
    size = _size(prediction)
    image = Image.fromarray(read_image(record["image"])).resize(size, Image.Resampling.LANCZOS)
    pixels = np.array(image)
    if record.get("classes") is not None:
        count = int(record["classes"])
        values = [prediction, Image.fromarray(read_classes(record["label"], count))]
        found, truth = (np.array(each.resize(size, Image.Resampling.NEAREST)) for each in values)
        return pixels, draw_classes(pixels, truth, found, count)
    label = Image.fromarray(read_mask(record["label"], record.get("mask_threshold")) * np.uint8(255))
    return pixels, draw_overlay(pixels, _resized(label, size), _resized(prediction, size))


def _size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture of this aspect."""
    scale = LONGEST_SIDE / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _beside(left: np.ndarray, right: np.ndarray) -> bytes:
    """PNG bytes of two pictures side by side."""
    gap = np.full((len(left), 6, 3), 255, np.uint8)
    return png_of(np.concatenate([left, gap, right], axis=1))


def _resized(mask: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return np.array(mask.resize(size, Image.Resampling.BILINEAR)) > 127


def _seen(path: Path, of_classes: bool) -> Image.Image:
    """A mask of 0 and 255, also of one of several classes, whose foreground it then is."""
    image = Image.open(path).convert("L")
    return image.point([0] + [255] * 255) if of_classes else image


def mask_name(row: dict[str, Any]) -> str:
    """The file of a scored image's mask."""
    return row.get("mask") or f"{row['id']}.png"


@contextmanager
def noted(notes: list[str], site: str) -> Iterator[None]:
    """Adds why a site's images cannot be read to the notes, without the folder that they are in."""
    try:
        yield
    except KeyError as error:
        notes.append(f"{site}: image {error.args[0]!r} has no readable record or label in the data list")
    except OSError as error:
        notes.append(f"{site}: {error.strerror or type(error).__name__}: {Path(error.filename or '').name}")
    except SamFedError as error:
        first, *others = error.problems if isinstance(error, Refused) else [Problem("", type(error).__name__, "")]
        more = f" (and {len(others)} more)" if others else ""
        notes.append(f"{site}: {first.found}: {Path(first.where).name}{more}")


def show_pictures(folder: Path, pictures: Mapping[str, bytes], step: int) -> None:
    """Adds pictures to a run's TensorBoard, where it has one, in a file that its owner alone may read.

    Args:
        folder: of the run.
        pictures: tag to PNG; none of them leaves TensorBoard as it is.
        step: the number of rounds; pictures of the same step are replaced.
    """
    there, suffix = folder / "tensorboard", f".pictures-{step}"
    package = find_spec("tensorboard")
    if not pictures or not there.is_dir() or package is None or package.origin is None:
        return
    from torch.utils.tensorboard import SummaryWriter

    for path in there.glob(f"*{suffix}"):
        path.unlink()
    with SummaryWriter(str(there), filename_suffix=suffix) as writer:
        for path in there.glob(f"*{suffix}"):
            path.chmod(PRIVATE)
        for tag, png in pictures.items():
            writer.add_image(tag, np.asarray(Image.open(io.BytesIO(png)).convert("RGB")), step, dataformats="HWC")
