"""A pigmented lesion: an irregular outline, a border of changing softness, and uneven pigment inside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samfed_monai.data.synthetic_scene.look import SiteLook
from samfed_monai.data.synthetic_scene.noise import Field, Shape, fractal_noise, ridges, sigmoid, smooth_noise
from samfed_monai.data.synthetic_scene.outline import one_piece, outline_depth


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
