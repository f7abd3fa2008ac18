"""NIfTI volumes and DICOM objects: out as RGB slices, which everything else here reads; masks back as volumes."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.data.dicom import read_frames
from samfed_monai.data.walk import NIFTI, kind_of

Picture = NDArray[np.uint8]

WINDOW = (0.5, 99.5)
"""Percentiles of a volume that become black and white, where its numbers are no grey values from 0 to 255."""
TOLERANCE = 0.1
"""Voxels that a mask's corner may lie from its volume's: more than two programs' rounding, less than a reader sees."""


@dataclass(frozen=True)
class Slices:
    """What one file holds, as pictures.

    Args:
        path: the file.
        kind: ``nifti`` or ``dicom``.
        pictures: (N, H, W, 3) uint8, RGB: slices of a volume along its last axis, rows and columns swapped so that its
            first axis runs to the right; or the frames of a DICOM object.
        pixel_area: mm² of a pixel, where the file says it.
        spacing: mm from slice to slice, where the file says it.
        voxel: of a volume, mm from row to row, from column to column and from slice to slice.
    """

    path: Path
    kind: str
    pictures: Picture
    pixel_area: float | None = None
    spacing: float | None = None
    voxel: tuple[float, float, float] | None = None


def read_slices(path: str | Path) -> Slices:
    """Reads a NIfTI volume or a DICOM object.

    Grey values become RGB. NIfTI: 8-bit data are taken as they are, others by :data:`WINDOW` of the whole volume.
    DICOM: see :func:`~samfed_monai.data.dicom.read_frames`.

    Raises:
        Refused: a file that cannot be read, or is no picture, stack of pictures or volume.
    """
    path = Path(path)
    return _nifti(path) if kind_of(path) == NIFTI else Slices(path, "dicom", *read_frames(path))


def read_mask_slices(
    path: str | Path, like: str | Path, *, labels: Sequence[int] = (), classes: Sequence[str] = ()
) -> NDArray[np.uint8]:
    """The foreground of a NIfTI mask, in the order and orientation of the pictures of its volume.

    Args:
        path: the mask: whole numbers, of the volume's shape and place.
        like: the volume.
        labels: values that are foreground; empty takes the only one beside 0. Of several classes, the value of each, in
            their order, and every other is background; empty takes 1, 2, … and refuses every other.
        classes: names of several classes; empty for one.

    Returns:
        (N, H, W) in 0..K, as :class:`Slices` has its pictures; K is 1 without ``classes``.

    Raises:
        Refused: another shape, or an affine that puts a corner more than a tenth of a voxel elsewhere; values that are
            no whole numbers; several values beside 0 of which none is named, or one that no class has.
    """
    path = Path(path)
    mask, volume = _loaded(path), _loaded(Path(like))
    shapes = _space(mask), _space(volume)
    if shapes[0] != shapes[1]:
        found, expected = (" x ".join(map(str, shape)) for shape in shapes)
        raise _refused(
            path, f"{found} voxels", f"{expected}, as {Path(like).name} has", "export it on the volume's grid"
        )
    apart = _corners_apart(mask.affine, volume.affine, shapes[1])
    if apart > TOLERANCE * min(float(zoom) for zoom in volume.header.get_zooms()[: len(shapes[1])]):
        found = f"corners up to {apart:.4g} mm from the volume's"
        hint = "resample the mask to the volume; of the same grid, copy the volume's affine"
        raise _refused(path, found, f"the affine of {Path(like).name}", hint)
    data = _numbers(path, mask)
    if data.dtype.names or data.size != np.prod(shapes[0]):
        raise _refused(path, "colours", "whole numbers: 0 and a mask's value")
    data = data.reshape(shapes[0])
    values = np.unique(data)
    if not np.isfinite(values).all() or not np.array_equal(values, np.rint(values)):
        raise _refused(path, f"values such as {float(values[-1]):g}", "whole numbers: 0 and a mask's value")
    there = [int(value) for value in values if value]
    told = ", ".join(map(str, there[:8]))
    if classes:
        wanted = list(labels) or list(range(1, len(classes) + 1))
        if not labels and not set(there) <= set(wanted):
            named = ", ".join(f"{number} {name}" for number, name in zip(wanted, classes, strict=True))
            hint = "name every class with --classes, or say with --label which value each of them has"
            raise _refused(path, f"the labels {told}", f"0 and {named}", hint)
        drawn = sum((number * (data == value) for number, value in enumerate(wanted, start=1)), np.zeros(data.shape))
    else:
        if not labels and len(there) > 1:
            hint = "say which are foreground: --label N, or name each as a class: --classes A,B"
            raise _refused(path, f"the labels {told}", "one beside 0", hint)
        drawn = np.isin(data, sorted(set(labels) or set(there)))
    return drawn.astype(np.uint8).reshape(shapes[0][0], shapes[0][1], -1).transpose(2, 1, 0)


def _corners_apart(one: NDArray[Any], other: NDArray[Any], shape: Sequence[int]) -> float:
    """How far, in mm, two affines put a corner of a volume apart at most; infinite if either has no numbers."""
    last = [*(side - 1 for side in shape), 0, 0][:3]
    corners = np.array([[x, y, z, 1] for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])], float)
    apart = float(np.linalg.norm(((one - other) @ corners.T)[:3], axis=0).max())
    return apart if np.isfinite(apart) else float("inf")


def nifti_of(masks: Sequence[NDArray[Any]], like: Path) -> bytes:
    """A gzipped NIfTI, uint8, with shape, place and units of the volume that the masks were made of.

    Args:
        masks: (H, W) of each slice, bool or in 0..255 (values of classes, for instance), in the order of
            :class:`Slices`.
        like: the volume.
    """
    import nibabel

    source: Any = nibabel.load(like)
    data = np.stack([mask.T for mask in masks], axis=-1).astype(np.uint8)
    image = nibabel.Nifti1Image(data.reshape(_space(source)), source.affine)
    image.header.set_xyzt_units(*source.header.get_xyzt_units())
    for form in ("qform", "sform"):  # they may differ, and a viewer take either
        matrix, code = getattr(source, f"get_{form}")(coded=True)
        getattr(image, f"set_{form}")(matrix, int(code))
    content: bytes = gzip.compress(image.to_bytes(), mtime=0)  # the same masks are the same bytes
    return content


def _loaded(path: Path) -> Any:
    import nibabel

    try:
        return nibabel.load(path)
    except Exception as error:  # nibabel and zlib raise a dozen kinds
        raise _refused(path, f"{type(error).__name__}: {error}", "a NIfTI volume") from None


def _numbers(path: Path, image: Any) -> NDArray[Any]:
    try:
        return np.asarray(image.dataobj)
    except Exception as error:
        raise _refused(path, f"{type(error).__name__}: {error}", "a NIfTI volume") from None


def _nifti(path: Path) -> Slices:
    image = _loaded(path)
    data = _numbers(path, image)
    shape, numbers = _space(image), data
    if data.dtype.names:  # NIfTI's RGB24 and RGBA32
        data = np.stack([data[channel] for channel in data.dtype.names[:3]], axis=-1)
    elif data.size == np.prod(shape):
        data = np.repeat(_to_grey(path, data.reshape(shape))[..., None], 3, axis=-1)
    if len(shape) not in (2, 3) or data.shape != (*shape, 3) or data.dtype != np.uint8:
        found = f"{numbers.dtype} of {' x '.join(map(str, image.shape))}"
        raise _refused(path, found, "a picture (X, Y) or a volume (X, Y, Z) of grey values, or of 8-bit RGB")
    pictures = data.reshape(shape[0], shape[1], -1, 3).transpose(2, 1, 0, 3)
    millimetres = {"meter": 1e3, "micron": 1e-3}.get(image.header.get_xyzt_units()[0], 1.0)
    zooms = [float(zoom) * millimetres for zoom in image.header.get_zooms()[: len(shape)]]
    voxel = (round(zooms[1], 6), round(zooms[0], 6), round(zooms[2], 6)) if len(zooms) > 2 else None
    return Slices(path, "nifti", pictures, zooms[0] * zooms[1], zooms[2] if len(zooms) > 2 else None, voxel)


def _space(image: Any) -> tuple[int, ...]:
    """The axes of space: (X, Y) or (X, Y, Z), without those of length 1 behind them and without 8-bit colours."""
    shape: list[int] = list(image.shape)
    if len(shape) > 3 and shape[-1] == 3 and image.get_data_dtype() == np.uint8:
        shape.pop()
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def _to_grey(path: Path, data: NDArray[Any]) -> Picture:
    if data.dtype == np.uint8:
        return data
    numbers = data.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise _refused(path, "values that are no numbers (NaN or infinite)", "finite grey values")
    low, high = np.percentile(numbers, WINDOW)
    return _scaled(numbers, float(low), float(high))


def _scaled(numbers: NDArray[Any], low: float, high: float) -> Picture:
    scaled = (numbers.astype(np.float32) - low) / max(high - low, 1e-12)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def _refused(path: Path, found: str, expected: str, hint: str = "") -> Refused:
    return Refused([Problem(str(path), found=found, expected=expected, hint=hint)])
