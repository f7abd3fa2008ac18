"""What makes the colonoscopies of one site look alike and those of two sites differ."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from samfed_monai.data.synthetic_scene.noise import Range
from samfed_monai.data.synthetic_scene.variation import lamp_and_size
from samfed_monai.seeds import derive_seed


@dataclass(frozen=True)
class ColonLook:
    """Distribution of a site's colonoscopy images; a pair is the range of a uniform draw per image.

    Args:
        mucosa: RGB of the bloodless mucosa under neutral light, each in [0, 1].
        blood: density of haemoglobin in the mucosa.
        light: RGB gain of lamp and camera (colour cast).
        exposure: gain of all channels.
        reach: how deep into the tube the lamp shines; small leaves the distance dark.
        lumen: distance of the tube's far end from the image's centre, in half diagonals; near 1 looks at the wall.
        folds: folds between the lumen and the image's edge.
        vessels: chance of visible vessels.
        stain: chance of yellow liquid.
        radius: polyp's mean radius as a fraction of the image's shorter side.
        bulge: height over radius; below 0.4 the polyp is flat.
        redness: haemoglobin of the polyp beyond the mucosa's; negative is paler.
        ragged: how far the polyp's border strays, as a fraction of its radius.
        glare: amount of specular highlights.
        margin: black border of the picture, as a fraction of its shorter side.
        corner: cut corners of the picture, likewise.
        box: chance of the green box that shows where the endoscope is (lower left).
        text: chance of printed patient data.
        blur: camera blur, deviation in pixels at 256 px.
        noise: deviation of the sensor noise, in [0, 1] intensities.
        quality: JPEG quality.
    """

    mucosa: tuple[float, float, float] = (1.00, 0.80, 0.66)
    blood: Range = (0.25, 0.55)
    light: tuple[float, float, float] = (1.0, 0.98, 0.92)
    exposure: Range = (0.85, 1.15)
    reach: Range = (1.2, 2.2)
    lumen: Range = (0.25, 1.1)
    folds: Range = (1.5, 4.0)
    vessels: float = 0.5
    stain: float = 0.2
    radius: Range = (0.10, 0.22)
    bulge: Range = (0.45, 1.0)
    redness: Range = (0.35, 0.75)
    ragged: Range = (0.0, 0.02)
    glare: Range = (0.2, 0.6)
    margin: Range = (0.02, 0.05)
    corner: Range = (0.12, 0.22)
    box: float = 0.0
    text: float = 0.0
    blur: Range = (0.4, 0.9)
    noise: Range = (0.006, 0.014)
    quality: int = 92


PUBLIC = ColonLook()

# Red and bright with big polyps, green box and print; brown, dark, in a wide frame; rosy, blurred, smaller and flatter;
# greenish-pale, close to the wall, with much glare.
SITES = (
    ColonLook(
        mucosa=(1.0, 0.74, 0.62), light=(1.04, 0.97, 0.93), blood=(0.35, 0.7), exposure=(0.9, 1.2), reach=(1.6, 3.0),
        radius=(0.16, 0.34), bulge=(0.5, 1.1), redness=(0.35, 0.8), glare=(0.4, 1.0), margin=(0.0, 0.015), box=0.5,
        text=0.8, corner=(0.18, 0.3), ragged=(0.0, 0.04), quality=94,
    ),
    ColonLook(
        mucosa=(0.95, 0.80, 0.58), light=(1.03, 0.96, 0.74), blood=(0.12, 0.4), exposure=(0.55, 0.85), reach=(0.7, 1.4),
        lumen=(0.1, 0.8), radius=(0.12, 0.28), margin=(0.07, 0.11), stain=0.5, vessels=0.3, glare=(0.4, 1.0),
        redness=(0.3, 0.7), noise=(0.01, 0.022), quality=86,
    ),
    ColonLook(
        mucosa=(0.97, 0.80, 0.80), light=(0.98, 0.90, 1.03), blood=(0.3, 0.6), exposure=(0.75, 1.0),
        radius=(0.10, 0.20), bulge=(0.25, 0.6), redness=(0.3, 0.65), blur=(1.0, 1.8), margin=(0.03, 0.06),
        corner=(0.22, 0.3), text=0.3, vessels=0.7, glare=(0.1, 0.5), noise=(0.012, 0.025), quality=80,
    ),
    ColonLook(
        mucosa=(0.92, 0.90, 0.74), light=(0.92, 1.0, 0.88), blood=(0.1, 0.3), exposure=(0.7, 1.0), lumen=(0.7, 1.4),
        folds=(1.0, 2.5), radius=(0.12, 0.28), bulge=(0.25, 0.8), redness=(0.3, 0.65), glare=(0.6, 1.3),
        corner=(0.03, 0.1), margin=(0.0, 0.03), vessels=0.9, stain=0.35, blur=(0.3, 0.6), quality=90,
    ),
)  # fmt: skip


def look_of(index: int, seed: int) -> ColonLook:
    """Look of the site number ``index`` (from 0): the four written down here, then variations of them by ``seed``."""
    look = SITES[index % len(SITES)]
    if index < len(SITES):
        return look
    rng = np.random.default_rng(derive_seed(seed, "colon-look", index))
    drawn = lamp_and_size(look.light, look.radius, rng, gains=(0.92, 1.08), limits=(0.08, 0.38))
    return replace(look, **drawn, box=float(rng.uniform(0, 0.5)))
