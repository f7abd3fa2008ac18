"""NIfTI volumes and DICOM objects: out as RGB slices, which everything else here reads; masks back as volumes."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfed_monai.core.errors import refused
from samfed_monai.data.dicom import read_frames
from samfed_monai.data.walk import NIFTI, kind_of

Picture = NDArray[np.uint8]

WINDOW = (0.5, 99.5)
"""Percentiles of a volume that become black and white, where its numbers are no grey values from 0 to 255."""
TOLERANCE = 0.1
"""Voxels that a mask's corner may lie from its volume's: more than two programs' rounding, less than a reader sees."""

ROUNDING = 1e-3
"""How far from whole a mask's numbers may be: programs that scale them (scl_slope) do not hit them exactly."""
SINGULAR, AGREEMENT = 1e-6, 0.01  # shares of a voxel: of its volume; of its sides in qform and sform
REPAIR = "export it again, or set a right affine: nibabel.Nifti1Image(data, affine)"


@dataclass(frozen=True)
class Slices:
    """What one file holds, as pictures.

    Args:
        path: the file.
        kind: ``nifti`` or ``dicom``.
        pictures: (N, H, W, 3) uint8, RGB: slices of a volume along its last axis, rows and columns swapped so that its
            first axis runs to the right; or the frames of a DICOM object.
        pixel_area: mm² of a pixel, where the file says it; of a volume by its affine.
        spacing: mm from slice to slice, where the file says it.
        voxel: of a volume, mm from row to row, from column to column and from slice to slice.
    """

    path: Path
    kind: str
    pictures: Picture
    pixel_area: float | None = None
    spacing: float | None = None
    voxel: tuple[float, float, float] | None = None


def read_slices(path: str | Path, *, reorient: bool = False) -> Slices:
    """Reads a NIfTI volume or a DICOM object.

    Grey values become RGB. NIfTI: 8-bit data are taken as they are, others by :data:`WINDOW` of the whole volume.
    DICOM: see :func:`~samfed_monai.data.dicom.read_frames`.

    Args:
        path: the file.
        reorient: whether the axes of a NIfTI volume are brought to RAS+ first, so that slices run from feet to head.

    Raises:
        Refused: a file that cannot be read, or is no picture, stack of pictures or volume; a volume whose header does
            not give its position.
    """
    path = Path(path)
    return _nifti(path, reorient) if kind_of(path) == NIFTI else Slices(path, "dicom", *read_frames(path))


def read_mask_slices(
    path: str | Path,
    like: str | Path,
    *,
    labels: Sequence[int] = (),
    classes: Sequence[str] = (),
    reorient: bool = False,
) -> NDArray[np.uint8]:
    """The foreground of a NIfTI mask, in the order and orientation of the pictures of its volume.

    Args:
        path: the mask: whole numbers to :data:`ROUNDING`, of the volume's shape and place.
        like: the volume.
        labels: values that are foreground; empty takes the only one beside 0. Of several classes, the value of each, in
            their order, and every other is background; empty takes 1, 2, … and refuses every other.
        classes: names of several classes; empty for one.
        reorient: as the volume's pictures are read.

    Returns:
        (N, H, W) in 0..K, as :class:`Slices` has its pictures; K is 1 without ``classes``.

    Raises:
        Refused: another shape, or an affine that puts a corner more than a tenth of a voxel elsewhere; values that are
            no whole numbers; several values beside 0 of which none is named, or one that no class has.
    """
    path = Path(path)
    mask, volume = _loaded(path), _loaded(Path(like))
    directions = _directions(Path(like), volume) if reorient else None
    shapes = _space(mask), _space(volume)
    if shapes[0] != shapes[1]:
        found, expected = (" x ".join(map(str, shape)) for shape in shapes)
        raise refused(
            path, f"{found} voxels", f"{expected}, as {Path(like).name} has", "export it on the volume's grid"
        )
    apart = _corners_apart(mask.affine, volume.affine, shapes[1])
    if apart > TOLERANCE * np.linalg.norm(volume.affine[:3, : len(shapes[1])], axis=0).min():
        found = f"corners up to {apart:.4g} mm from the volume's"
        hint = "resample the mask to the volume; of the same grid, copy the volume's affine"
        raise refused(path, found, f"the affine of {Path(like).name}", hint)
    data = _numbers(path, mask)
    if data.dtype.names or data.size != np.prod(shapes[0]):
        raise refused(path, "colours", "whole numbers: 0 and a mask's value")
    data = data.reshape(shapes[0])
    expected = "whole numbers: 0 and a mask's value"
    if np.iscomplexobj(data):
        raise refused(path, "complex numbers", expected)
    values = np.unique(data)
    part = values[~(np.abs(values - np.rint(values)) <= ROUNDING)]  # what is infinite or no number is a part, too
    if part.size:
        raise refused(path, f"values such as {float(part[-1]):.9g}", expected, "threshold it, or save it as integers")
    data, values = np.rint(data), np.unique(np.rint(values))
    there = [int(value) for value in values if value]
    shown = ", ".join(map(str, there[:8]))
    if classes:
        wanted = list(labels) or list(range(1, len(classes) + 1))
        if not labels and not set(there) <= set(wanted):
            named = ", ".join(f"{number} {name}" for number, name in zip(wanted, classes, strict=True))
            hint = "name every class with --classes, or say with --label which value each of them has"
            raise refused(path, f"the labels {shown}", f"0 and {named}", hint)
        drawn = sum((number * (data == value) for number, value in enumerate(wanted, start=1)), np.zeros(data.shape))
    else:
        if not labels and len(there) > 1:
            hint = "say which are foreground: --label N, or name each as a class: --classes A,B"
            raise refused(path, f"the labels {shown}", "one beside 0", hint)
        drawn = np.isin(data, sorted(set(labels) or set(there)))
    drawn = drawn.astype(np.uint8).reshape(shapes[0][0], shapes[0][1], -1)
    return _turned(drawn, directions).transpose(2, 1, 0)


def _corners_apart(one: NDArray[Any], other: NDArray[Any], shape: Sequence[int]) -> float:
    """How far, in mm, two affines put a corner of a volume apart at most; infinite if either has no numbers."""
    last = [*(side - 1 for side in shape), 0, 0][:3]
    corners = np.array([[x, y, z, 1] for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])], float)
    apart = float(np.linalg.norm(((one - other) @ corners.T)[:3], axis=0).max())
    return apart if np.isfinite(apart) else float("inf")


def nifti_of(masks: Sequence[NDArray[Any]], like: Path, *, reorient: bool = False) -> bytes:
    """A gzipped NIfTI, uint8, with shape, place and units of the volume that the masks were made of.

    Args:
        masks: (H, W) of each slice, bool or in 0..255 (values of classes, for instance), in the order of
            :class:`Slices`.
        like: the volume.
        reorient: whether the slices were read with it; the NIfTI has the volume's own axes.
    """
    import nibabel

    source: Any = nibabel.load(like)
    data = np.stack([mask.T for mask in masks], axis=-1).astype(np.uint8)
    if reorient:
        directions = _directions(like, source)
        data = _turned(data, nibabel.orientations.ornt_transform(_directions_of("RAS"), directions))
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
        raise refused(path, f"{type(error).__name__}: {error}", "a NIfTI volume") from None


def _numbers(path: Path, image: Any) -> NDArray[Any]:
    try:
        return np.asarray(image.dataobj)
    except Exception as error:
        raise refused(path, f"{type(error).__name__}: {error}", "a NIfTI volume") from None


def _nifti(path: Path, reorient: bool) -> Slices:
    from nibabel.orientations import inv_ornt_aff

    image = _loaded(path)
    shape, affine = _space(image), _millimetres(path, image)
    data = _numbers(path, image)
    numbers = data.dtype
    if numbers.names:  # NIfTI's RGB24 and RGBA32
        data = np.stack([data[channel] for channel in numbers.names[:3]], axis=-1)
    elif data.size == np.prod(shape) and numbers.kind in "buif":
        data = np.repeat(_to_grey(path, data.reshape(shape))[..., None], 3, axis=-1)
    if len(shape) not in (2, 3) or data.shape != (*shape, 3) or data.dtype != np.uint8:
        found = f"{numbers} of {' x '.join(map(str, image.shape))}"
        expected = "a picture (X, Y) or a volume (X, Y, Z) of grey values, or of 8-bit RGB"
        raise refused(path, found, expected, "save each volume or channel as a file of its own, with real numbers")
    data = data.reshape(shape[0], shape[1], -1, 3)
    if reorient:
        directions = _directions(path, image)
        affine = affine @ inv_ornt_aff(directions, data.shape[:3])
        data = _turned(data, directions)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    area = float(np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1])))
    deep = len(shape) > 2
    voxel = (round(float(sides[1]), 6), round(float(sides[0]), 6), round(float(sides[2]), 6)) if deep else None
    return Slices(path, "nifti", data.transpose(2, 1, 0, 3), area, float(sides[2]) if deep else None, voxel)


def _millimetres(path: Path, image: Any) -> NDArray[Any]:
    """The affine (4, 4) in mm: the sform where there is one, else the qform, else pixdim alone."""
    from nibabel import aff2axcodes

    try:
        units = image.header.get_xyzt_units()[0]
        forms = {name: getattr(image, f"get_{name}")(coded=True)[0] for name in ("qform", "sform")}
    except Exception as error:  # an unknown unit, a quaternion that is none
        raise refused(path, f"{type(error).__name__}: {error}", "units and a qform that can be read", REPAIR) from None
    affine = np.asarray(image.affine, float)
    axes = len(_space(image)[:3])
    sides = np.linalg.norm(affine[:3, :axes], axis=0)
    size = abs(np.linalg.det(affine[:3, :3])) if axes > 2 else np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1]))
    if not np.isfinite(affine).all() or not size > SINGULAR * np.prod(sides):
        raise refused(path, "an affine in which voxels have no extent", "one that is not singular", REPAIR)
    if all(form is not None for form in forms.values()):
        others = {name: np.linalg.norm(form[:3, :axes], axis=0) for name, form in forms.items()}
        same = np.allclose(others["qform"], others["sform"], rtol=AGREEMENT)
        if not same or aff2axcodes(forms["qform"])[:axes] != aff2axcodes(forms["sform"])[:axes]:
            found = " and ".join(
                f"a {name} of {' x '.join(f'{side:.4g}' for side in others[name])}, {''.join(aff2axcodes(form))}"
                for name, form in forms.items()
            )
            hint = "keep the one that is right: image.set_qform(None, 0) or set_sform(None, 0) of nibabel"
            raise refused(path, found, "the same sizes and directions in both", hint)
    return affine * np.array([*[{"meter": 1e3, "micron": 1e-3}.get(units, 1.0)] * 3, 1.0])[:, None]


def _directions(path: Path, image: Any) -> NDArray[Any]:
    """How nibabel turns a volume to RAS+; one that does not say how it lies, or has no three axes, is refused."""
    from nibabel import io_orientation

    if len(_space(image)) < 3:
        raise refused(path, "a picture (X, Y)", "a volume of three axes to reorient", "leave --reorient out")
    if not (image.header["qform_code"] or image.header["sform_code"]):
        found = "no orientation (qform_code and sform_code are 0)"
        raise refused(path, found, "one of the two, to reorient by", "leave --reorient out, or set the affine")
    directions: NDArray[Any] = io_orientation(image.affine)
    return directions


def _directions_of(axes: str) -> NDArray[Any]:
    from nibabel.orientations import axcodes2ornt

    directions: NDArray[Any] = axcodes2ornt(axes)
    return directions


def _turned(data: NDArray[Any], directions: NDArray[Any] | None) -> NDArray[Any]:
    from nibabel.orientations import apply_orientation

    return data if directions is None else np.ascontiguousarray(apply_orientation(data, directions))


def different_orientations(paths: Sequence[Path]) -> list[str]:
    """A sentence if the axes of several NIfTI volumes run in different directions of the body, else none."""
    from nibabel import aff2axcodes

    found: dict[str, list[Path]] = {}
    for path in paths:
        image = _loaded(path)
        coded = image.header["qform_code"] or image.header["sform_code"]
        axes = "".join(str(axis) for axis in aff2axcodes(image.affine)) if coded else "of unknown direction"
        found.setdefault(axes, []).append(path)
    if len(found) < 2:
        return []
    groups = (f"{len(of)} {axes} (such as {of[0].name})" for axes, of in sorted(found.items()))
    return [
        f"the axes of the volumes run in different directions: {', '.join(groups)}; slices are cut along the last axis "
        "of each, so that they show different planes or are mirrored: --reorient turns all to RAS+ first"
    ]


def _space(image: Any) -> tuple[int, ...]:
    """The axes of space: (X, Y) or (X, Y, Z), without those of length 1 behind them."""
    shape: list[int] = list(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def _to_grey(path: Path, data: NDArray[Any]) -> Picture:
    if data.dtype == np.uint8:
        return data
    numbers = data.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise refused(path, "values that are no numbers (NaN or infinite)", "finite grey values")
    low, high = np.percentile(numbers, WINDOW)
    return _scaled(numbers, float(low), float(high))


def _scaled(numbers: NDArray[Any], low: float, high: float) -> Picture:
    scaled = (numbers.astype(np.float32) - low) / max(high - low, 1e-12)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
