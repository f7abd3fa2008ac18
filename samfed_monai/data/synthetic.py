"""Synthetic dermoscopy- or colonoscopy-like sites, and CT- or MR-like volumes, for the demo and the tests.

Pigments absorb light as in tissue: ``colour = tissue * exp(-density * absorption)``. Skin and colon use one renderer
with different settings: pigment or blood, hairs or folds, a ruler or print, a tube or a cut frame. A volume is a body
of fat and muscle with a kidney, a spleen, a spine and a gut; CT and MR have the same shapes and different grey values.
These images do not imitate a disease and are no substitute for real images.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from samfed_monai.core.errors import Problem
from samfed_monai.core.io import read_json, sha256_bytes, write_new
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.text import grouped
from samfed_monai.core.validators import one_of, require, whole
from samfed_monai.data.datalist import DataList, Item, Site, require_free
from samfed_monai.data.reading import png_of

logger = logging.getLogger(__name__)

Field = NDArray[np.floating]  # (H, W) float32
Shape = tuple[int, int]
Range = tuple[float, float]  # range of a uniform draw for each picture
Colour = tuple[float, float, float]

MELANIN, BLOOD, HAIR, PRINT = (0.58, 1.0, 1.45), (0.18, 1.0, 0.95), (1.5, 1.8, 2.0), (0.92, 0.92, 0.9)
"""Relative absorption in R, G and B; for print, its colour."""


@dataclass(frozen=True)
class Look:
    """The appearance of a site's pictures; a pair is the range of a uniform draw for each picture.

    Args:
        tissue: RGB of the tissue without pigment under neutral light, each in [0, 1].
        light: RGB gain of lamp and camera (colour cast).
        exposure: gain of all channels.
        tan: density of melanin in the tissue.
        blood: density of haemoglobin in the tissue; its vessels have twice as much.
        pigment: additional melanin in the growth.
        redness: additional haemoglobin in the growth.
        radius: mean radius of the growth as a fraction of the picture's shorter side.
        edge: width of its border as a fraction of its radius.
        ragged: irregularity of the border as a fraction of its radius.
        bulge: height over radius; 0 is flat.
        folds: folds of a tube between its dark end and the picture's edge; 0 is no tube.
        hairs: number of hairs in a picture.
        marks: probability of a ruler, or, in a tube, of printed lines.
        glare: amount of specular highlights.
        framed: probability of a black frame around the picture.
        margin: width of that frame as a fraction of the half picture.
        round: exponent of the frame's shape: 2 is an ellipse, 6 a rectangle with round corners.
        vignette: darkening at the corners, 0 none.
        blur: standard deviation of the camera's blur in pixels, at 256 pixels on the shorter side.
        noise: standard deviation of the sensor's noise, for intensities in [0, 1].
        quality: quality of the JPEG file.
    """

    tissue: Colour
    light: Colour = (1.0, 1.0, 1.0)
    exposure: Range = (0.9, 1.08)
    tan: Range = (0.05, 0.2)
    blood: Range = (0.02, 0.12)
    pigment: Range = (0.55, 1.3)
    redness: Range = (0.0, 0.3)
    radius: Range = (0.16, 0.34)
    edge: Range = (0.05, 0.16)
    ragged: Range = (0.06, 0.16)
    bulge: Range = (0.0, 0.0)
    folds: Range = (0.0, 0.0)
    hairs: Range = (0, 8)
    marks: float = 0.15
    glare: Range = (0.0, 0.1)
    framed: float = 0.15
    margin: Range = (0.0, 0.15)
    round: float = 2.0
    vignette: Range = (0.1, 0.35)
    blur: Range = (0.3, 0.8)
    noise: Range = (0.008, 0.018)
    quality: int = 92


_LOOKS = read_json(Path(__file__).with_name("synthetic_looks.json"))


def _look(settings: Mapping[str, Any], base: Look | None = None) -> Look:
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return replace(base, **given) if base else Look(**given)


PUBLIC = {scene: _look(looks["public"]) for scene, looks in _LOOKS.items()}
"""Look of the public pictures of each scene."""
SITES = {scene: tuple(_look(of, PUBLIC[scene]) for of in looks["sites"]) for scene, looks in _LOOKS.items()}
"""Looks of the first four sites of each scene. Skin: fair and bright with large lesions; tanned and hairy; dim and
greyish, small lesions with rulers; rosy under gel. Colon: red and bright with large polyps and print; brown, dark, in a
wide frame; rosy, blurred, flatter; pale, with glare."""


def look_of(scene: str, index: int, seed: int) -> Look:
    """Returns the look of site number ``index`` (from 0): one of the four, or a variation of them by ``seed``."""
    look = SITES[scene][index % len(SITES[scene])]
    if index < len(SITES[scene]):
        return look
    random = np.random.default_rng(derive_seed(seed, "look", scene, index))
    gains, scale = random.uniform(0.9, 1.08, 3), float(random.uniform(0.75, 1.25))
    red, green, blue = (float(gain * light) for gain, light in zip(gains, look.light, strict=True))
    radius = max(0.07, look.radius[0] * scale), min(0.42, look.radius[1] * scale)
    return replace(look, light=(red, green, blue), radius=radius)


def render_scene(random: np.random.Generator, shape: Shape, look: Look) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Renders one picture and the mask of its growth.

    Args:
        random: random generator; the same state gives the same picture.
        shape: (H, W) in pixels.
        look: the site's look.

    Returns:
        Picture (H, W, 3) uint8 and mask (H, W) uint8 in {0, 255}, never empty. The mask excludes the part of the growth
        that the frame covers.
    """

    def draw(limits: Range) -> float:
        return float(random.uniform(*limits))

    short, visible = min(shape), _frame(random, shape, look)
    radius = draw(look.radius) * short
    inside = _depth_inside(random, shape, _place(random, visible, radius), radius, draw(look.ragged))
    softness = max(draw(look.edge) * radius, 0.7) * np.exp(0.5 * smooth_noise(random, shape, radius))
    body = sigmoid(inside / softness)
    mask = largest_component((body > 0.42) & (visible > 0.5))

    mottle = fractal_noise(random, shape, short / 5, 5, 0.6)
    vessels = ridges(random, shape, short / 6, 11.0) * sigmoid(4 * smooth_noise(random, shape, short / 4))
    blood = draw(look.blood) * (1 + 0.15 * mottle + vessels * (1 - body)) + draw(look.redness) * body
    patches = 1 + draw((0.1, 0.5)) * fractal_noise(random, shape, 0.8 * radius, 4)
    patches *= 0.7 + draw((0.0, 0.7)) * ridges(random, shape, max(2.5, short / 48))
    melanin = draw(look.tan) * (1 + 0.1 * mottle) + draw(look.pigment) * body * np.clip(patches, 0.3, 3)
    layers = [(melanin, MELANIN), (blood, BLOOD), (_hairs(random, shape, round(draw(look.hairs))), HAIR)]
    marked, tube = random.random() < look.marks, look.folds[1] > 0
    if marked and not tube:
        layers.append((_ruler(random, shape), HAIR))

    light, facing = _light(random, inside, radius, draw(look.bulge))
    light *= draw(look.exposure) * _vignette(random, shape, draw(look.vignette))
    if tube:
        light *= _folds(random, shape, draw(look.folds), body)
    channels = [
        np.float32(look.tissue[channel] * look.light[channel])
        * np.exp(-sum(density * np.float32(absorption[channel]) for density, absorption in layers))
        for channel in range(3)
    ]
    image = np.stack(channels, axis=-1) * light[..., None]
    image += (_glare(random, shape, draw(look.glare)) * facing)[..., None] * (1.05 - np.minimum(image, 1))
    image *= visible[..., None]
    if marked and tube:
        _print(random, image)
    return photograph(random, image, blur=look.blur, noise=look.noise), mask.astype(np.uint8) * 255


def _frame(random: np.random.Generator, shape: Shape, look: Look) -> Field:
    """Returns the visibility of the tissue in [0, 1]: 0 behind a frame in the shape of a superellipse."""
    if random.random() >= look.framed:
        return np.ones(shape, np.float32)
    rows, columns = (np.abs(axis) for axis in _axes(shape))
    sides = np.array([1.0, 1.0]) if look.round > 2 else np.array([1.15, shape[0] / shape[1] * 1.25])
    sides *= 1 - float(random.uniform(*look.margin))
    distance = ((rows / sides[0]) ** look.round + (columns / sides[1]) ** look.round) ** (1 / look.round)
    return sigmoid((1 - distance) * np.float32(60))


def _place(random: np.random.Generator, visible: Field, radius: float) -> tuple[float, float]:
    """Returns the centre (row, column) of the growth: the most visible of several random candidates."""
    height, width = visible.shape
    margin = min(1.2 * radius, 0.38 * min(height, width))
    candidates = random.uniform((margin, margin), (height - margin, width - margin), (8, 2))
    visibility = ndimage.uniform_filter(visible, max(1, int(1.4 * radius)))
    best = max(candidates.tolist(), key=lambda centre: round(float(visibility[int(centre[0]), int(centre[1])]), 2))
    return best[0], best[1]


def _depth_inside(
    random: np.random.Generator, shape: Shape, centre: tuple[float, float], radius: float, ragged: float
) -> Field:
    """Returns the signed distance inside the border in pixels: an ellipse with waves and fractal irregularities."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    rows, columns = rows - np.float32(centre[0]), columns - np.float32(centre[1])
    turn, aspect = float(random.uniform(0, np.pi)), float(random.uniform(1.0, 1.6)) ** 0.5
    along = (columns * np.cos(turn) + rows * np.sin(turn)) / np.float32(aspect)
    across = (rows * np.cos(turn) - columns * np.sin(turn)) * np.float32(aspect)
    angle, outline = np.arctan2(across, along), np.ones(shape, np.float32)
    for wave in range(2, 8):
        size, phase = float(random.normal(0, 0.16)) / wave, float(random.uniform(0, 2 * np.pi))
        outline += np.float32(size) * np.cos(wave * angle + np.float32(phase))
    depth = radius * np.clip(outline, 0.45, 1.6) - np.hypot(along, across)
    return depth + np.float32(ragged * radius) * fractal_noise(random, shape, 0.6 * radius, 5, 0.6)


def _light(random: np.random.Generator, inside: Field, radius: float, bulge: float) -> tuple[Field, Field]:
    """Returns the light on a raised growth from a lamp beside the camera, and how much the surface faces the camera."""
    height = np.float32(bulge * radius) * (1 - np.square(1 - np.clip(inside / np.float32(radius), 0, 1)))
    down, right = np.gradient(ndimage.gaussian_filter(height, 0.06 * radius, truncate=2))
    turn, facing = float(random.uniform(0, 2 * np.pi)), 1 / np.sqrt(1 + down**2 + right**2)
    lamp = np.float32(0.4) * (down * np.sin(turn) + right * np.cos(turn)) * facing
    return np.clip(0.4 + 0.6 * facing - lamp, 0.2, 1.3).astype(np.float32), np.square(facing).astype(np.float32)


def _vignette(random: np.random.Generator, shape: Shape, strength: float) -> Field:
    """Returns light with a gradient across the picture and darker corners."""
    rows, columns = _axes(shape)
    turn, slope = float(random.uniform(0, 2 * np.pi)), float(random.uniform(0, 0.12))
    tilt = 1 + np.float32(slope) * (rows * np.float32(np.sin(turn)) + columns * np.float32(np.cos(turn)))
    return tilt * (1 - np.float32(strength / 2) * (rows**2 + columns**2))


def _folds(random: np.random.Generator, shape: Shape, folds: float, body: Field) -> Field:
    """Returns the light in a tube: darker towards its far end, with the shadows of folds as rings around that end.

    The rings are evenly spaced in the logarithm of the distance to the end.
    """
    rows, columns = _axes(shape)
    end = random.uniform(-1.1, 1.1, 2).astype(np.float32)
    distance = np.hypot(rows - end[0], columns - end[1]) * (1 + 0.12 * smooth_noise(random, shape, min(shape) / 2))
    distance = np.maximum(distance, 0.01).astype(np.float32)
    phase = np.log(distance + np.float32(0.1)) * np.float32(folds) + np.float32(random.uniform(0, 1))
    phase += 0.1 * smooth_noise(random, shape, min(shape) / 2)
    step = phase - np.floor(phase)
    tall = np.clip(0.5 + 0.5 * smooth_noise(random, shape, min(shape) / 1.6), 0, 1)
    shade = 1 - tall * (1 - 0.8 * body) * (0.5 * np.exp((step - 1) * 6) - 0.2 * np.exp(-step * 8))
    far = np.square(distance) / (np.square(distance) + np.float32(random.uniform(0.03, 0.15)))
    return ndimage.gaussian_filter((shade * (far + (1 - far) * 0.6 * body)).astype(np.float32), min(shape) / 170)


def _glare(random: np.random.Generator, shape: Shape, amount: float) -> Field:
    """Returns specular highlights in [0, 1], as clusters of spots."""
    fine = smooth_noise(random, shape, max(2.0, min(shape) / 40))
    where = np.clip(smooth_noise(random, shape, min(shape) / 4), -1, 2)
    return sigmoid(14 * (fine - (3.6 - 0.6 * amount - 0.6 * where))) * np.float32(min(1, 2 * amount))


_SUPERSAMPLING = 3  # supersampling of lines, as PIL does not antialias them


def _lines(shape: Shape, lines: list[tuple[NDArray[np.float64], float]]) -> Field:
    """Returns the coverage in [0, 1] by lines, each (N, 2) points (column, row) and a width, in pixels."""
    canvas = Image.new("L", (shape[1] * _SUPERSAMPLING, shape[0] * _SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for points, width in lines:
        corners = (points * _SUPERSAMPLING).flatten().tolist()
        pen.line(corners, fill=255, width=max(1, round(width * _SUPERSAMPLING)), joint="curve")
    return np.asarray(canvas.reduce(_SUPERSAMPLING), np.float32) / np.float32(255)


def _hairs(random: np.random.Generator, shape: Shape, count: int) -> Field:
    """Returns the coverage by curved hairs of roughly one direction."""
    size, steps, main = np.array(shape[::-1], float), np.linspace(0, 1, 14)[:, None], random.uniform(0, 2 * np.pi)
    lines = []
    for _ in range(count):
        turn, length = main + random.normal(0, 0.5), size.max() * random.uniform(0.15, 1.1)
        way = length * np.array([np.cos(turn), np.sin(turn)])
        bend = random.normal(0, 0.16) * np.array([-way[1], way[0]])
        start = random.uniform(-0.1, 1.1, 2) * size - 0.4 * way
        width = size.min() / 256 * random.uniform(0.5, 1.6)
        lines.append((start + steps * way + 4 * steps * (1 - steps) * bend, width))
    return _lines(shape, lines)


def _ruler(random: np.random.Generator, shape: Shape) -> Field:
    """Returns the coverage by a millimetre scale near the lower or upper edge."""
    height, width = shape
    step, edge = width * random.uniform(0.025, 0.05), random.choice([0.06, 0.92])
    start = np.array([width * random.uniform(0.0, 0.4), height * edge])
    ticks = [np.array([[step * n, 0], [step * n, step * (1.3 if n % 5 == 0 else 0.7)]]) + start for n in range(20)]
    return _lines(shape, [(line, width / 320) for line in [*ticks, start + np.array([[0, 0], [19 * step, 0]])]])


def _print(random: np.random.Generator, image: NDArray[np.floating]) -> None:
    """Draws lines of small bright marks at the upper left, like unreadable print."""
    step = max(3, min(image.shape[:2]) // 42)
    for line in range(int(random.integers(2, 5))):
        marks = random.random((step, int(random.integers(4, 11)) * step)) < 0.45
        marks[:, ::step] = False
        row = (6 + 2 * line) * step
        image[row : row + step, 3 : 3 + marks.shape[1]][marks[:, : image.shape[1] - 3]] = PRINT


def _axes(shape: Shape) -> tuple[Field, Field]:
    """Returns rows and columns from -1 to 1, as (H, 1) and (1, W)."""
    rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    return rows[:, None], columns[None]


def smooth_noise(random: np.random.Generator, shape: Shape, cell: float) -> Field:
    """Returns a random field (H, W) float32 with mean about 0, deviation about 1, and features ``cell`` pixels wide."""
    height, width = shape
    rows, columns = int(np.ceil(height / cell)) + 3, int(np.ceil(width / cell)) + 3
    grid = Image.fromarray(random.standard_normal((rows, columns), dtype=np.float32))
    left, top = (float(value) for value in random.uniform(0.5, 1.5, 2))
    box = (left, top, left + width / cell, top + height / cell)
    # 1.5: bicubic interpolation lowers the deviation to about two thirds
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC, box=box)) * np.float32(1.5)


def fractal_noise(random: np.random.Generator, shape: Shape, cell: float, octaves: int = 4, gain: float = 0.5) -> Field:
    """Sums smooth fields, each half as wide and ``gain`` times as strong as the one before; deviation about 1."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        total += np.float32(gain**octave) * smooth_noise(random, shape, max(cell / 2**octave, 1.0))
    return total / np.float32(np.sqrt(sum(gain ** (2 * octave) for octave in range(octaves))))


def ridges(random: np.random.Generator, shape: Shape, cell: float, sharpness: float = 2.5) -> Field:
    """Returns a net of thin lines in [0, 1] where a smooth field changes its sign: pigment network, vessels."""
    field = smooth_noise(random, shape, cell) + 0.35 * smooth_noise(random, shape, cell / 2)
    return np.exp(-np.square(sharpness * field)).astype(np.float32)


def sigmoid(field: Field) -> Field:
    """Logistic function of a field, without overflow."""
    return (0.5 * (1.0 + np.tanh(0.5 * field))).astype(np.float32)


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the largest connected component of a mask, opened and with its holes filled."""
    opened = ndimage.binary_opening(mask)
    parts, _ = ndimage.label(opened if opened.any() else mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return ndimage.binary_fill_holes(parts == sizes.argmax())


def photograph(random: np.random.Generator, image: NDArray, *, blur: Range, noise: Range) -> NDArray[np.uint8]:
    """Applies lens blur, camera contrast and sensor noise, and converts to 8 bits.

    Args:
        random: random generator.
        image: (H, W, 3) light, 1 is white.
        blur: range of the blur's standard deviation in pixels, at 256 pixels on the shorter side.
        noise: range of the noise's standard deviation, for intensities in [0, 1].
    """
    sigma = float(random.uniform(*blur)) * min(image.shape[:2]) / 256
    image = ndimage.gaussian_filter(image, (sigma, sigma, 0), truncate=3)
    grain = random.standard_normal(image.shape, dtype=np.float32) * np.float32(random.uniform(*noise))
    image = np.clip(image, 0, None) ** np.float32(random.uniform(0.9, 1.15)) + grain
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


PUBLIC_FOLDER = "public"
_SMALLEST = 64  # pixels; below, hairs and rulers are thinner than a pixel, and lesions only a few pixels
_SPLIT_STRIDE = 100_000  # first index of each split: more unlabelled images do not change the other splits


def render_synthetic(
    folder: str | Path,
    *,
    scene: str = "skin",
    sites: int = 4,
    labelled: bool = False,
    images_per_site: int = 40,
    public: int = 24,
    validation: int = 8,
    test: int = 12,
    size: tuple[int, int] = (192, 256),
    seed: int = 0,
    output: str | Path | None = None,
) -> DataList:
    """Renders sites that look different from each other and returns their data list.

    Image ``index`` of a site depends only on ``(seed, site, index)``: more images or sites do not change existing ones.
    The public images have a plain look; every site differs from it (colour cast, light, size of the growths; hair,
    rulers and skin tone, or frame, print and glare). The images do not imitate any diagnosis and are no substitute for
    real images.

    Args:
        folder: folder for ``<site>/images/*.jpg`` and ``<site>/masks/*.png`` (values 0 and 255); the public images are
            in ``public/``.
        scene: ``"skin"`` (pigmented lesions) or ``"polyp"`` (polyps in the colon; the public ones are small).
        sites: number of sites, named ``site-1``, ``site-2``, …; the first four have fixed looks, others vary these.
        labelled: whether to write masks of the unlabelled images too (the oracle variant needs them).
        images_per_site: number of unlabelled images of each site.
        public: number of labelled public images.
        validation: number of labelled validation images of each site.
        test: number of labelled test images of each site.
        size: (H, W) in pixels, at least 64 each.
        seed: every seed gives other images.
        output: file for the list; one that holds another list is refused before any image is rendered.

    Returns:
        A :class:`~samfed_monai.data.DataList` whose paths are relative to ``folder``; it is not saved.

    Raises:
        Refused: a count or size is out of range; ``output`` holds another list.
    """
    splits = {"unlabelled": images_per_site, "validation": validation, "test": test}
    counts = {"--images-per-site": images_per_site, "--public": public, "validation": validation, "test": test}
    require(
        one_of("--scene", scene, PUBLIC),
        whole("--sites", sites, least=1),
        *(whole(name, count, least=0, most=_SPLIT_STRIDE - 1) for name, count in counts.items()),
        _size_problems(size, _SMALLEST),
    )
    folder, purpose = Path(folder), ("synthetic",) if scene == "skin" else ("synthetic", scene)
    bar = progress_bar(total=public + sites * sum(splits.values()), desc="synthetic", unit="image")

    def render(site: str, index: int, look: Look, item: Item) -> Item:
        image, mask = render_scene(np.random.default_rng(derive_seed(seed, *purpose, site, index)), size, look)
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, format="JPEG", quality=look.quality)
        sha256 = _save(folder / item.image, stream.getvalue())
        bar.update()
        return Item(item.image, sha256, item.label, _save(folder / item.label, png_of(mask)) if item.label else None)

    named = [(("", "public"), index, PUBLIC[scene], _item(PUBLIC_FOLDER, index, True)) for index in range(public)]
    for number, (start, (split, count)) in product(range(sites), enumerate(splits.items())):
        name, look = f"site-{number + 1}", look_of(scene, number, seed)
        for index in range(start * _SPLIT_STRIDE, start * _SPLIT_STRIDE + count):
            named.append(((name, split), index, look, _item(name, index, labelled or split != "unlabelled")))
    list_name = "-".join([*purpose, str(seed)])
    if output is not None:
        require_free(output, name=list_name, files={(*place, item.image, item.label) for place, _, _, item in named})
    with bar:
        pairs = ((place, render(place[0] or PUBLIC_FOLDER, index, look, item)) for place, index, look, item in named)
        rendered = grouped(pairs)
    logger.info("rendered %d synthetic images of %d sites into %s", bar.total, sites, folder)
    names = [f"site-{number + 1}" for number in range(sites)]
    entries = {name: Site(**{split: rendered.get((name, split), []) for split in splits}) for name in names}
    return DataList(list_name, rendered.get(("", "public"), []), entries)


def _item(site: str, index: int, with_mask: bool) -> Item:
    """Returns an image to render, with its mask's path if it gets one."""
    name = f"{site}_{index:06d}"
    return Item(f"{site}/images/{name}.jpg", "", f"{site}/masks/{name}.png" if with_mask else None)


def _size_problems(size: Sequence[int], least: int, most: float = math.inf) -> list[Problem]:
    fits = len(size) == 2 and least <= min(size) <= max(size) <= most
    expected = f"(H, W), each at least {least}" + (f" and at most {most}" if most < math.inf else "")
    return [] if fits else [Problem("--size", str(tuple(size)), expected)]


def _save(path: Path, content: bytes) -> str:
    """Writes an image or a volume atomically, without replacing another, and returns the SHA-256 of its bytes."""
    write_new({path: content}, {}, hint="render another seed, scene or size into a new folder")
    return sha256_bytes(content)


Volume = NDArray[np.int16]

CLASSES = ("kidney", "spleen")
"""Names of the organs, whose values in labels are 1 and 2."""
_THINNEST, _DEEPEST = 32, 512


@dataclass(frozen=True)
class Scanner:
    """The appearance of a site's volumes.

    Args:
        values: grey values of air, fat, muscle, bone, gut, kidney and spleen.
        noise: standard deviation of the noise, in grey values; Rician noise for MR.
        bias: amplitude of the bias field of an MR coil; 0 for CT.
        spacing: mm of a voxel along the three axes.
        degrees: rotation of the volume's axes against the scanner's, about the third.
        mirrored: whether the first axis runs from right to left, as in most DICOM series.
    """

    values: tuple[float, ...]
    noise: float
    bias: float
    spacing: tuple[float, float, float]
    degrees: float = 0.0
    mirrored: bool = False


CT = Scanner((-1000, -100, 50, 700, 20, 190, 120), 14, 0.0, (1.5, 1.5, 3.0), 0.0, True)
MR = Scanner((10, 880, 300, 90, 480, 620, 430), 22, 0.3, (1.8, 1.8, 4.0), 6.0, False)
SCANNERS = {"ct": CT, "mr": MR}
"""Scanners of the sites; the public volumes alternate between them."""


ELLIPSOIDS = read_json(Path(__file__).with_name("synthetic_organs.json"))
"""Ellipsoids of fat, muscle, bone, gut, kidney and spleen: (tissue, centre, half axes) in units of half the volume."""


def render_volume(random: np.random.Generator, shape: Sequence[int], scanner: Scanner) -> tuple[Volume, Volume]:
    """Renders one volume.

    Args:
        random: random generator.
        shape: voxels along (X, Y, Z); slices are along Z.
        scanner: appearance of the tissues.

    Returns:
        Grey values, and the label in {0, 1, 2}; both (X, Y, Z) int16.
    """
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    tissue = np.zeros(shape, int)
    for number, centre, half in ELLIPSOIDS:
        position, size = centre + random.normal(0, 0.04, 3) * (number > 2), random.uniform(0.9, 1.1) * np.array(half)
        angle = math.radians(random.uniform(-20, 20)) * (number > 2)
        across = (x - position[0]) * math.cos(angle) + (y - position[1]) * math.sin(angle)
        along = (y - position[1]) * math.cos(angle) - (x - position[0]) * math.sin(angle)
        tissue[(across / size[0]) ** 2 + (along / size[1]) ** 2 + ((z - position[2]) / size[2]) ** 2 < 1] = number
    label = np.where(tissue >= 5, tissue - 4, 0).astype(np.int16)
    grey = ndimage.gaussian_filter(np.array(scanner.values, float)[tissue], (0.6, 0.6, 0.2))
    noise = random.normal(0, scanner.noise, (2, *grey.shape))
    if scanner.bias:
        slope = random.uniform(-1, 1, 3) * scanner.bias
        field = 1 + slope[0] * x + slope[1] * y + slope[2] * z * 0.5
        grey = np.hypot(np.maximum(grey, 0) * field + noise[0], noise[1])
    else:
        grey = grey + noise[0]
    return np.rint(grey).astype(np.int16), label


def affine_of(scanner: Scanner, shape: Sequence[int]) -> NDArray[np.float64]:
    """Returns the 4 x 4 matrix from voxel indices to mm, with the volume's centre at 0."""
    angle = math.radians(scanner.degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    scale = np.array(scanner.spacing) * (-1 if scanner.mirrored else 1, 1, 1)
    affine = np.eye(4)
    affine[:3, :3] = turn * scale
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def render_volumes(
    folder: str | Path,
    *,
    volumes: int = 6,
    public: int = 4,
    size: tuple[int, int] = (96, 96),
    depth: int = 12,
    seed: int = 0,
) -> list[str]:
    """Writes a CT-like and an MR-like site and a public set: ``<site>/{images,masks}/<site>_NN.nii.gz``.

    Volume ``index`` of a site depends only on ``(seed, site, index)`` and on the size. All volumes have masks;
    `samfed prepare nifti` decides which of them a list names.

    Args:
        folder: folder for the sites ``ct``, ``mr`` and ``public``.
        volumes: number of volumes of each of the two sites, at least 1.
        public: number of public volumes, alternately CT-like and MR-like.
        size: rows and columns of a slice, at least 32 each.
        depth: slices of a volume.
        seed: every seed gives other volumes.

    Returns:
        Names of the sites.

    Raises:
        Refused: a count or size is out of range, or a different volume has the same path.
    """
    import nibabel

    require(
        whole("--volumes", volumes, least=1, most=_DEEPEST),
        whole("--public", public, least=0, most=_DEEPEST),
        whole("depth", depth, least=4, most=_DEEPEST),
        _size_problems(size, _THINNEST, _DEEPEST),
    )
    shape = (size[1], size[0], depth)
    counts = dict.fromkeys(SCANNERS, volumes) | ({PUBLIC_FOLDER: public} if public else {})
    with progress_bar(total=sum(counts.values()), desc="synthetic", unit="volume") as bar:
        for site, count in counts.items():
            for index in range(count):
                scanner = SCANNERS.get(site) or (CT, MR)[index % 2]
                random = np.random.default_rng(derive_seed(seed, "synthetic", "volumes", site, index))
                for kind, data in zip(("images", "masks"), render_volume(random, shape, scanner), strict=True):
                    image = nibabel.Nifti1Image(data, affine_of(scanner, shape))
                    image.header.set_xyzt_units("mm")
                    content = gzip.compress(image.to_bytes(), mtime=0)
                    _save(Path(folder) / site / kind / f"{site}_{index + 1:02d}.nii.gz", content)
                bar.update()
    return list(counts)
