"""Smooth random fields, the raw material of skin and pigment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.floating]  # float32 in practice
Shape = tuple[int, int]
Range = tuple[float, float]  # of a uniform draw


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
