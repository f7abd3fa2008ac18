"""Synthetic dermoscopy- or colonoscopy-like sites on disk, for the demo and the tests; no two sites look alike.

Light is treated as in a photograph of tissue: pigments absorb, ``colour = tissue * exp(-density * absorption)``. Skin
and colon are one scene with two palettes: pigment or blood, hairs or folds, a ruler or print, a tube or a cut frame.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from samfed_monai.core.errors import Problems, refused
from samfed_monai.core.io import read_json, sha256_bytes, write_bytes
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.seeds import derive_seed
from samfed_monai.data.datalist import DataList, Item, Site

Field = NDArray[np.floating]  # (H, W) float32
Shape = tuple[int, int]
Range = tuple[float, float]  # of a uniform draw for each picture
Colour = tuple[float, float, float]

MELANIN, BLOOD, HAIR, PRINT = (0.58, 1.0, 1.45), (0.18, 1.0, 0.95), (1.5, 1.8, 2.0), (0.92, 0.92, 0.9)
"""Relative absorption in R, G and B; of print, its colour."""


@dataclass(frozen=True)
class Look:
    """How the pictures of a site are distributed; a pair is the range of a uniform draw for each picture.

    Args:
        tissue: RGB of the tissue without pigment under neutral light, each in [0, 1].
        light: RGB gain of lamp and camera (colour cast).
        exposure: gain of all channels.
        tan: density of melanin in the tissue.
        blood: density of haemoglobin in the tissue; its vessels have twice as much.
        pigment: melanin of the growth beyond the tissue's.
        redness: haemoglobin of the growth beyond the tissue's.
        radius: mean radius of the growth as a fraction of the picture's shorter side.
        edge: width of its border as a fraction of its radius.
        ragged: how far the border strays, likewise.
        bulge: height over radius; 0 is flat.
        folds: folds of a tube between its dark end and the picture's edge; 0 is no tube.
        hairs: hairs in a picture.
        marks: chance of a ruler, or, in a tube, of printed lines.
        glare: amount of specular highlights.
        framed: chance of a black frame, behind which nothing is seen.
        margin: width of that frame as a fraction of the half picture.
        round: exponent of the frame's shape: 2 is an ellipse, 6 a rectangle with round corners.
        vignette: darkening at the corners, 0 none.
        blur: deviation of the camera's blur in pixels, at 256 pixels on the shorter side.
        noise: deviation of the sensor's noise, in [0, 1] intensities.
        quality: of the JPEG file.
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


def _look(of: Mapping[str, Any], base: Look | None = None) -> Look:
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in of.items()}
    return replace(base, **given) if base else Look(**given)


PUBLIC = {scene: _look(looks["public"]) for scene, looks in _LOOKS.items()}
"""Look of the public pictures of each scene."""
SITES = {scene: tuple(_look(of, PUBLIC[scene]) for of in looks["sites"]) for scene, looks in _LOOKS.items()}
"""Looks of the first four sites of each scene. Skin: fair and bright with big lesions; tanned and hairy; dim, greyish,
small lesions with rulers; rosy under gel. Colon: red and bright with big polyps and print; brown, dark, in a wide
frame; rosy, blurred, flatter; pale, glaring."""


def look_of(scene: str, index: int, seed: int) -> Look:
    """Look of the site number ``index`` (from 0): one of the four, or a variation of them by ``seed``."""
    look = SITES[scene][index % len(SITES[scene])]
    if index < len(SITES[scene]):
        return look
    random = np.random.default_rng(derive_seed(seed, "look", scene, index))
    gains, scale = random.uniform(0.9, 1.08, 3), float(random.uniform(0.75, 1.25))
    red, green, blue = (float(gain * light) for gain, light in zip(gains, look.light, strict=True))
    return replace(
        look, light=(red, green, blue), radius=(max(0.07, look.radius[0] * scale), min(0.42, look.radius[1] * scale))
    )


def render_scene(random: np.random.Generator, shape: Shape, look: Look) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Renders one picture and the growth's outline.

    Args:
        random: what is drawn from; the same state gives the same picture.
        shape: (H, W) in pixels.
        look: the site's look.

    Returns:
        picture (H, W, 3) uint8 and mask (H, W) uint8 in {0, 255}, never empty. The mask ends where the frame covers
        the growth.
    """

    def drawn(limits: Range) -> float:
        return float(random.uniform(*limits))

    short, visible = min(shape), _frame(random, shape, look)
    radius = drawn(look.radius) * short
    centre = _place(random, visible, radius)
    inside = _depth_inside(random, shape, centre, radius, drawn(look.ragged))
    softness = max(drawn(look.edge) * radius, 0.7) * np.exp(0.5 * smooth_noise(random, shape, radius))
    body = sigmoid(inside / softness)
    mask = one_piece((body > 0.42) & (visible > 0.5))

    mottle = fractal_noise(random, shape, short / 5, 5, 0.6)
    vessels = ridges(random, shape, short / 6, 11.0) * sigmoid(4 * smooth_noise(random, shape, short / 4))
    blood = drawn(look.blood) * (1 + 0.15 * mottle + vessels * (1 - body)) + drawn(look.redness) * body
    patches = 1 + drawn((0.1, 0.5)) * fractal_noise(random, shape, 0.8 * radius, 4)
    patches *= 0.7 + drawn((0.0, 0.7)) * ridges(random, shape, max(2.5, short / 48))
    melanin = drawn(look.tan) * (1 + 0.1 * mottle) + drawn(look.pigment) * body * np.clip(patches, 0.3, 3)
    layers = [(melanin, MELANIN), (blood, BLOOD), (_hairs(random, shape, round(drawn(look.hairs))), HAIR)]
    marked, tube = random.random() < look.marks, look.folds[1] > 0
    if marked and not tube:
        layers.append((_ruler(random, shape), HAIR))

    light, facing = _light(random, shape, inside, radius, drawn(look.bulge))
    light *= drawn(look.exposure) * _vignette(random, shape, drawn(look.vignette))
    if tube:
        light *= _folds(random, shape, drawn(look.folds), body)
    channels = [
        np.float32(look.tissue[channel] * look.light[channel])
        * np.exp(-sum(density * np.float32(absorption[channel]) for density, absorption in layers))
        for channel in range(3)
    ]
    image = np.stack(channels, axis=-1) * light[..., None]
    image += (_glare(random, shape, drawn(look.glare)) * facing)[..., None] * (1.05 - np.minimum(image, 1))
    image *= visible[..., None]
    if marked and tube:
        _print(random, image)
    return photograph(random, image, blur=look.blur, noise=look.noise), mask.astype(np.uint8) * 255


def _frame(random: np.random.Generator, shape: Shape, look: Look) -> Field:
    """How well the tissue is seen, in [0, 1]: 0 behind a frame with the shape of a superellipse."""
    if random.random() >= look.framed:
        return np.ones(shape, np.float32)
    rows, columns = (np.abs(axis) for axis in _axes(shape))
    sides = np.array([1.0, 1.0]) if look.round > 2 else np.array([1.15, shape[0] / shape[1] * 1.25])
    sides *= 1 - float(random.uniform(*look.margin))
    away = ((rows / sides[0]) ** look.round + (columns / sides[1]) ** look.round) ** (1 / look.round)
    return sigmoid((1 - away) * np.float32(60))


def _place(random: np.random.Generator, visible: Field, radius: float) -> tuple[float, float]:
    """Centre (row, column) of the growth: of some candidates, the one whose surroundings are seen best."""
    height, width = visible.shape
    spare = min(1.2 * radius, 0.38 * min(height, width))
    candidates = random.uniform((spare, spare), (height - spare, width - spare), (8, 2))
    seen = ndimage.uniform_filter(visible, max(1, int(1.4 * radius)))
    best = max(candidates.tolist(), key=lambda at: round(float(seen[int(at[0]), int(at[1])]), 2))
    return best[0], best[1]


def _depth_inside(
    random: np.random.Generator, shape: Shape, centre: tuple[float, float], radius: float, ragged: float
) -> Field:
    """Signed depth below the border in pixels: an ellipse, waves along the angle, fractal raggedness."""
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


def _light(
    random: np.random.Generator, shape: Shape, inside: Field, radius: float, bulge: float
) -> tuple[Field, Field]:
    """Light on a raised growth, with a lamp beside the camera; and how much the surface faces that."""
    height = np.float32(bulge * radius) * (1 - np.square(1 - np.clip(inside / np.float32(radius), 0, 1)))
    down, right = np.gradient(ndimage.gaussian_filter(height, 0.06 * radius, truncate=2))
    turn, facing = float(random.uniform(0, 2 * np.pi)), 1 / np.sqrt(1 + down**2 + right**2)
    lamp = np.float32(0.4) * (down * np.sin(turn) + right * np.cos(turn)) * facing
    return np.clip(0.4 + 0.6 * facing - lamp, 0.2, 1.3).astype(np.float32), np.square(facing).astype(np.float32)


def _vignette(random: np.random.Generator, shape: Shape, strength: float) -> Field:
    """A slope of the light across the picture, and darker corners."""
    rows, columns = _axes(shape)
    turn, slope = float(random.uniform(0, 2 * np.pi)), float(random.uniform(0, 0.12))
    tilt = 1 + np.float32(slope) * (rows * np.float32(np.sin(turn)) + columns * np.float32(np.cos(turn)))
    return tilt * (1 - np.float32(strength / 2) * (rows**2 + columns**2))


def _folds(random: np.random.Generator, shape: Shape, folds: float, body: Field) -> Field:
    """Light in a tube: dark towards its far end, with the shadows of folds, which are rings around that end.

    The rings are evenly spaced in the logarithm of the distance, and so crowd towards the end.
    """
    rows, columns = _axes(shape)
    end = random.uniform(-1.1, 1.1, 2).astype(np.float32)
    away = np.hypot(rows - end[0], columns - end[1]) * (1 + 0.12 * smooth_noise(random, shape, min(shape) / 2))
    away = np.maximum(away, 0.01).astype(np.float32)
    phase = np.log(away + np.float32(0.1)) * np.float32(folds) + np.float32(random.uniform(0, 1))
    phase += 0.1 * smooth_noise(random, shape, min(shape) / 2)
    step = phase - np.floor(phase)
    tall = np.clip(0.5 + 0.5 * smooth_noise(random, shape, min(shape) / 1.6), 0, 1)
    shade = 1 - tall * (1 - 0.8 * body) * (0.5 * np.exp((step - 1) * 6) - 0.2 * np.exp(-step * 8))
    far = np.square(away) / (np.square(away) + np.float32(random.uniform(0.03, 0.15)))
    return ndimage.gaussian_filter((shade * (far + (1 - far) * 0.6 * body)).astype(np.float32), min(shape) / 170)


def _glare(random: np.random.Generator, shape: Shape, amount: float) -> Field:
    """Specular highlights in [0, 1]: flecks in clusters."""
    fine = smooth_noise(random, shape, max(2.0, min(shape) / 40))
    where = np.clip(smooth_noise(random, shape, min(shape) / 4), -1, 2)
    return sigmoid(14 * (fine - (3.6 - 0.6 * amount - 0.6 * where))) * np.float32(min(1, 2 * amount))


_FINE = 3  # lines are drawn this much finer and averaged, because PIL's are not anti-aliased


def _lines(shape: Shape, lines: list[tuple[NDArray[np.float64], float]]) -> Field:
    """Coverage in [0, 1] by lines, each (N, 2) points (column, row) and a width, in pixels."""
    canvas = Image.new("L", (shape[1] * _FINE, shape[0] * _FINE))
    pen = ImageDraw.Draw(canvas)
    for points, width in lines:
        pen.line((points * _FINE).flatten().tolist(), fill=255, width=max(1, round(width * _FINE)), joint="curve")
    return np.asarray(canvas.reduce(_FINE), np.float32) / np.float32(255)


def _hairs(random: np.random.Generator, shape: Shape, count: int) -> Field:
    """Coverage by curved hairs that grow roughly one way."""
    size, steps, main = np.array(shape[::-1], float), np.linspace(0, 1, 14)[:, None], random.uniform(0, 2 * np.pi)
    lines = []
    for _ in range(count):
        turn, length = main + random.normal(0, 0.5), size.max() * random.uniform(0.15, 1.1)
        way = length * np.array([np.cos(turn), np.sin(turn)])
        bend = random.normal(0, 0.16) * np.array([-way[1], way[0]])
        start = random.uniform(-0.1, 1.1, 2) * size - 0.4 * way
        lines.append(
            (start + steps * way + 4 * steps * (1 - steps) * bend, size.min() / 256 * random.uniform(0.5, 1.6))
        )
    return _lines(shape, lines)


def _ruler(random: np.random.Generator, shape: Shape) -> Field:
    """Coverage by a millimetre scale near the lower or the upper edge."""
    height, width = shape
    step, edge = width * random.uniform(0.025, 0.05), random.choice([0.06, 0.92])
    start = np.array([width * random.uniform(0.0, 0.4), height * edge])
    ticks = [np.array([[step * n, 0], [step * n, step * (1.3 if n % 5 == 0 else 0.7)]]) + start for n in range(20)]
    return _lines(shape, [(each, width / 320) for each in [*ticks, start + np.array([[0, 0], [19 * step, 0]])]])


def _print(random: np.random.Generator, image: NDArray[np.floating]) -> None:
    """Puts lines of small bright marks at the upper left, as unreadable as print is at this size."""
    step = max(3, min(image.shape[:2]) // 42)
    for line in range(int(random.integers(2, 5))):
        marks = random.random((step, int(random.integers(4, 11)) * step)) < 0.45
        marks[:, ::step] = False
        row = (6 + 2 * line) * step
        image[row : row + step, 3 : 3 + marks.shape[1]][marks[:, : image.shape[1] - 3]] = PRINT


def _axes(shape: Shape) -> tuple[Field, Field]:
    """Rows and columns from -1 to 1, as (H, 1) and (1, W)."""
    rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    return rows[:, None], columns[None]


def smooth_noise(random: np.random.Generator, shape: Shape, cell: float) -> Field:
    """Random field of mean about 0 and deviation about 1 with features ``cell`` pixels wide, (H, W) float32."""
    height, width = shape
    rows, columns = int(np.ceil(height / cell)) + 3, int(np.ceil(width / cell)) + 3
    grid = Image.fromarray(random.standard_normal((rows, columns), dtype=np.float32))
    left, top = (float(value) for value in random.uniform(0.5, 1.5, 2))
    box = (left, top, left + width / cell, top + height / cell)
    # 1.5: bicubic joining lowers the deviation of the grid's values to about two thirds
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC, box=box)) * np.float32(1.5)


def fractal_noise(random: np.random.Generator, shape: Shape, cell: float, octaves: int = 4, gain: float = 0.5) -> Field:
    """Sum of smooth fields, each half as wide and ``gain`` times as strong as the one before; deviation about 1."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        total += np.float32(gain**octave) * smooth_noise(random, shape, max(cell / 2**octave, 1.0))
    return total / np.float32(np.sqrt(sum(gain ** (2 * octave) for octave in range(octaves))))


def ridges(random: np.random.Generator, shape: Shape, cell: float, sharpness: float = 2.5) -> Field:
    """A net of thin lines in [0, 1] where a smooth field changes its sign: pigment network, vessels."""
    field = smooth_noise(random, shape, cell) + 0.35 * smooth_noise(random, shape, cell / 2)
    return np.exp(-np.square(sharpness * field)).astype(np.float32)


def sigmoid(field: Field) -> Field:
    """Logistic function of a field, without overflow."""
    return (0.5 * (1.0 + np.tanh(0.5 * field))).astype(np.float32)


def one_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a mask without threads of one pixel and without holes, as an outline is drawn."""
    opened = ndimage.binary_opening(mask)
    parts, _ = ndimage.label(opened if opened.any() else mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return ndimage.binary_fill_holes(parts == sizes.argmax())


def photograph(random: np.random.Generator, image: NDArray, *, blur: Range, noise: Range) -> NDArray[np.uint8]:
    """Blur of the lens, contrast of the camera, noise of the sensor, rounding to 8 bits.

    Args:
        random: what is drawn from.
        image: (H, W, 3) light, 1 is white.
        blur: range of the blur's deviation in pixels, at 256 pixels on the shorter side.
        noise: range of the noise's deviation, in [0, 1] intensities.
    """
    sigma = float(random.uniform(*blur)) * min(image.shape[:2]) / 256
    image = ndimage.gaussian_filter(image, (sigma, sigma, 0), truncate=3)
    grain = random.standard_normal(image.shape, dtype=np.float32) * np.float32(random.uniform(*noise))
    image = np.clip(image, 0, None) ** np.float32(random.uniform(0.9, 1.15)) + grain
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


logger = logging.getLogger(__name__)


PUBLIC_FOLDER = "public"
SCENES = tuple(PUBLIC)
_SMALLEST = 64  # pixels; below, hairs and rulers are thinner than a pixel and lesions a handful of them


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
    progress: bool = False,
) -> DataList:
    """Renders sites that look different from each other and returns their data list.

    Image ``index`` of a site depends on ``(seed, site, index)`` only: asking for more images or sites changes none of
    those that exist. The public images have a plain look of their own; every site shifts away from it (colour cast,
    light, size of what is to be found; hair, rulers and skin tone, or frame, print and glare). It does not imitate any
    diagnosis and is no substitute for real images.

    Args:
        folder: receives ``<site>/images/*.jpg`` and ``<site>/masks/*.png`` (values 0 and 255); the public images lie
            in ``public/``.
        scene: ``"skin"`` (pigmented lesions) or ``"polyp"`` (polyps in the colon; the public ones are small).
        sites: number of sites, named ``site-1`` on; the first four have looks of their own, further ones vary them.
        labelled: also writes masks of the unlabelled images (the oracle variant needs them).
        images_per_site: unlabelled images of each site.
        public: labelled public images.
        validation: labelled validation images of each site.
        test: labelled test images of each site.
        size: (H, W) in pixels, at least 64 each.
        seed: every seed gives other images.
        progress: shows a progress bar.

    Returns:
        a :class:`~samfed_monai.data.DataList` whose paths are relative to ``folder``; it is not saved.

    Raises:
        Refused: a count or size is out of range.
    """
    _check(
        scene=scene,
        sites=sites,
        images_per_site=images_per_site,
        public=public,
        validation=validation,
        test=test,
        size=size,
    )
    folder, purpose = Path(folder), ("synthetic",) if scene == "skin" else ("synthetic", scene)
    splits = {"unlabelled": images_per_site, "validation": validation, "test": test}
    bar = progress_bar(total=public + sites * sum(splits.values()), desc="synthetic", unit="image", show=progress)

    def render(site: str, look: Look, indices: range, with_mask: bool) -> list[Item]:
        items = []
        for index in indices:
            random = np.random.default_rng(derive_seed(seed, *purpose, site, index))
            items.append(_render_one(folder, f"{site}_{index:06d}", site, look, random, size, with_mask))
            bar.update()
        return items

    with bar:
        public_items = render(PUBLIC_FOLDER, PUBLIC[scene], range(public), True)
        site_entries = {}
        for number in range(sites):
            name, look, start, entries = f"site-{number + 1}", look_of(scene, number, seed), 0, {}
            # A split starts at its own multiple of 100,000: more unlabelled images leave the others as they are.
            for split, count in splits.items():
                with_mask = labelled or split != "unlabelled"
                entries[split] = render(name, look, range(start, start + count), with_mask)
                start += _SPLIT_STRIDE
            site_entries[name] = Site(**entries)
    logger.info("rendered %d synthetic images of %d sites into %s", bar.total, sites, folder)
    return DataList(name=list_name(scene, seed), public=public_items, sites=site_entries)


def list_name(scene: str, seed: int) -> str:
    """What the list of rendered images is called."""
    return f"synthetic-{seed}" if scene == "skin" else f"synthetic-{scene}-{seed}"


_SPLIT_STRIDE = 100_000


def _check(*, scene: str, sites: int, size: tuple[int, int], **counts: int) -> None:
    problems = Problems()
    problems.unless(scene in SCENES, "synthetic -> scene", scene, f"one of {list(SCENES)}")
    if sites < 1:
        problems.add("synthetic -> sites", found=str(sites), expected="at least 1")
    for name, count in counts.items():
        if not 0 <= count < _SPLIT_STRIDE:
            problems.add(f"synthetic -> {name}", found=str(count), expected=f"0 to {_SPLIT_STRIDE - 1}")
    if len(size) != 2 or min(size) < _SMALLEST:
        problems.add("synthetic -> size", found=str(tuple(size)), expected=f"(H, W), each at least {_SMALLEST}")
    problems.refuse_if_any()


def _render_one(
    folder: Path,
    name: str,
    site: str,
    look: Look,
    random: np.random.Generator,
    size: tuple[int, int],
    with_mask: bool,
) -> Item:
    image, mask = render_scene(random, size, look)
    image_name, mask_name = f"{site}/images/{name}.jpg", f"{site}/masks/{name}.png"
    image_hash = _save(folder / image_name, image, format="JPEG", quality=look.quality)
    if not with_mask:
        return Item(image_name, image_hash)
    return Item(image_name, image_hash, mask_name, _save(folder / mask_name, mask, format="PNG"))


def _save(path: Path, pixels: np.ndarray, **options: object) -> str:
    """Writes an image atomically, over no other, and returns the SHA-256 of its bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)  # type: ignore[arg-type]
    content = buffer.getvalue()
    if path.exists() and path.read_bytes() != content:
        expected, hint = "none, or the very one to be rendered", "render another seed, scene or size into a new folder"
        raise refused(path, found="another image", expected=expected, hint=hint)
    write_bytes(path, content)
    return sha256_bytes(content)
