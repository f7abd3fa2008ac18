"""Converts NIfTI volumes and DICOM objects to RGB slices, and masks of slices back to volumes."""

from __future__ import annotations

import gzip
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samfed_monai.core.errors import Problem, Problems, Refused, error_text, refused
from samfed_monai.core.io import Created, read_json, require_writable, undo_on_error, write_json, write_new
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.text import counted, grouped
from samfed_monai.core.validators import no_file_there, one_of, require, schema_problems
from samfed_monai.data.dicom import read_frames
from samfed_monai.data.folders import (
    FIRST_CHANNEL,
    class_value_problems,
    find_folders,
    list_images,
    mask_stem,
    relative,
    site_folders,
    sites_in,
)
from samfed_monai.data.image_folder import NIFTI, kind_of, stem_of
from samfed_monai.data.reading import Picture, left_out, png_of
from samfed_monai.data.weak_labels import IGNORE

WINDOW = (0.5, 99.5)
"""Percentiles of a volume that become black and white, unless its values are uint8."""
TOLERANCE = 0.1
"""Distance in voxels between corners of a mask and its volume: above rounding errors, too small to be visible."""

ROUNDING = 1e-3
"""Tolerance for whole numbers in masks, as programs that scale values (scl_slope) do not hit them exactly."""
SINGULAR, AGREEMENT = 1e-6, 0.01  # relative limits: of a voxel's volume; of its sides in qform and sform
LABEL_HINT = "name every value with --classes A,B, or give with --label N the value of the foreground, or of each class"
HINT_255 = "; if 255 is background, set it to 0; if 255 means 'not labelled': only pictures can have weak labels"
AGAIN = "copy or export it again; a compressed file ends in .nii.gz, any other in .nii"
AFFINE_HINT = "export it again, or set the right affine: nibabel.Nifti1Image(data, affine)"


@dataclass(frozen=True)
class Slices:
    """The pictures of one file.

    Args:
        pictures: (N, H, W, 3) uint8, RGB: slices of a volume along its last axis, transposed so that its first axis
            runs to the right; or the frames of a DICOM object.
        pixel_area: area of a pixel in mm², if known; of a volume from its affine.
        voxel: for a volume, mm from row to row, from column to column and from slice to slice.
    """

    pictures: Picture
    pixel_area: float | None = None
    voxel: tuple[float, float, float] | None = None


def read_slices(path: str | Path, *, reorient: bool = False) -> Slices:
    """Reads a NIfTI volume or a DICOM object.

    Grey values become RGB. NIfTI: 8-bit data are kept, others are scaled by :data:`WINDOW` of the whole volume. DICOM:
    see :func:`~samfed_monai.data.dicom.read_frames`.

    Args:
        path: the file.
        reorient: whether to reorient a NIfTI volume to RAS+ first, so that slices run from feet to head.

    Raises:
        Refused: a file that cannot be read, or is not a picture, stack of pictures or volume; to reorient, a volume
            without an orientation in its header.
    """
    path = Path(path)
    return _nifti(path, reorient) if kind_of(path) == NIFTI else Slices(*read_frames(path))


def read_mask_slices(
    path: str | Path,
    like: str | Path,
    *,
    labels: Sequence[int] = (),
    classes: Sequence[str] = (),
    reorient: bool = False,
    seen_values: set[int] | None = None,
) -> NDArray[np.uint8]:
    """Reads a NIfTI mask, in the order and orientation of the pictures of its volume.

    Args:
        path: the mask: whole numbers within :data:`ROUNDING`, with the volume's shape and position.
        like: the volume.
        labels: values that are foreground; empty takes the only one besides 0. With several classes, the value of each,
            in order; empty takes 1, 2, … and refuses other values. If ``labels`` are given, other values are
            background, but 255 as the only one is refused, as scribbles use it for "not labelled".
        classes: names of several classes; empty for one.
        reorient: as for the volume's pictures.
        seen_values: set to which the mask's values other than 0 are added.

    Returns:
        (N, H, W) in 0..K, ordered as the pictures of :class:`Slices`; K is 1 without ``classes``.

    Raises:
        Refused: another shape, or an affine that moves a corner by more than a tenth of a voxel; values that are not
            whole numbers; several values besides 0 and none named, or a value of no class.
    """
    from nibabel import aff2axcodes

    path = Path(path)
    mask, volume = _load(path), _load(Path(like))
    orientation = _orientation(Path(like), volume) if reorient else None
    shapes = _spatial_shape(mask), _spatial_shape(volume)
    if shapes[0] != shapes[1]:
        found, expected = (" x ".join(map(str, shape)) for shape in shapes)
        hint = "export the mask on the volume's grid"
        raise refused(path, f"{found} voxels", f"{expected}, as in {Path(like).name}", hint)
    distance = _corner_distance(mask.affine, volume.affine, shapes[1])
    if distance > TOLERANCE * np.linalg.norm(volume.affine[:3, : len(shapes[1])], axis=0).min():
        found = f"corners up to {distance:.4g} mm from the volume's"
        same_axes = aff2axcodes(mask.affine) == aff2axcodes(volume.affine)  # else a copied affine would mirror the mask
        hint = "resample the mask to the volume" + ("; if the grid is the same, copy the volume's affine" * same_axes)
        raise refused(path, found, f"the affine of {Path(like).name}", hint)
    data, expected = _voxels(path, mask), "whole numbers: 0 and the value of the mask"
    if data.dtype.names or data.size != np.prod(shapes[0]) or np.iscomplexobj(data):
        raise refused(path, "complex numbers" if np.iscomplexobj(data) else "colours", expected)
    data = data.reshape(shapes[0])
    values = np.unique(data)
    fractional = values[~(np.isclose(values, np.rint(values), rtol=0, atol=ROUNDING) & np.isfinite(values))]
    if fractional.size:
        found, hint = f"values such as {float(fractional[-1]):.9g}", "threshold it, or save it as integers"
        raise refused(path, found, expected, hint)
    data, values = np.rint(data), np.unique(np.rint(values))
    present = [int(value) for value in values if value]
    values_of_classes = list(labels) or list(range(1, len(classes) + 1)) or present[:1]
    unexpected = set(present) - set(values_of_classes)
    if unexpected == {IGNORE} or (unexpected and not labels):
        named = [f"{value} {name}" for value, name in zip(values_of_classes, classes, strict=False)] or map(str, labels)
        found, expected = ", ".join(map(str, present[:8])), ", ".join(named)
        hint = LABEL_HINT + (HINT_255 if IGNORE in unexpected else "")
        raise refused(path, f"the labels {found}", f"0 and {expected}" if expected else "one besides 0", hint)
    if seen_values is not None:
        seen_values.update(present)
    label = np.zeros(data.shape, np.uint8)
    for number, value in enumerate(values_of_classes, start=1):
        label[data == value] = number if classes else 1
    return _reoriented(label.reshape(shapes[0][0], shapes[0][1], -1), orientation).transpose(2, 1, 0)


def _corner_distance(affine: NDArray[Any], other_affine: NDArray[Any], shape: Sequence[int]) -> float:
    """Returns the largest distance in mm between a volume's corners under two affines; infinite if not finite."""
    last = [*(side - 1 for side in shape), 0, 0][:3]
    corners = np.array([[x, y, z, 1] for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])], float)
    distance = float(np.linalg.norm(((affine - other_affine) @ corners.T)[:3], axis=0).max())
    return distance if np.isfinite(distance) else float("inf")


def nifti_of(masks: Sequence[NDArray[Any]], like: Path, *, reorient: bool = False) -> bytes:
    """Returns masks as a gzipped uint8 NIfTI with the shape, position and units of their volume.

    Args:
        masks: (H, W) of each slice, bool or in 0..255 (class values, for instance), in the order of :class:`Slices`.
        like: the volume.
        reorient: whether the slices were read with ``reorient``; the NIfTI has the volume's own axes.
    """
    import nibabel

    source: Any = nibabel.load(like)
    data = np.stack([mask.T for mask in masks], axis=-1).astype(np.uint8)
    if reorient:
        forwards = nibabel.orientations.axcodes2ornt("RAS")
        data = _reoriented(data, nibabel.orientations.ornt_transform(forwards, _orientation(like, source)))
    image = nibabel.Nifti1Image(data.reshape(_spatial_shape(source)), source.affine)
    image.header.set_xyzt_units(*source.header.get_xyzt_units())
    for form in ("qform", "sform"):  # they may differ, and a viewer may use either
        matrix, code = getattr(source, f"get_{form}")(coded=True)
        getattr(image, f"set_{form}")(matrix, int(code))
    return gzip.compress(image.to_bytes(), mtime=0)  # without a time, the same masks give the same bytes


def _load(path: Path) -> Any:
    import nibabel

    with _refuse_errors(path, "a NIfTI volume", AGAIN):
        return nibabel.load(path)


@contextmanager
def _refuse_errors(path: Path, expected: str, hint: str = "") -> Iterator[None]:
    """Turns all exceptions except out-of-memory errors into :class:`Refused`: nibabel and zlib raise many kinds."""
    try:
        yield
    except FileNotFoundError:  # nibabel's own message does not say so; it also raises it for .Nii
        if path.exists():
            raise refused(path, "a suffix in mixed case", expected, "write .nii or .nii.gz") from None
        raise refused(path, "no such file", expected, "check the path") from None
    except Exception as error:
        raise refused(path, error_text(error), expected, hint) from None


def _voxels(path: Path, image: Any) -> NDArray[Any]:
    """Returns a volume's numbers, after reading a compressed file to its end, where its CRC is.

    Raises:
        Refused: also for voxels that are not between header and end of the file, and for sides of 0 or below without an
            sform, which nibabel replaces.
    """
    open_file: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with _refuse_errors(path, "a NIfTI volume", AGAIN), open_file(path, "rb") as stream:
        header = type(image.header).from_fileobj(stream, check=False)
        stream.seek(0)
        stored = type(image).from_stream(stream).dataobj
        data: NDArray[Any] = np.asarray(stored)
        end = stored.offset + data.size * stored.dtype.itemsize
        stream.seek(end)
        trailing = stream.read().strip(b"\0")
    if trailing or stored.offset < header.sizeof_hdr:
        found, hint = f"voxels in bytes {stored.offset} to {end}", "correct dim or vox_offset, or export it again"
        raise refused(path, found, "voxels from the end of the header to the end of the file", hint)
    sides = header["pixdim"][1:4][: data.ndim][np.array(data.shape[:3]) > 1]
    if header["sform_code"] == 0 and not (sides > 0).all():
        raise refused(path, f"voxel sides of {' x '.join(map(str, sides))} (pixdim)", "sides above 0", AFFINE_HINT)
    return data


def _nifti(path: Path, reorient: bool) -> Slices:
    from nibabel.orientations import inv_ornt_aff

    image = _load(path)
    shape, affine = _spatial_shape(image), _affine_in_mm(path, image)
    data = _voxels(path, image)
    dtype = data.dtype
    if dtype.names:  # NIfTI's RGB24 and RGBA32
        data = np.stack([data[channel] for channel in dtype.names[:3]], axis=-1)
    elif 0 < data.size == np.prod(shape) and dtype.kind in "buif":
        data = np.repeat(_to_grey(path, data.reshape(shape))[..., None], 3, axis=-1)
    if len(shape) not in (2, 3) or data.shape != (*shape, 3) or data.dtype != np.uint8:
        found = f"{dtype} of {' x '.join(map(str, image.shape))}"
        expected = "a picture (X, Y) or a volume (X, Y, Z) of grey values, or of 8-bit RGB"
        raise refused(path, found, expected, "save each volume or channel as a separate file, with real numbers")
    data = data.reshape(shape[0], shape[1], -1, 3)
    if reorient:
        directions = _orientation(path, image)
        affine = affine @ inv_ornt_aff(directions, data.shape[:3])
        data = _reoriented(data, directions)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    area = float(np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1])))
    voxel = (round(float(sides[1]), 6), round(float(sides[0]), 6), round(float(sides[2]), 6))
    return Slices(data.transpose(2, 1, 0, 3), area, voxel if len(shape) > 2 else None)


def _affine_in_mm(path: Path, image: Any) -> NDArray[Any]:
    """Returns the affine (4, 4) in mm: from the sform, else the qform, else pixdim."""
    from nibabel import aff2axcodes

    with _refuse_errors(path, "readable units and qform", AFFINE_HINT):  # unknown unit or invalid quaternion
        units = image.header.get_xyzt_units()[0]
        forms = {name: getattr(image, f"get_{name}")(coded=True)[0] for name in ("qform", "sform")}
    affine = np.asarray(image.affine, float)
    axes = len(_spatial_shape(image)[:3])
    sides = np.linalg.norm(affine[:3, :axes], axis=0)
    size = abs(np.linalg.det(affine[:3, :3])) if axes > 2 else np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1]))
    matrices = [affine, *(form[:3, :3] for form in forms.values() if form is not None)]
    if not all(np.isfinite(each).all() for each in matrices) or not size > SINGULAR * np.prod(sides):
        raise refused(path, "an affine in which voxels have no extent", "an affine that is not singular", AFFINE_HINT)
    if all(form is not None for form in forms.values()):
        sides_by_form = {name: np.linalg.norm(form[:3, :axes], axis=0) for name, form in forms.items()}
        same = np.allclose(sides_by_form["qform"], sides_by_form["sform"], rtol=AGREEMENT)
        if not same or aff2axcodes(forms["qform"])[:axes] != aff2axcodes(forms["sform"])[:axes]:
            sizes = {name: " x ".join(f"{side:.4g}" for side in sides) for name, sides in sides_by_form.items()}
            found = " and ".join(f"a {n} of {sizes[n]}, {''.join(aff2axcodes(form))}" for n, form in forms.items())
            hint = "keep the right one: image.set_qform(None, 0) or set_sform(None, 0) of nibabel"
            raise refused(path, found, "the same sizes and directions in both", hint)
    return affine * np.array([*[{"meter": 1e3, "micron": 1e-3}.get(units, 1.0)] * 3, 1.0])[:, None]


def _orientation(path: Path, image: Any) -> NDArray[Any]:
    """Returns nibabel's orientation of a volume for RAS+; refuses volumes without an orientation or three axes."""
    from nibabel import io_orientation

    if len(_spatial_shape(image)) < 3:
        raise refused(path, "a picture (X, Y)", "a volume of three axes to reorient", "leave out --reorient")
    if not (image.header["qform_code"] or image.header["sform_code"]):
        found = "no orientation (qform_code and sform_code are 0)"
        raise refused(path, found, "one of the two codes set, to reorient", "leave out --reorient, or set the affine")
    return np.asarray(io_orientation(image.affine))


def _reoriented(data: NDArray[Any], orientation: NDArray[Any] | None) -> NDArray[Any]:
    from nibabel.orientations import apply_orientation

    return data if orientation is None else np.ascontiguousarray(apply_orientation(data, orientation))


def different_orientations(paths: Sequence[Path]) -> list[str]:
    """Returns a sentence if the axes of several NIfTI volumes run in different directions of the body, else none."""
    from nibabel import aff2axcodes

    by_axes: dict[str, list[Path]] = {}
    for path in paths:
        image = _load(path)
        coded = image.header["qform_code"] or image.header["sform_code"]
        axes = "".join(str(axis) for axis in aff2axcodes(image.affine)) if coded else "of unknown direction"
        by_axes.setdefault(axes, []).append(path)
    if len(by_axes) < 2:
        return []
    groups = (f"{len(group)} {axes} (such as {group[0].name})" for axes, group in sorted(by_axes.items()))
    return [
        f"the axes of the volumes run in different directions: {', '.join(groups)}; slices are cut along the last axis "
        "of each, so that they show different planes or are mirrored: --reorient reorients all to RAS+ first"
    ]


def _spatial_shape(image: Any) -> tuple[int, ...]:
    """Returns the spatial shape, (X, Y) or (X, Y, Z), without trailing axes of length 1."""
    shape = tuple(image.shape)
    return shape[:3] if set(shape[3:]) <= {1} else shape


def _to_grey(path: Path, data: NDArray[Any]) -> Picture:
    if data.dtype == np.uint8:
        return data
    numbers = data.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise refused(path, "values that are NaN or infinite", "finite grey values", "replace them by the lowest value")
    low, high = map(float, np.percentile(numbers, WINDOW))
    return np.rint(np.clip((numbers - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)


VOLUMES = "volumes.json"
"""File beside the slices with the volume and spacing of each folder of slices."""
_VOLUMES_SCHEMA = read_json(Path(__file__).with_name("volumes.schema.json"))


def volumes_of(slices: str | Path) -> dict[str, dict[str, Any]]:
    """Returns ``{"volume": path, "spacing": [mm of a row, of a column, between slices]}`` by folder of slices.

    Args:
        slices: output folder of :func:`cut_nifti`; folders without this file give an empty result.

    Raises:
        Refused: the file is not a record of :func:`cut_nifti`.
    """
    path = Path(slices) / VOLUMES
    content = read_json(path) if path.is_file() else {}
    hint = "cut the volumes again, or move the file away if it is not from `samfed prepare nifti`"
    require(replace(problem, hint=hint) for problem in schema_problems(content, _VOLUMES_SCHEMA, str(path)))
    return dict(content)


class _Volume(NamedTuple):
    """The folder of a site's slices, the name of a volume in it, the volume's path, and its mask."""

    site: Path
    name: str
    path: Path
    mask: Path | None


def cut_nifti(
    root: str | Path,
    slices: str | Path,
    *,
    labels: Sequence[int] = (),
    classes: Sequence[str] = (),
    reorient: bool = False,
    without_spacing: Sequence[str] = (),
    skip_unreadable: bool = False,
    written: Created | None = None,
) -> list[str]:
    """Cuts NIfTI volumes and their masks into pictures, in the layout of :mod:`.folders`.

    A volume ``<site>/images/NAME.nii.gz`` becomes ``<slices>/<site>/images/NAME/NAME_0001.png`` and so on, along its
    last axis, with the grey values of ``samfed infer`` (:func:`read_slices`); its mask becomes ``masks`` with the same
    names. Slices without foreground have empty masks; slices of a single grey value without foreground are left out, as
    they are equal in all volumes and would join patients. :data:`VOLUMES` records the source of each folder.

    Args:
        root: folder of sites, or one site's own folder.
        slices: folder for the pictures, and the data root of a list.
        labels, classes: see :func:`read_mask_slices`; slices of several classes hold class values. Without either, all
            masks must have one foreground value; 1 and 255 count as one.
        reorient: see :func:`read_slices`.
        without_spacing: sites whose headers have wrong voxel sizes; no distance in mm is measured there.
        skip_unreadable: whether to leave out volumes that cannot be read, or whose mask cannot, each with a warning.
        written: mapping to which the new files are added.

    Returns:
        Sentences on volumes and slices left out.

    Raises:
        Refused: all problems of all volumes, and existing files with other content. New files are deleted then.
    """
    root, slices, problems = Path(root), Path(slices), Problems()
    if slices.resolve().is_relative_to(root.resolve()):
        problems.add("--slices", found=str(slices), expected=f"a folder outside {root}", hint="choose another folder")
    if classes and labels and len(labels) != len(classes):
        found, expected = f"{len(labels)} values", f"one for each of {list(classes)}, in this order"
        problems.add("--label", found=found, expected=expected, hint="give it once for each class, or leave it out")
    if 0 in labels or len({*labels}) < len(labels):
        found, expected = f"the values {', '.join(map(str, labels))}", "each value once, without 0 (the background)"
        problems.add("--label", found=found, expected=expected)
    problems.extend(no_file_there("--slices", slices))
    volumes, sentences = _find_volumes(root, slices, problems)
    problems.extend(class_value_problems(root, dict(zip(classes, labels or range(1, len(classes) + 1), strict=False))))
    for site in without_spacing:
        problems.extend(one_of("--without-spacing", site, sorted({each.site.name for each in volumes}), "name a site"))
    problems.refuse_if_any()  # before any volume is read
    require_writable(slices)
    skipped, paths, notes, blank_slices, examples = list[Path](), set[Path](), dict[str, Any](), 0, dict[int, Path]()
    with undo_on_error(written) as files:
        for volume in progress_bar(volumes, desc="cutting", unit="volume"):
            try:
                cut, voxel, blank, values = _cut_volume(volume, labels, classes, reorient)
            except Refused as refusal:
                unreadable = _is_unreadable(volume)
                skipped += [volume.path] if unreadable and skip_unreadable else []
                problems.extend(left_out(refusal.problems, unreadable, skip_unreadable=skip_unreadable))
                continue
            paths |= cut.keys()
            blank_slices += blank
            examples = {value: volume.mask for value in values if volume.mask} | examples
            spacing = list(voxel) if voxel and volume.site.name not in without_spacing else None
            folder = relative(volume.site / "images" / volume.name, slices)
            notes[folder] = {"volume": relative(volume.path, root), "spacing": spacing}
            if not len(problems):  # after a problem, all files are deleted in the end
                with problems.collected():
                    write_new(cut, files)
        foreground = examples.keys() - {0}
        if not labels and not classes and len(foreground) > 1 and foreground != {1, 255}:
            found = " and ".join(f"{value} in {relative(examples[value], root)}" for value in sorted(foreground)[:4])
            problems.add("--label", found=found, expected="the same foreground value in all masks", hint=LABEL_HINT)
        if labels and not classes and examples and not foreground & {*labels}:
            found = f"{' and '.join(map(str, labels))}, which no mask has"
            problems.add("--label", found=found, expected="the value of foreground in masks", hint="look at one")
        if not len(problems):  # the slices of a volume with a problem are unknown
            problems.extend(_foreign_slices(slices, paths))
        problems.refuse_if_any()
        record = slices / VOLUMES
        files.setdefault(record, record.read_bytes() if record.exists() else None)
        write_json(record, notes)
    subject = counted(len(skipped), "unreadable volume was", "unreadable volumes were")
    sentences = [*sentences, *(f"{subject} left out, such as {relative(path, root)}" for path in skipped[:1])]
    sentences += [f"{counted(blank_slices, 'slice')} of a single grey value left out"] if blank_slices else []
    read = [volume.path for volume in volumes if volume.path not in skipped]
    return sentences if reorient else [*sentences, *different_orientations(read)]


def _cut_volume(
    volume: _Volume, labels: Sequence[int], classes: Sequence[str], reorient: bool
) -> tuple[dict[Path, bytes], tuple[float, float, float] | None, int, set[int]]:
    """Returns the files of a volume's slices and masks, its voxel size in mm, the number of slices left out, and the
    values of the mask, 0 included."""
    read = read_slices(volume.path, reorient=reorient)
    has_content = read.pictures.min((1, 2, 3)) < read.pictures.max((1, 2, 3))
    kinds, values = {"images": read.pictures}, {0}
    if volume.mask is not None:
        options: dict[str, Any] = {"labels": labels, "classes": classes, "reorient": reorient, "seen_values": values}
        kinds["masks"] = read_mask_slices(volume.mask, volume.path, **options)
        has_content |= kinds["masks"].any((1, 2))
        kinds["masks"] = kinds["masks"] if classes else 255 * kinds["masks"]
    kept = np.flatnonzero(has_content | ~has_content.any())
    files = {
        volume.site / kind / volume.name / f"{volume.name}_{number + 1:04d}.png": png_of(pictures[number])
        for kind, pictures in kinds.items()
        for number in kept.tolist()
    }
    return files, read.voxel, len(has_content) - len(kept), values


def _is_unreadable(volume: _Volume) -> bool:
    """Whether a volume cannot be read, or its mask cannot be decoded; one with wrong values or another size can."""
    with suppress(Refused):
        read_slices(volume.path)
        mask = volume.mask or volume.path
        _voxels(mask, _load(mask))
        return False
    return True


def _foreign_slices(slices: Path, cut_paths: Collection[Path]) -> list[Problem]:
    """Returns a problem for each folder with pictures that were not cut and would be used as slices or masks."""
    folders = (site / kind for site in site_folders(slices).values() for kind in ("images", "masks"))
    others = (path for folder in folders for path in list_images(folder) if path not in cut_paths)
    by_folder = grouped((path.parent, path.name) for path in others)
    expected, hint = "only slices of volumes and masks of DIR", "delete them, or cut into a new folder"
    found = {folder: f"{counted(len(names), 'other slice')}, such as {names[0]}" for folder, names in by_folder.items()}
    return [Problem(str(folder), found[folder], expected, hint) for folder in found]


def _find_volumes(root: Path, slices: Path, problems: Problems) -> tuple[list[_Volume], Sequence[str]]:
    """Returns the volumes of all sites, and sentences on files of other kinds and on masks without a volume."""
    listing, sites, volumes = find_folders(root, public=None, kind=NIFTI), sites_in(root), list[_Volume]()
    problems.extend(listing.problems)
    for site, entry in ((site, entry) for site, found in listing.sites.items() for entry in found):
        path, mask = root / entry.image, root / entry.label if entry.label else None
        name = "_".join((*path.relative_to(sites[site] / "images").parent.parts, stem_of(path)))
        volumes.append(_Volume(slices / site, name, path, mask))
    if any(volume.mask and mask_stem(volume.path) == f"{mask_stem(volume.mask)}{FIRST_CHANNEL}" for volume in volumes):
        expected, hint = "volumes of one channel (nnU-Net's _0000)", "move the other channels out of the folder"
        for number, volume in enumerate(volumes):
            if volume.mask and mask_stem(volume.mask) == mask_stem(volume.path):
                continue  # a number that the mask has too is not a channel
            if volume.mask is None and re.fullmatch(rf".+(?!{FIRST_CHANNEL})_\d{{4}}", volume.name):
                problems.add(str(volume.path), found="a further channel", expected=expected, hint=hint)
            volumes[number] = volume._replace(name=volume.name.removesuffix(FIRST_CHANNEL))  # nnU-Net's case name
    first: dict[tuple[Path, str], _Volume] = {}
    for volume in volumes:
        if first.setdefault((volume.site, volume.name), volume) != volume:
            problems.add(str(volume.path), found=f"a second {volume.name}", expected="one volume of this name per site")
    return volumes, listing.caveats
