"""One dermoscopy-like image: skin, lesion and artefacts under a lamp, seen by a camera."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samfed_monai.data.synthetic_scene.artefacts import (
    draw_bubbles,
    draw_gel,
    draw_hairs,
    draw_ink,
    draw_patch,
    draw_ruler,
)
from samfed_monai.data.synthetic_scene.camera import photograph
from samfed_monai.data.synthetic_scene.lesion import Lesion, draw_lesion
from samfed_monai.data.synthetic_scene.look import SiteLook
from samfed_monai.data.synthetic_scene.noise import Field, Shape, fractal_noise, ridges, sigmoid, smooth_noise

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
