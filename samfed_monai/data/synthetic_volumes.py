"""CT-like and MR-like volumes with two organs, as NIfTI files with spacing and affine, for the demo and the tests.

A body of fat and muscle holds a kidney and a spleen, a spine and a gut; the two look alike in form and unlike in grey
values. It does not imitate any anatomy closely, nor any disease, and is no substitute for real volumes.
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samfed_monai.core.errors import Problems
from samfed_monai.core.io import write_bytes
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

Volume = NDArray[np.int16]

CLASSES = ("kidney", "spleen")
"""Names of the organs, whose values in labels are 1 and 2."""
PUBLIC_FOLDER = "public"
_SMALLEST, _DEEPEST = 32, 512


@dataclass(frozen=True)
class Scanner:
    """How a site's volumes look.

    Args:
        values: grey value of each of air, fat, muscle, bone, gut, kidney and spleen.
        noise: standard deviation of the noise, in grey values; of MR it is Rician.
        bias: how far the field of an MR coil departs from 1; 0 for CT.
        spacing: mm of a voxel along the three axes.
        degrees: how far the volume's axes are turned against the scanner's, about its third.
        mirrored: whether the first axis runs from right to left, as in most DICOM series.
    """

    values: tuple[float, ...]
    noise: float
    bias: float
    spacing: tuple[float, float, float]
    degrees: float = 0.0
    mirrored: bool = False


CT = Scanner((-1000, -100, 50, 700, 20, 190, 120), 14, 0.0, (1.5, 1.5, 3.0), 0.0, True)
MR = Scanner((10, 880, 300, 90, 480, 620, 430), 22, 0.3, (1.8, 1.8, 4.0), 6.0, False)
SITES = {"ct": CT, "mr": MR}
"""Scanners of the sites; the public volumes are of both, in turn."""


PARTS = (
    (1, (0.0, 0.0, 0.0), (0.9, 0.78, 9.0)),
    (2, (0.0, 0.0, 0.0), (0.78, 0.66, 9.0)),
    (3, (0.0, 0.46, 0.0), (0.13, 0.13, 9.0)),
    *((4, (across, -0.25, along), (0.14, 0.14, 0.4)) for across, along in ((-0.2, -0.5), (0.15, 0.0), (0.0, 0.6))),
    (5, (-0.45, 0.2, -0.1), (0.2, 0.28, 0.65)),
    (6, (0.48, 0.0, 0.1), (0.2, 0.36, 0.65)),
)
"""Ellipsoids of fat, muscle, bone, gut, kidney and spleen: tissue, centre, half axes, in half sides of the volume."""


def render_volume(random: np.random.Generator, shape: Sequence[int], scanner: Scanner) -> tuple[Volume, Volume]:
    """Draws one volume.

    Args:
        random: what is drawn from.
        shape: voxels along (X, Y, Z); slices are along Z.
        scanner: what the tissues look like.

    Returns:
        Grey values, and the label in {0, 1, 2}; both (X, Y, Z) int16.
    """
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    tissue = np.zeros(shape, int)
    for number, centre, half in PARTS:
        at, size = centre + random.normal(0, 0.04, 3) * (number > 2), random.uniform(0.9, 1.1) * np.array(half)
        angle = math.radians(random.uniform(-20, 20)) * (number > 2)
        across = (x - at[0]) * math.cos(angle) + (y - at[1]) * math.sin(angle)
        along = (y - at[1]) * math.cos(angle) - (x - at[0]) * math.sin(angle)
        tissue[(across / size[0]) ** 2 + (along / size[1]) ** 2 + ((z - at[2]) / size[2]) ** 2 < 1] = number
    label = np.where(tissue >= 5, tissue - 4, 0).astype(np.int16)
    grey = ndimage.gaussian_filter(np.array(scanner.values, float)[tissue], (0.6, 0.6, 0.2))
    noise = random.normal(0, scanner.noise, (2, *grey.shape))
    if scanner.bias:
        slope = random.uniform(-1, 1, 3) * scanner.bias
        field = 1 + slope[0] * x + slope[1] * y + slope[2] * z * 0.5
        grey = np.hypot(np.maximum(grey, 0) * field + noise[0], noise[1])
    else:
        grey = grey + noise[0]
    return np.rint(grey).astype(np.int16), label


def affine_of(scanner: Scanner, shape: Sequence[int]) -> NDArray[np.float64]:
    """The 4 x 4 matrix from voxel indices to mm, with the volume's middle at 0."""
    angle = math.radians(scanner.degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    scale = np.array(scanner.spacing) * (-1 if scanner.mirrored else 1, 1, 1)
    affine = np.eye(4)
    affine[:3, :3] = turn * scale
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def render_volumes(
    folder: str | Path,
    *,
    volumes: int = 6,
    public: int = 4,
    size: tuple[int, int] = (96, 96),
    depth: int = 12,
    seed: int = 0,
    progress: bool = False,
) -> list[str]:
    """Writes a CT-like and an MR-like site and a public set: ``<site>/{images,masks}/<site>_NN.nii.gz``.

    Volume ``index`` of a site depends on ``(seed, site, index)`` and on the size alone. All have masks; how many a list
    names is `samfed prepare nifti`'s matter.

    Args:
        folder: receives the sites ``ct``, ``mr`` and ``public``.
        volumes: of each of the two sites, at least 1.
        public: volumes, CT-like and MR-like ones in turn.
        size: rows and columns of a slice, at least 32 each.
        depth: slices of a volume.
        seed: every seed gives other volumes.
        progress: shows a progress bar.

    Returns:
        Names of the sites.

    Raises:
        Refused: a count or size is out of range.
    """
    import nibabel

    problems = Problems()
    for name, number, least in (("volumes", volumes, 1), ("public", public, 0), ("depth", depth, 4)):
        if not least <= number <= _DEEPEST:
            problems.add(f"synthetic -> {name}", found=str(number), expected=f"{least} to {_DEEPEST}")
    if len(size) != 2 or not _SMALLEST <= min(size) <= max(size) <= _DEEPEST:
        expected = f"(H, W), each {_SMALLEST} to {_DEEPEST}"
        problems.add("synthetic -> size", found=str(tuple(size)), expected=expected)
    problems.refuse_if_any()
    shape = (size[1], size[0], depth)
    counts = dict.fromkeys(SITES, volumes) | ({PUBLIC_FOLDER: public} if public else {})
    with progress_bar(total=sum(counts.values()), desc="synthetic", unit="volume", show=progress) as bar:
        for site, count in counts.items():
            for index in range(count):
                scanner = SITES.get(site) or list(SITES.values())[index % len(SITES)]
                random = np.random.default_rng(derive_seed(seed, "synthetic", "volumes", site, index))
                parts = zip(("images", "masks"), render_volume(random, shape, scanner), strict=True)
                for kind, data in parts:
                    image = nibabel.Nifti1Image(data, affine_of(scanner, shape))
                    image.header.set_xyzt_units("mm")
                    content = gzip.compress(image.to_bytes(), mtime=0)
                    write_bytes(Path(folder) / site / kind / f"{site}_{index + 1:02d}.nii.gz", content)
                bar.update()
    return list(counts)
