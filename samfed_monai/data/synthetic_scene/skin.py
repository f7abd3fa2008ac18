"""One dermoscopy-like image: skin, lesion and artefacts under a lamp, in the look of its site."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from samfed_monai.core.seeds import derive_seed
from samfed_monai.data.synthetic_scene.texture import (
    Field,
    Range,
    Shape,
    fractal_noise,
    lamp_and_size,
    one_piece,
    outline_depth,
    photograph,
    ridges,
    sigmoid,
    smooth_noise,
)


@dataclass(frozen=True)
class SiteLook:
    """Distribution of a site's images; a pair is the range of a uniform draw per image.

    Args:
        skin: RGB of the untanned skin under neutral light, each in [0, 1].
        tan: melanin density of the skin itself.
        blush: haemoglobin density of the skin itself.
        light: RGB gain of lamp and camera (colour cast).
        exposure: gain of all channels.
        vignette: darkening at the corners, 0 none.
        tunnel: chance of the black circle of a dermatoscope's tube.
        radius: lesion's mean radius as a fraction of the image's shorter side.
        pigment: melanin density of the lesion; below 0.4 it is hard to see.
        edge: width of the lesion's border as a fraction of its radius.
        ragged: how far the border strays, as a fraction of the radius.
        hairs: hairs per image.
        freckles: small pigmented spots per image that are not the lesion.
        ruler, ink, bubbles, patch, gel: chance of each artefact.
        blur: camera blur, deviation in pixels at 256 px.
        noise: deviation of the sensor noise, in [0, 1] intensities.
        quality: JPEG quality.
    """

    skin: tuple[float, float, float] = (0.93, 0.82, 0.77)
    tan: Range = (0.05, 0.20)
    blush: Range = (0.02, 0.12)
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)
    exposure: Range = (0.92, 1.06)
    vignette: Range = (0.1, 0.35)
    tunnel: float = 0.15
    radius: Range = (0.16, 0.34)
    pigment: Range = (0.55, 1.3)
    edge: Range = (0.05, 0.16)
    ragged: Range = (0.06, 0.16)
    hairs: Range = (0, 8)
    freckles: Range = (0, 6)
    ruler: float = 0.15
    ink: float = 0.05
    bubbles: float = 0.2
    patch: float = 0.05
    gel: float = 0.05
    blur: Range = (0.3, 0.8)
    noise: Range = (0.008, 0.018)
    quality: int = 92


PUBLIC = SiteLook()

# Fair and bright with big lesions; tanned and hairy; dim, greyish, small lesions with rulers; dark or rosy under gel.
SITES = (
    SiteLook(
        skin=(0.97, 0.86, 0.84), light=(1.02, 0.99, 1.03), tan=(0.0, 0.1), tunnel=0.55, radius=(0.24, 0.42),
        pigment=(0.7, 1.7), ragged=(0.08, 0.22), hairs=(0, 5), vignette=(0.15, 0.4), gel=0.2, quality=94,
    ),
    SiteLook(
        skin=(0.90, 0.78, 0.66), light=(1.04, 1.0, 0.86), tan=(0.15, 0.4), hairs=(10, 34), radius=(0.17, 0.36),
        pigment=(0.45, 1.0), edge=(0.08, 0.22), ruler=0.35, freckles=(0, 8), tunnel=0.05, quality=88,
    ),
    SiteLook(
        skin=(0.82, 0.76, 0.74), light=(0.94, 0.98, 0.96), exposure=(0.68, 0.88), radius=(0.07, 0.18), ruler=0.6,
        ink=0.3, pigment=(0.4, 1.1), tan=(0.1, 0.25), freckles=(2, 12), hairs=(0, 10), vignette=(0.25, 0.6),
        blur=(0.5, 1.1), noise=(0.014, 0.028), tunnel=0.1, quality=85,
    ),
    SiteLook(
        skin=(0.84, 0.72, 0.66), light=(1.0, 1.0, 1.02), tan=(0.25, 0.6), blush=(0.04, 0.25), radius=(0.12, 0.32),
        pigment=(0.6, 1.4), edge=(0.07, 0.2), ragged=(0.1, 0.25), bubbles=0.7, patch=0.3, gel=0.5, hairs=(2, 16),
        blur=(0.4, 1.0), quality=90,
    ),
)  # fmt: skip


def look_of(index: int, seed: int) -> SiteLook:
    """Look of the site number ``index`` (from 0): the four written down here, then variations of them by ``seed``."""
    look = SITES[index % len(SITES)]
    if index < len(SITES):
        return look
    rng = np.random.default_rng(derive_seed(seed, "look", index))
    drawn = lamp_and_size(look.light, look.radius, rng, gains=(0.9, 1.08), limits=(0.07, 0.42))
    return replace(look, **drawn, hairs=(look.hairs[0], float(look.hairs[1] * rng.uniform(0.5, 1.5))))


@dataclass(frozen=True)
class Lesion:
    """Where the lesion is and how much it absorbs, all (H, W).

    Args:
        mask: outline as an expert would draw it, bool.
        melanin: density of brown pigment.
        blood: density of haemoglobin, with a halo around the lesion.
        deep: density of pigment deep in the skin, which looks blue-grey.
        centre: (row, column) in pixels.
        radius: mean radius in pixels.
    """

    mask: NDArray[np.bool_]
    melanin: Field
    blood: Field
    deep: Field
    centre: tuple[float, float]
    radius: float


def draw_lesion(rng: np.random.Generator, shape: Shape, look: SiteLook) -> Lesion:
    """Draws one lesion of a site.

    Args:
        rng: source of randomness.
        shape: (H, W) in pixels.
        look: the site's ranges of radius, pigment, edge and raggedness.
    """
    height, width = shape
    short = min(shape)
    radius = float(rng.uniform(*look.radius)) * short
    spare = max(0.04 * short, 0.5 * short - 1.1 * radius)
    centre = (height / 2 + float(rng.normal(0, 0.3)) * spare, width / 2 + float(rng.normal(0, 0.4)) * spare)
    depth = outline_depth(rng, shape, centre, radius, float(rng.uniform(*look.ragged)))
    softness = radius * float(rng.uniform(*look.edge)) * np.exp(0.7 * smooth_noise(rng, shape, radius))
    body = sigmoid(depth / np.maximum(softness, 0.7))
    mask = one_piece(body > 0.42)
    body *= ndimage.gaussian_filter(mask.astype(np.float32), 0.08 * radius) * 0.85 + 0.15

    strength = float(rng.uniform(*look.pigment))
    inside = np.clip(depth / radius, 0, 1)
    melanin = strength * body * _pigment(rng, shape, radius, inside)
    blood = float(rng.uniform(0, 0.3)) * body + float(rng.uniform(0, 0.12)) * sigmoid(depth / (0.25 * radius) + 1)
    deep: Field = np.zeros(shape, np.float32)
    if rng.random() < 0.3:  # blue-grey veil
        deep = float(rng.uniform(0.3, 0.9)) * body * sigmoid(3 * fractal_noise(rng, shape, radius, 3) - 1 + 2 * inside)
    return Lesion(mask, melanin.astype(np.float32), blood.astype(np.float32), deep, centre, radius)


def _pigment(rng: np.random.Generator, shape: Shape, radius: float, inside: Field) -> Field:
    """Relative density inside: patches, a darker core or rim, a network or globules."""
    patches = fractal_noise(rng, shape, 0.8 * radius, 4, 0.55)
    pigment = 1.0 + float(rng.uniform(0.1, 0.55)) * patches
    pigment += float(rng.uniform(-0.5, 0.9)) * (inside - 0.3)
    fine = max(2.5, min(shape) / float(rng.uniform(38, 60)))
    kind = rng.random()
    if kind < 0.4:  # reticular
        pigment *= 0.7 + float(rng.uniform(0.3, 0.9)) * ridges(rng, shape, fine)
    elif kind < 0.7:  # globular
        dots = sigmoid(6 * (smooth_noise(rng, shape, fine) - 0.8))
        pigment += float(rng.uniform(0.3, 1.1)) * dots
    if rng.random() < 0.25:  # regression: a pale part
        pigment *= 1 - 0.75 * sigmoid(4 * (smooth_noise(rng, shape, radius) - 0.7))
    return np.clip(pigment, 0.25, 3.0).astype(np.float32)


_FINE = 3  # lines are drawn this much finer and averaged, because PIL's are not anti-aliased


class _Canvas:
    """A grey canvas that is drawn finer than the image and read as coverage in [0, 1]."""

    def __init__(self, shape: Shape) -> None:
        self.image = Image.new("L", (shape[1] * _FINE, shape[0] * _FINE))
        self.pen = ImageDraw.Draw(self.image)

    def line(self, points: np.ndarray, width: float, ink: float = 1.0) -> None:
        """Draws through (N, 2) points given as (column, row) in image pixels."""
        fine = [(float(x) * _FINE, float(y) * _FINE) for x, y in points]
        self.pen.line(fine, fill=int(255 * ink), width=max(1, round(width * _FINE)), joint="curve")

    def coverage(self) -> Field:
        return np.asarray(self.image.reduce(_FINE), dtype=np.float32) / np.float32(255)


def draw_hairs(rng: np.random.Generator, shape: Shape, count: int) -> Field:
    """Coverage of ``count`` curved hairs, long and short, growing roughly one way."""
    canvas = _Canvas(shape)
    size = np.array([shape[1], shape[0]], dtype=float)
    main = rng.uniform(0, 2 * np.pi)
    steps = np.linspace(0, 1, 14)[:, None]
    for _ in range(count):
        turn = main + rng.normal(0, 0.5)
        length = size.max() * rng.choice([rng.uniform(0.15, 0.4), rng.uniform(0.5, 1.2)])
        way = length * np.array([np.cos(turn), np.sin(turn)])
        bend = length * rng.normal(0, 0.16) * np.array([-np.sin(turn), np.cos(turn)])
        start = rng.uniform(-0.1, 1.1, 2) * size - 0.4 * way
        curl = rng.normal(0, 0.5)
        points = start + steps * way + (4 * steps * (1 - steps) + curl * steps**3) * bend
        canvas.line(points, width=size.min() / 256 * rng.uniform(0.5, 1.6), ink=rng.uniform(0.45, 1.0))
    return canvas.coverage()


def draw_ruler(rng: np.random.Generator, shape: Shape) -> Field:
    """Coverage of a millimetre scale: along an edge of the image, or a printed bar near the bottom."""
    canvas = _Canvas(shape)
    height, width = shape
    step = width * rng.uniform(0.025, 0.05)
    thick = width / 256 * 0.8
    if rng.random() < 0.5:  # along an edge
        turn, start, count, low = rng.normal(0, 0.05), np.array([0.0, height * rng.uniform(0.0, 0.08)]), 60, 0.0
    else:
        turn, count, low = rng.normal(0, 0.12), int(rng.integers(9, 16)), 1.0
        start = np.array([width * rng.uniform(0.15, 0.5), height * rng.uniform(0.8, 0.93)])
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    for tick in range(count):
        foot = start + tick * step * along
        size = step * (1.3 if tick % 5 == 0 else 0.7)
        canvas.line(np.stack([foot, foot + (size if not low else -size) * across]), thick)
    if low:
        canvas.line(np.stack([start, start + (count - 1) * step * along]), thick)
    coverage = canvas.coverage()
    return coverage if low or rng.random() < 0.5 else coverage[:, ::-1]


def draw_ink(rng: np.random.Generator, shape: Shape, centre: tuple[float, float], clear: float) -> Field:
    """Coverage of pen scribbles at least ``clear`` pixels from ``centre`` (row, column)."""
    canvas = _Canvas(shape)
    for _ in range(int(rng.integers(1, 4))):
        turn, away = rng.uniform(0, 2 * np.pi), clear * rng.uniform(1.2, 1.7)
        middle = np.array([centre[1] + away * np.cos(turn), centre[0] + away * np.sin(turn)])
        long, wide = min(shape) * rng.uniform(0.05, 0.13), min(shape) * rng.uniform(0.015, 0.04)
        steps = np.linspace(-1, 1, 40)
        zigzag = np.stack([wide * rng.normal(0, 1, 40), long * steps], axis=1)
        spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        canvas.line(middle + zigzag @ spin, width=min(shape) / 256 * 1.2, ink=rng.uniform(0.6, 1.0))
    return canvas.coverage()


def draw_bubbles(rng: np.random.Generator, shape: Shape) -> tuple[Field, Field]:
    """Bright rims and dark rims of a few air bubbles in the immersion fluid, each in [0, 1]."""
    bright, dark = _Canvas(shape), _Canvas(shape)
    for _ in range(int(rng.integers(2, 14))):
        x, y = rng.uniform(0, shape[1]) * _FINE, rng.uniform(0, shape[0]) * _FINE
        size = min(shape) * _FINE * rng.uniform(0.006, 0.022) * rng.choice([1.0, 1.0, 2.2])
        ink = int(255 * rng.uniform(0.3, 0.9))
        dark.pen.ellipse((x - size, y - size, x + size, y + size), outline=ink, width=max(2, round(size / 4)))
        size *= 0.8
        start = float(rng.uniform(0, 360))
        bright.pen.arc((x - size, y - size, x + size, y + size), start, start + 150, fill=ink, width=_FINE)
    return bright.coverage(), dark.coverage()


def draw_gel(rng: np.random.Generator, shape: Shape) -> Field:
    """Specular glare in [0, 1]: small flecks, more of them towards one side."""
    columns = np.linspace(-1, 1, shape[1], dtype=np.float32) * (1 if rng.random() < 0.5 else -1)
    flecks = smooth_noise(rng, shape, 2.0) * sigmoid(4 * smooth_noise(rng, shape, min(shape) / 6))
    glare = sigmoid(8 * (columns[None] + 0.25 * smooth_noise(rng, shape, min(shape) / 4) - 1.05))
    return np.clip(sigmoid(6 * (flecks + 0.4 * columns[None] - 2.4)) + 0.8 * glare, 0, 1)


def draw_patch(rng: np.random.Generator, shape: Shape, centre: tuple[float, float], clear: float) -> Field | None:
    """Coverage of a round sticker that enters from the side, or ``None`` where it would touch the lesion."""
    canvas = _Canvas(shape)
    turn = rng.uniform(0, 2 * np.pi)
    radius = min(shape) * rng.uniform(0.25, 0.4)
    row, column = shape[0] / 2 + shape[0] * 0.62 * np.sin(turn), shape[1] / 2 + shape[1] * 0.62 * np.cos(turn)
    if np.hypot(row - centre[0], column - centre[1]) < radius + 1.7 * clear:
        return None
    box = [(column - radius) * _FINE, (row - radius) * _FINE, (column + radius) * _FINE, (row + radius) * _FINE]
    canvas.pen.ellipse(box, fill=255)
    return canvas.coverage()


# Relative absorption in R, G, B: melanin and haemoglobin rise towards blue and green; deep pigment looks blue-grey.
_MELANIN = (0.58, 1.00, 1.45)
_BLOOD = (0.12, 1.00, 0.75)
_DEEP = (1.30, 1.05, 0.85)
_HAIR = (1.5, 1.8, 2.0)
_PRINT = (1.6, 1.5, 1.4)
_INK = (0.9, 1.6, 0.25)
_STICKERS = ((0.05, 0.55, 0.80), (0.15, 0.60, 0.25), (0.92, 0.75, 0.10), (0.95, 0.45, 0.10))


def render_scene(rng: np.random.Generator, shape: Shape, look: SiteLook) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Renders one image of a site and the lesion's outline.

    Args:
        rng: source of randomness; the same state gives the same image.
        shape: (H, W) in pixels.
        look: the site's look.

    Returns:
        image (H, W, 3) uint8 and mask (H, W) uint8 in {0, 255}, never empty.
    """
    lesion = draw_lesion(rng, shape, look)
    melanin, blood = _skin(rng, shape, look)
    skin = np.array(look.skin) * (1 + rng.normal(0, 0.02, 3))
    hair = draw_hairs(rng, shape, round(float(rng.uniform(*look.hairs))))
    layers = [(melanin + lesion.melanin, _MELANIN), (blood + lesion.blood, _BLOOD), (lesion.deep, _DEEP)]
    layers.append((hair * np.float32(rng.choice([1.0, 1.0, 0.5])), _HAIR))
    if rng.random() < look.ruler:
        layers.append((draw_ruler(rng, shape), _PRINT))
    if rng.random() < look.ink:
        layers.append((draw_ink(rng, shape, lesion.centre, lesion.radius), _INK))
    bright = np.zeros(shape, np.float32)
    if rng.random() < look.bubbles:
        rims, dark = draw_bubbles(rng, shape)
        bright += 0.5 * rims
        layers.append((dark, (0.4, 0.4, 0.4)))
    image = np.stack([_absorb(skin[channel], layers, channel) for channel in range(3)], axis=-1)
    if rng.random() < look.patch:
        image = _stick(rng, image, lesion)
    if rng.random() < look.gel:
        bright += draw_gel(rng, shape)
    lamp = _lamp(rng, shape, look)
    image *= lamp[..., None] * np.array(look.light, np.float32)
    image += (0.9 * bright * np.minimum(lamp, 1))[..., None] * (1 - np.minimum(image, 1))
    return photograph(rng, image, blur=look.blur, noise=look.noise), lesion.mask.astype(np.uint8) * 255


def _absorb(base: float, layers: list[tuple[Field, tuple[float, float, float]]], channel: int) -> Field:
    density = np.zeros_like(layers[0][0])
    for field, absorption in layers:
        density += field * np.float32(absorption[channel])
    return np.float32(base) * np.exp(-density)


def _skin(rng: np.random.Generator, shape: Shape, look: SiteLook) -> tuple[Field, Field]:
    """Melanin and haemoglobin of the skin itself: mottling, skin lines, freckles, faint vessels."""
    short = min(shape)
    mottle = fractal_noise(rng, shape, short / 5, 5, 0.6)
    melanin = float(rng.uniform(*look.tan)) * (1 + 0.10 * mottle) + 0.012 * mottle
    melanin += float(rng.uniform(0.0, 0.06)) * ridges(rng, shape, max(3.0, short / 22))
    rows, columns = np.ogrid[0 : shape[0], 0 : shape[1]]
    for _ in range(round(float(rng.uniform(*look.freckles)))):
        row, column = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        size = short * rng.uniform(0.008, 0.035)
        stretch = rng.uniform(0.7, 1.4)
        away = np.hypot((rows - row) * stretch, (columns - column) / stretch)
        melanin += np.float32(rng.uniform(0.1, 0.45)) * sigmoid((size - away).astype(np.float32) / np.float32(size / 3))
    blood = float(rng.uniform(*look.blush)) * (1 + 0.2 * smooth_noise(rng, shape, short / 3))
    blood += 0.02 * fractal_noise(rng, shape, short / 12, 3)
    if rng.random() < 0.3:  # vessels, broken where a second field is low
        vessels = ridges(rng, shape, short / 6, 12.0) * sigmoid(4 * smooth_noise(rng, shape, short / 6))
        blood += float(rng.uniform(0.05, 0.2)) * vessels
    return np.maximum(melanin, 0).astype(np.float32), np.maximum(blood, 0).astype(np.float32)


def _stick(rng: np.random.Generator, image: Field, lesion: Lesion) -> Field:
    """Puts an opaque sticker beside the lesion, if there is room."""
    cover = draw_patch(rng, lesion.mask.shape, lesion.centre, lesion.radius)
    colour = np.array(_STICKERS[int(rng.integers(len(_STICKERS)))], np.float32)
    if cover is None or bool((lesion.mask & (cover > 0)).any()):
        return image
    return image + cover[..., None] * (colour - image)


def _lamp(rng: np.random.Generator, shape: Shape, look: SiteLook) -> Field:
    """Illumination: exposure, a slope across the image, darker corners, sometimes the dermatoscope's tube."""
    rows = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, shape[1], dtype=np.float32)[None]
    turn = float(rng.uniform(0, 2 * np.pi))
    slope = float(rng.uniform(0, 0.12)) * (rows * np.sin(turn) + columns * np.cos(turn))
    away = np.hypot(rows - np.float32(rng.normal(0, 0.1)), columns - np.float32(rng.normal(0, 0.1)))
    lamp = float(rng.uniform(*look.exposure)) * (1 + slope) * (1 - float(rng.uniform(*look.vignette)) * away**2 / 2)
    if rng.random() < look.tunnel:
        aspect = shape[1] / shape[0]
        tube = np.hypot(rows, columns * np.float32(aspect) / max(aspect, 1.2) ** 0.5)
        lamp *= 0.03 + 0.97 * sigmoid((np.float32(rng.uniform(1.0, 1.25)) - tube) * np.float32(rng.uniform(12, 45)))
    return lamp.astype(np.float32)
