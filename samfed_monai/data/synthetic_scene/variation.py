"""More sites than there are looks: each further one is a variation of one of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from samfed_monai.data.synthetic_scene.noise import Range

Light = tuple[float, float, float]


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
