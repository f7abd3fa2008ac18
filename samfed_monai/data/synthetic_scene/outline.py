"""The outline of a growth, of skin or of mucosa: how deep inside it each pixel lies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samfed_monai.data.synthetic_scene.noise import Field, Shape, fractal_noise


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
