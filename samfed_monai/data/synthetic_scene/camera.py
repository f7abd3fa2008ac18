"""From light to a stored picture: lens, contrast, sensor noise, rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samfed_monai.data.synthetic_scene.noise import Field, Range


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
