"""What makes the images of one site look alike and those of two sites differ."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from samfed_monai.data.synthetic_scene.noise import Range
from samfed_monai.data.synthetic_scene.variation import lamp_and_size
from samfed_monai.seeds import derive_seed


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
