"""What both synthetic scenes share: smooth noise, the outline of a growth, the camera, and another lamp."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Field = NDArray[np.floating]  # float32 in practice
Shape = tuple[int, int]
Range = tuple[float, float]  # of a uniform draw
Light = tuple[float, float, float]  # gain of each channel


def smooth_noise(rng: np.random.Generator, shape: Shape, cell: float) -> Field:
    """Random field of mean about 0 and deviation about 1 whose features are ``cell`` pixels wide.

    Args:
        rng: source of randomness.
        shape: (H, W) of the field.
        cell: distance of the random grid's points, in pixels; they are joined bicubically.

    Returns:
        (H, W) float32.
    """
    height, width = shape
    rows, columns = int(np.ceil(height / cell)) + 3, int(np.ceil(width / cell)) + 3
    grid = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    left, top = (float(value) for value in rng.uniform(0.5, 1.5, 2))
    box = (left, top, left + width / cell, top + height / cell)
    # 1.5: bicubic joining lowers the deviation of the grid's values to about two thirds
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC, box=box)) * np.float32(1.5)


def fractal_noise(rng: np.random.Generator, shape: Shape, cell: float, octaves: int = 4, gain: float = 0.5) -> Field:
    """Sum of smooth fields, each half as wide and ``gain`` times as strong as the one before; deviation about 1."""
    total = np.zeros(shape, np.float32)
    power = 0.0
    for octave in range(octaves):
        width = max(cell / 2**octave, 1.0)
        total += np.float32(gain**octave) * smooth_noise(rng, shape, width)
        power += gain ** (2 * octave)
    return total / np.float32(np.sqrt(power))


def ridges(rng: np.random.Generator, shape: Shape, cell: float, sharpness: float = 2.5) -> Field:
    """A net of thin lines in [0, 1] where a smooth field changes its sign: pigment network, skin lines, vessels."""
    field = smooth_noise(rng, shape, cell) + 0.35 * smooth_noise(rng, shape, cell / 2)
    return np.exp(-np.square(sharpness * field)).astype(np.float32)


def sigmoid(field: Field) -> Field:
    """Logistic function of a field, without overflow."""
    return (0.5 * (1.0 + np.tanh(0.5 * field))).astype(np.float32)


def outline_depth(
    rng: np.random.Generator, shape: Shape, centre: tuple[float, float], radius: float, ragged: float, octaves: int = 5
) -> Field:
    """Signed depth below the border in pixels: an ellipse, Fourier waves along the angle, fractal raggedness."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    rows -= np.float32(centre[0])
    columns -= np.float32(centre[1])
    turn, aspect = float(rng.uniform(0, np.pi)), float(rng.uniform(1.0, 1.6)) ** 0.5
    along = (columns * np.cos(turn) + rows * np.sin(turn)) / np.float32(aspect)
    across = (rows * np.cos(turn) - columns * np.sin(turn)) * np.float32(aspect)
    angle = np.arctan2(across, along)
    outline = np.ones(shape, np.float32)
    for wave in range(2, 8):
        size, phase = float(rng.normal(0, 0.16)) / wave, float(rng.uniform(0, 2 * np.pi))
        outline += np.float32(size) * np.cos(wave * angle + np.float32(phase))
    depth = radius * np.clip(outline, 0.45, 1.6) - np.hypot(along, across)
    return depth + np.float32(ragged * radius) * fractal_noise(rng, shape, 0.6 * radius, octaves, 0.6)


def one_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a mask without threads of one pixel and without holes, as an outline is drawn."""
    opened = ndimage.binary_opening(mask)
    parts, _ = ndimage.label(opened if opened.any() else mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return ndimage.binary_fill_holes(parts == sizes.argmax())


def photograph(rng: np.random.Generator, image: Field, *, blur: Range, noise: Range) -> NDArray[np.uint8]:
    """Blur of the lens, contrast of the camera, noise of the sensor, rounding to 8 bits.

    Args:
        rng: source of randomness.
        image: (H, W, 3) light, 1 is white.
        blur: range of the blur's deviation in pixels, at 256 pixels on the shorter side.
        noise: range of the noise's deviation, in [0, 1] intensities.
    """
    sigma = float(rng.uniform(*blur)) * min(image.shape[:2]) / 256
    image = ndimage.gaussian_filter(image, (sigma, sigma, 0), truncate=3)
    grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(*noise))
    image = np.clip(image, 0, None) ** np.float32(rng.uniform(0.9, 1.15)) + grain
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def lamp_and_size(
    light: Light, radius: Range, rng: np.random.Generator, *, gains: Range, limits: Range
) -> dict[str, Any]:
    """Another lamp, and what is looked for larger or smaller by up to a quarter: fields to replace in a look.

    Args:
        light, radius: as the look has them.
        rng: draws three gains, then one scale.
        gains: range of what each channel's light is multiplied with.
        limits: smallest and largest radius that may come of it, as a fraction of the image's shorter side.
    """
    red, green, blue = (float(gain) for gain in rng.uniform(*gains, 3))
    scale = float(rng.uniform(0.75, 1.25))
    return {
        "light": (red * light[0], green * light[1], blue * light[2]),
        "radius": (max(limits[0], radius[0] * scale), min(limits[1], radius[1] * scale)),
    }
