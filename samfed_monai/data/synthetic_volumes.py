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
from samfed_monai.core.progress import progress_bar
from samfed_monai.core.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

Volume = NDArray[np.int16]
Place = tuple[float, ...] | NDArray[np.float64]

CLASSES = ("kidney", "spleen")
"""Names of the organs, whose values in labels are 1 and 2."""
PUBLIC_FOLDER = "public"
_SMALLEST, _DEEPEST = 32, 512
_TISSUES = ("air", "fat", "muscle", "bone", "gut", *CLASSES)


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


def render_volume(random: np.random.Generator, shape: Sequence[int], scanner: Scanner) -> tuple[Volume, Volume]:
    """Draws one volume.

    Args:
        random: what is drawn from.
        shape: voxels along (X, Y, Z); slices lie along Z.
        scanner: what the tissues look like.

    Returns:
        Grey values, and the label in {0, 1, 2}; both (X, Y, Z) int16.
    """
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    wide, high = random.uniform(0.84, 0.95), random.uniform(0.7, 0.85)

    def ellipsoid(at: Place, half: Place, degrees: float = 0.0) -> NDArray[np.bool_]:
        angle = math.radians(degrees)
        across, along = x - at[0], y - at[1]
        turned = (
            across * math.cos(angle) + along * math.sin(angle),
            along * math.cos(angle) - across * math.sin(angle),
        )
        distance = (turned[0] / half[0]) ** 2 + (turned[1] / half[1]) ** 2 + ((z - at[2]) / half[2]) ** 2
        inside: NDArray[np.bool_] = distance < 1
        return inside

    body = (x / wide) ** 2 + (y / high) ** 2 < 1
    inner = (x / (wide - 0.12)) ** 2 + (y / (high - 0.12)) ** 2 < 1
    tissue = np.where(inner, 2, np.where(body, 1, 0))
    tissue[ellipsoid((random.normal(0, 0.03), high - 0.3, 0), (0.13, 0.13, 9))] = 3
    for _ in range(4):
        place = (random.uniform(-0.35, 0.35), random.uniform(-0.5, 0.05), random.uniform(-1, 1))
        tissue[ellipsoid(place, random.uniform(0.08, 0.18, 3) * (1, 1, 3)) & inner] = 4
    size = random.uniform(0.85, 1.15, 2)
    at = np.array([-0.45, 0.22, -0.15]) + random.normal(0, 0.05, 3)
    lean = random.uniform(-25, 25)
    kidney = ellipsoid(at, np.array([0.2, 0.29, 0.62]) * size[0], lean)
    kidney &= ~ellipsoid(at + np.array([0.2 * size[0], 0, 0]), np.array([0.13, 0.12, 0.3]) * size[0], lean)
    at = np.array([0.5, 0.0, 0.15]) + random.normal(0, 0.05, 3)
    lean = random.uniform(-20, 20)
    spleen = ellipsoid(at, np.array([0.2, 0.4, 0.6]) * size[1], lean)
    spleen &= ~ellipsoid(at - np.array([0.24 * size[1], 0, 0]), np.array([0.2, 0.34, 0.5]) * size[1], lean)
    tissue[kidney & inner], tissue[spleen & inner & ~kidney] = 5, 6
    label = np.where(tissue >= 5, tissue - 4, 0).astype(np.int16)
    grey = np.array(scanner.values)[tissue] + random.normal(0, 0.04, (len(_TISSUES),))[tissue] * 200
    grey = ndimage.gaussian_filter(grey, (0.6, 0.6, 0.2))
    if scanner.bias:
        slope = random.uniform(-1, 1, 3) * scanner.bias
        field = 1 + slope[0] * x + slope[1] * y + slope[2] * z * 0.5
        noise = random.normal(0, scanner.noise, (2, *grey.shape))
        grey = np.hypot(np.maximum(grey, 0) * field + noise[0], noise[1])
    else:
        grey = grey + random.normal(0, scanner.noise, grey.shape)
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
