"""Converts NIfTI volumes and DICOM objects to RGB slices, and masks of slices back to volumes."""

from __future__ import annotations

import gzip
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samfed_monai.core.errors import Problem, Problems, Refused, failure_of, refused
from samfed_monai.core.io import Written, read_json, taken_back_on_error, write_json, write_new
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.validators import one_of
from samfed_monai.core.words import counted
from samfed_monai.data.dicom import read_frames
from samfed_monai.data.folders import (
    FIRST_CHANNEL,
    list_images,
    lonely_sentence,
    mask_stem,
    match_masks,
    other_values,
    others_in,
    passed_over,
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
WHICH = "name every value with --classes A,B, or give with --label N the value of the foreground, or of each class"
NOT_LABELLED = "; if 255 is background, set it to 0; if 255 means 'not labelled': only pictures can have weak labels"
REPAIR = "export it again, or set the right affine: nibabel.Nifti1Image(data, affine)"


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
    held: set[int] | None = None,
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
        held: set to which the mask's values other than 0 are added.

    Returns:
        (N, H, W) in 0..K, ordered as the pictures of :class:`Slices`; K is 1 without ``classes``.

    Raises:
        Refused: another shape, or an affine that moves a corner by more than a tenth of a voxel; values that are not
            whole numbers; several values besides 0 and none named, or a value of no class.
    """
    path = Path(path)
    mask, volume = _loaded(path), _loaded(Path(like))
    directions = _directions(Path(like), volume) if reorient else None
    shapes = _space(mask), _space(volume)
    if shapes[0] != shapes[1]:
        found, expected = (" x ".join(map(str, shape)) for shape in shapes)
        raise refused(
            path, f"{found} voxels", f"{expected}, as in {Path(like).name}", "export the mask on the volume's grid"
        )
    apart = _corners_apart(mask.affine, volume.affine, shapes[1])
    if apart > TOLERANCE * np.linalg.norm(volume.affine[:3, : len(shapes[1])], axis=0).min():
        found = f"corners up to {apart:.4g} mm from the volume's"
        hint = "resample the mask to the volume; if both have the same grid, copy the volume's affine"
        raise refused(path, found, f"the affine of {Path(like).name}", hint)
    data, expected = _numbers(path, mask), "whole numbers: 0 and the value of the mask"
    if data.dtype.names or data.size != np.prod(shapes[0]) or np.iscomplexobj(data):
        raise refused(path, "complex numbers" if np.iscomplexobj(data) else "colours", expected)
    data = data.reshape(shapes[0])
    values = np.unique(data)
    part = values[~(np.abs(values - np.rint(values)) <= ROUNDING)]  # includes infinity and NaN
    if part.size:
        raise refused(path, f"values such as {float(part[-1]):.9g}", expected, "threshold it, or save it as integers")
    data, values = np.rint(data), np.unique(np.rint(values))
    there = [int(value) for value in values if value]
    wanted = list(labels) or list(range(1, len(classes) + 1)) or there[:1]
    alien = set(there) - set(wanted)
    if alien == {IGNORE} or (alien and not labels):
        named = [f"{value} {name}" for value, name in zip(wanted, classes, strict=False)] or map(str, labels)
        found, expected = ", ".join(map(str, there[:8])), ", ".join(named)
        hint = WHICH + (NOT_LABELLED if IGNORE in alien else "")
        raise refused(path, f"the labels {found}", f"0 and {expected}" if expected else "one besides 0", hint)
    if held is not None:
        held.update(there)
    drawn = np.zeros(data.shape, np.uint8)
    for number, value in enumerate(wanted, start=1):
        drawn[data == value] = number if classes else 1
    return _turned(drawn.reshape(shapes[0][0], shapes[0][1], -1), directions).transpose(2, 1, 0)


def _corners_apart(one: NDArray[Any], other: NDArray[Any], shape: Sequence[int]) -> float:
    """Returns the largest distance in mm between a volume's corners under two affines; infinite if not finite."""
    last = [*(side - 1 for side in shape), 0, 0][:3]
    corners = np.array([[x, y, z, 1] for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])], float)
    apart = float(np.linalg.norm(((one - other) @ corners.T)[:3], axis=0).max())
    return apart if np.isfinite(apart) else float("inf")


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
        data = _turned(data, nibabel.orientations.ornt_transform(forwards, _directions(like, source)))
    image = nibabel.Nifti1Image(data.reshape(_space(source)), source.affine)
    image.header.set_xyzt_units(*source.header.get_xyzt_units())
    for form in ("qform", "sform"):  # they may differ, and a viewer may use either
        matrix, code = getattr(source, f"get_{form}")(coded=True)
        getattr(image, f"set_{form}")(matrix, int(code))
    return gzip.compress(image.to_bytes(), mtime=0)  # without a time, the same masks give the same bytes


def _loaded(path: Path) -> Any:
    import nibabel

    with _refused_as(path, "a NIfTI volume"):
        return nibabel.load(path)


@contextmanager
def _refused_as(path: Path, expected: str, hint: str = "") -> Iterator[None]:
    """Turns all exceptions except out-of-memory errors into :class:`Refused`: nibabel and zlib raise many kinds."""
    try:
        yield
    except FileNotFoundError:  # nibabel's own message does not say so
        raise refused(path, "no such file", expected, "check the path") from None
    except Exception as error:
        raise refused(path, failure_of(error), expected, hint) from None


def _numbers(path: Path, image: Any) -> NDArray[Any]:
    """Returns a volume's numbers, after reading a compressed file to its end, where its CRC is.

    Raises:
        Refused: also for voxels that are not between header and end of the file, and for sides of 0 or below without an
            sform, which nibabel replaces.
    """
    unpacked: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with _refused_as(path, "a NIfTI volume"), unpacked(path, "rb") as stream:
        header = type(image.header).from_fileobj(stream, check=False)
        stream.seek(0)
        stored = type(image).from_stream(stream).dataobj
        data: NDArray[Any] = np.asarray(stored)
        stream.seek(end := stored.offset + data.size * stored.dtype.itemsize)
        rest = stream.read().strip(b"\0")
    if rest or stored.offset < header.sizeof_hdr:
        found, hint = f"voxels in bytes {stored.offset} to {end}", "correct dim or vox_offset, or export it again"
        raise refused(path, found, "voxels from the end of the header to the end of the file", hint)
    sides = header["pixdim"][1:4][: data.ndim][np.array(data.shape[:3]) > 1]
    if header["sform_code"] == 0 and not (sides > 0).all():
        raise refused(path, f"voxel sides of {' x '.join(map(str, sides))} (pixdim)", "sides above 0", REPAIR)
    return data


def _nifti(path: Path, reorient: bool) -> Slices:
    from nibabel.orientations import inv_ornt_aff

    image = _loaded(path)
    shape, affine = _space(image), _millimetres(path, image)
    data = _numbers(path, image)
    numbers = data.dtype
    if numbers.names:  # NIfTI's RGB24 and RGBA32
        data = np.stack([data[channel] for channel in numbers.names[:3]], axis=-1)
    elif 0 < data.size == np.prod(shape) and numbers.kind in "buif":
        data = np.repeat(_to_grey(path, data.reshape(shape))[..., None], 3, axis=-1)
    if len(shape) not in (2, 3) or data.shape != (*shape, 3) or data.dtype != np.uint8:
        found = f"{numbers} of {' x '.join(map(str, image.shape))}"
        expected = "a picture (X, Y) or a volume (X, Y, Z) of grey values, or of 8-bit RGB"
        raise refused(path, found, expected, "save each volume or channel as a separate file, with real numbers")
    data = data.reshape(shape[0], shape[1], -1, 3)
    if reorient:
        directions = _directions(path, image)
        affine = affine @ inv_ornt_aff(directions, data.shape[:3])
        data = _turned(data, directions)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    area = float(np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1])))
    voxel = (round(float(sides[1]), 6), round(float(sides[0]), 6), round(float(sides[2]), 6))
    return Slices(data.transpose(2, 1, 0, 3), area, voxel if len(shape) > 2 else None)


def _millimetres(path: Path, image: Any) -> NDArray[Any]:
    """Returns the affine (4, 4) in mm: from the sform, else the qform, else pixdim."""
    from nibabel import aff2axcodes

    with _refused_as(path, "readable units and qform", REPAIR):  # unknown unit or invalid quaternion
        units = image.header.get_xyzt_units()[0]
        forms = {name: getattr(image, f"get_{name}")(coded=True)[0] for name in ("qform", "sform")}
    affine = np.asarray(image.affine, float)
    axes = len(_space(image)[:3])
    sides = np.linalg.norm(affine[:3, :axes], axis=0)
    size = abs(np.linalg.det(affine[:3, :3])) if axes > 2 else np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1]))
    given = [affine, *(form[:3, :3] for form in forms.values() if form is not None)]
    if not all(np.isfinite(each).all() for each in given) or not size > SINGULAR * np.prod(sides):
        raise refused(path, "an affine in which voxels have no extent", "an affine that is not singular", REPAIR)
    if all(form is not None for form in forms.values()):
        others = {name: np.linalg.norm(form[:3, :axes], axis=0) for name, form in forms.items()}
        same = np.allclose(others["qform"], others["sform"], rtol=AGREEMENT)
        if not same or aff2axcodes(forms["qform"])[:axes] != aff2axcodes(forms["sform"])[:axes]:
            found = " and ".join(
                f"a {name} of {' x '.join(f'{side:.4g}' for side in others[name])}, {''.join(aff2axcodes(form))}"
                for name, form in forms.items()
            )
            hint = "keep the right one: image.set_qform(None, 0) or set_sform(None, 0) of nibabel"
            raise refused(path, found, "the same sizes and directions in both", hint)
    return affine * np.array([*[{"meter": 1e3, "micron": 1e-3}.get(units, 1.0)] * 3, 1.0])[:, None]


def _directions(path: Path, image: Any) -> NDArray[Any]:
    """Returns nibabel's orientation of a volume for RAS+; refuses volumes without an orientation or three axes."""
    from nibabel import io_orientation

    if len(_space(image)) < 3:
        raise refused(path, "a picture (X, Y)", "a volume of three axes to reorient", "leave out --reorient")
    if not (image.header["qform_code"] or image.header["sform_code"]):
        found = "no orientation (qform_code and sform_code are 0)"
        raise refused(path, found, "one of the two codes set, to reorient", "leave out --reorient, or set the affine")
    directions: NDArray[Any] = io_orientation(image.affine)
    return directions


def _turned(data: NDArray[Any], directions: NDArray[Any] | None) -> NDArray[Any]:
    from nibabel.orientations import apply_orientation

    return data if directions is None else np.ascontiguousarray(apply_orientation(data, directions))


def different_orientations(paths: Sequence[Path]) -> list[str]:
    """Returns a sentence if the axes of several NIfTI volumes run in different directions of the body, else none."""
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
        "of each, so that they show different planes or are mirrored: --reorient reorients all to RAS+ first"
    ]


def _space(image: Any) -> tuple[int, ...]:
    """Returns the spatial shape, (X, Y) or (X, Y, Z), without trailing axes of length 1."""
    shape: list[int] = list(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def _to_grey(path: Path, data: NDArray[Any]) -> Picture:
    if data.dtype == np.uint8:
        return data
    numbers = data.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise refused(path, "values that are NaN or infinite", "finite grey values")
    low, high = map(float, np.percentile(numbers, WINDOW))
    return np.rint(np.clip((numbers - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)


VOLUMES = "volumes.json"
"""File beside the slices with the volume and spacing of each folder of slices."""


def volumes_of(slices: str | Path) -> dict[str, dict[str, Any]]:
    """Returns ``{"volume": path, "spacing": [mm of a row, of a column, between slices]}`` by folder of slices.

    Args:
        slices: output folder of :func:`cut_nifti`; other folders give an empty result.
    """
    path = Path(slices) / VOLUMES
    return dict(read_json(path)) if path.is_file() else {}


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
    written: Written | None = None,
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
    volumes, sentences = _volumes_below(root, slices, problems)
    problems.extend(other_values(root, dict(zip(classes, labels or range(1, len(classes) + 1), strict=False))))
    for site in without_spacing:
        problems.extend(one_of("--without-spacing", site, sorted({each.site.name for each in volumes}), "name a site"))
    skipped, kept, notes, blank, held = list[Path](), set[Path](), dict[str, Any](), 0, dict[int, Path]()
    with taken_back_on_error(written) as files:
        for each in progress_bar(volumes, desc="cutting", unit="volume"):
            try:
                cut, voxel, single, values = _cut(each, labels, classes, reorient)
            except Refused as refusal:
                unreadable = any(_is_unreadable(file) for file in (each.path, each.mask) if file)
                skipped += [each.path] if unreadable and skip_unreadable else []
                problems.extend(left_out(refusal.problems, unreadable, skip_unreadable=skip_unreadable))
                continue
            kept |= cut.keys()
            blank += single
            held = {value: each.mask for value in values if each.mask} | held
            spacing = list(voxel) if voxel and each.site.name not in without_spacing else None
            folder = relative(each.site / "images" / each.name, slices)
            notes[folder] = {"volume": relative(each.path, root), "spacing": spacing}
            if not len(problems):  # after a problem, all files are deleted in the end
                with problems.collected():
                    write_new(cut, files)
        foreground = held.keys() - {0}
        if not labels and not classes and len(foreground) > 1 and foreground != {1, 255}:
            found = " and ".join(f"{value} in {relative(held[value], root)}" for value in sorted(foreground)[:4])
            problems.add("--label", found=found, expected="the same foreground value in all masks", hint=WHICH)
        if labels and not classes and held and not foreground & {*labels}:
            found = f"{' and '.join(map(str, labels))}, which no mask has"
            problems.add("--label", found=found, expected="the value of foreground in masks", hint="look at one")
        if not len(problems):  # the slices of a volume with a problem are unknown
            problems.extend(_of_no_volume(slices, kept))
        problems.refuse_if_any()
        at = slices / VOLUMES
        files.setdefault(at, at.read_bytes() if at.exists() else None)
        write_json(at, notes)
    if skipped:
        who = counted(len(skipped), "unreadable volume was", "unreadable volumes were")
        sentences.append(f"{who} left out, such as {relative(skipped[0], root)}")
    sentences += [f"{counted(blank, 'slice')} of a single grey value left out"] if blank else []
    read = [each.path for each in volumes if each.path not in skipped]
    return sentences if reorient else [*sentences, *different_orientations(read)]


def _cut(
    volume: _Volume, labels: Sequence[int], classes: Sequence[str], reorient: bool
) -> tuple[dict[Path, bytes], tuple[float, float, float] | None, int, set[int]]:
    """Returns the files of a volume's slices and masks, its voxel size in mm, the number of slices left out, and the
    values of the mask, 0 included."""
    read = read_slices(volume.path, reorient=reorient)
    shows = read.pictures.min((1, 2, 3)) < read.pictures.max((1, 2, 3))
    kinds, values = {"images": read.pictures}, {0}
    if volume.mask is not None:
        given: dict[str, Any] = {"labels": labels, "classes": classes, "reorient": reorient, "held": values}
        kinds["masks"] = read_mask_slices(volume.mask, volume.path, **given)
        shows |= kinds["masks"].any((1, 2))
        kinds["masks"] = kinds["masks"] if classes else 255 * kinds["masks"]
    kept = np.flatnonzero(shows | ~shows.any())
    files = {
        volume.site / kind / volume.name / f"{volume.name}_{number + 1:04d}.png": png_of(pictures[number])
        for kind, pictures in kinds.items()
        for number in kept.tolist()
    }
    return files, read.voxel, len(shows) - len(kept), values


def _is_unreadable(volume: Path) -> bool:
    with suppress(Refused):
        read_slices(volume)
        return False
    return True


def _of_no_volume(slices: Path, cut: Collection[Path]) -> list[Problem]:
    """Returns a problem for each folder with pictures that were not cut and would be used as slices or masks."""
    others = defaultdict[Path, list[str]](list)
    for folder in (site / kind for site in site_folders(slices).values() for kind in ("images", "masks")):
        for path in (path for path in list_images(folder) if path not in cut):
            others[path.parent].append(path.name)
    expected, hint = "only slices of volumes and masks of DIR", "delete them, or cut into a new folder"
    found = {folder: f"{counted(len(names), 'other slice')}, such as {names[0]}" for folder, names in others.items()}
    return [Problem(str(folder), found[folder], expected, hint) for folder in found]


def _volumes_below(root: Path, slices: Path, problems: Problems) -> tuple[list[_Volume], list[str]]:
    """Returns the volumes of all sites, and sentences on files of other kinds and on masks without a volume."""
    sites, volumes = sites_in(root), list[_Volume]()
    sentences = passed_over(root, [site.name for site in sites.values()]) if root not in sites.values() else []
    for called, site in sites.items():
        with problems.collected():
            found, lonely = match_masks(site, root, "", NIFTI)
            sentences += [*others_in(site, NIFTI), *lonely_sentence(site.name, lonely)]
            for one in found:
                path, mask = root / one.image, root / one.label if one.label else None
                name = "_".join((*path.relative_to(site / "images").parent.parts, stem_of(path)))
                volumes.append(_Volume(slices / called, name, path, mask))
    if any(each.mask and mask_stem(each.path) == f"{mask_stem(each.mask)}{FIRST_CHANNEL}" for each in volumes):
        expected, hint = "volumes of one channel (nnU-Net's _0000)", "move the other channels out of the folder"
        for number, each in enumerate(volumes):
            if each.mask and mask_stem(each.mask) == mask_stem(each.path):
                continue  # a number that the mask has too is not a channel
            if each.mask is None and re.fullmatch(rf".+(?!{FIRST_CHANNEL})_\d{{4}}", each.name):
                problems.add(str(each.path), found="a further channel", expected=expected, hint=hint)
            volumes[number] = each._replace(name=each.name.removesuffix(FIRST_CHANNEL))  # nnU-Net's case name
    listed: dict[tuple[Path, str], _Volume] = {}
    for each in volumes:
        if listed.setdefault((each.site, each.name), each) != each:
            problems.add(str(each.path), found=f"a second {each.name}", expected="one volume of this name per site")
    if not sites:
        hint = "; ".join(sentences) or "the layout is DIR/<site>/images and DIR/<site>/masks"
        problems.add(f"{root}/<site>/images", found="none", expected="NIfTI volumes (.nii, .nii.gz)", hint=hint)
    return volumes, sentences
