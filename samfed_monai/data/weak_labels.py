"""Weak labels: scribbles, points, boxes and blocks, read from files or derived from masks; 255 means not labelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from scipy import ndimage

from samfed_monai.core.errors import Problem, Problems, refused
from samfed_monai.core.io import sha256_bytes, undo_on_error, write_new
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.text import counted
from samfed_monai.core.validators import installed, one_of, require, whole
from samfed_monai.data.classes import read_classes
from samfed_monai.data.datalist import DataList, Item, LabelKind, Site, confine
from samfed_monai.data.reading import Picture, decode_grey, png_of, read_bytes, read_mask

IGNORE = 255
"""Value of unlabelled pixels in files, and in tensors of one class."""

_SIZED = ("scribble", "points")  # kinds with a width; points also have a number
POINTS, WIDTH = 5, 3
"""Defaults: number of points of each class, and width of points and scribbles in pixels."""


def read_weak_label(path: str | Path, classes: int = 1) -> Picture:
    """Reads a weak label as (H, W) in {0, 1, ..., K, 255}: background, each class, not labelled.

    Args:
        path: a lossless 8-bit grey image (PNG, TIFF, BMP); its EXIF orientation is applied.
        classes: number of classes K.

    Raises:
        Refused: a file that :func:`samfed_monai.data.read_mask` refuses; other values; no background, or no class (a
            file with only 0 and 255 is a mask, not a weak label).
    """
    return decode_weak_label(read_bytes(path), str(path), classes)


def decode_weak_label(content: bytes, name: str, classes: int = 1) -> Picture:
    """Decodes a weak label from bytes as :func:`read_weak_label` does."""
    label = decode_grey(content, name)
    values = {int(value) for value in np.unique(label)}
    levels, marks = {*range(classes + 1), IGNORE}, "1" if classes == 1 else f"1 to {classes}"
    hint = ""
    if values <= {0, IGNORE}:
        found = "only the values 0 and 255: a mask, or a weak label without foreground"
        hint = f"write foreground as {marks}, also in masks; if the site has only masks, give --label-kind SITE=mask"
    elif not values <= levels:
        shown = ", ".join(map(str, sorted(values - levels)[:6]))
        found, hint = f"other values ({shown})", f"save it without loss, with only the values 0, {marks} and 255"
    elif 0 not in values:
        found = "foreground without background"
        hint = "mark some background (0), too: a network needs it to learn where an object ends"
    else:
        return label
    expected = f"a weak label: 0 background and {marks} foreground, both present, and 255 not labelled"
    raise refused(name, found=found, expected=expected, hint=hint)


def weaken(
    mask: Picture, kind: LabelKind | str, *, random: np.random.Generator, points: int = POINTS, width: int = WIDTH
) -> Picture:
    """Derives a weak label from a mask, as it might be drawn by hand.

    - ``scribble``: the skeletons of each class and of the background (Zhang and Suen), ``width`` pixels wide.
    - ``points``: ``points`` points of each class and of the background, ``width`` pixels wide.
    - ``box``: background outside of the bounding boxes of all objects; inside a box, the middle half of each side is
      its class and the rest is not labelled (so a few pixels may be wrong, as with real boxes). Where boxes of several
      classes overlap, the class with the smaller boxes wins.
    - ``block``: the mask in one block around a random border pixel, half as long as the image's sides; the rest is not
      labelled.

    Labelled pixels of scribbles, points and blocks always agree with the mask.

    Args:
        mask: (H, W) in 0..K, with background and at least one class.
        kind: one of :class:`LabelKind` except ``mask``.
        random: random generator.
        points: number of points of each class, 1 or more.
        width: in pixels, odd.

    Returns:
        (H, W) uint8 in {0, ..., K, 255} with at least one pixel of each value of the mask; a block has at least one
        pixel of the background and one of a class.

    Raises:
        Refused: a mask of only one value; a number out of range; the kind ``mask``; for scribbles, scikit-image (the
            extra ``weak``) is not installed.
    """
    kind = LabelKind(kind)
    problems = Problems([*_size_problems(points, width), *one_of("kind", kind.value, WEAK)])
    if mask.all() or not mask.any():
        problems.add("mask", found="only one class", expected="foreground and background", hint="keep it as a mask")
    problems.refuse_if_any()
    return WEAK[kind](mask, random, points, width)


def _size_problems(points: int, width: int, dashes: str = "") -> list[Problem]:
    """Returns the problems of both sizes, which are options of the command line if their names have dashes."""
    problems = Problems(whole(f"{dashes}points", points, "a number of points of each class", least=1))
    problems.unless(width > 0 and width % 2 == 1, f"{dashes}width", width, "an odd number of pixels")
    return list(problems)


def _regions(mask: Picture) -> dict[int, np.ndarray]:
    """Returns the pixels of each class in the mask, and, last, of the background."""
    return {int(value): mask == value for value in (*np.unique(mask[mask > 0]), 0)}


def _scribble(mask: Picture, random: np.random.Generator, points: int, width: int) -> Picture:
    require(installed("skimage", "weak", "scribbles", "no scikit-image", "scikit-image"))
    from skimage.morphology import skeletonize

    return _draw_regions(mask, skeletonize, width)


def _points(mask: Picture, random: np.random.Generator, points: int, width: int) -> Picture:
    def select(region: np.ndarray) -> np.ndarray:
        pixels = np.flatnonzero(region)
        selected = random.choice(pixels, size=min(points, len(pixels)), replace=False)
        return np.isin(np.arange(region.size), selected).reshape(region.shape)

    return _draw_regions(mask, select, width)


def _draw_regions(mask: Picture, pixels_of: Callable[[np.ndarray], np.ndarray], width: int) -> Picture:
    label = np.full(mask.shape, IGNORE, np.uint8)
    for value, region in _regions(mask).items():
        pixels = pixels_of(region)
        # a region with an empty skeleton keeps one pixel
        pixels = pixels if pixels.any() else _first_pixel(region)
        label[ndimage.binary_dilation(pixels, np.ones((width, width))) & region] = value
    return label


def _first_pixel(region: np.ndarray) -> np.ndarray:
    """Returns a region's first pixel."""
    return np.arange(region.size).reshape(region.shape) == np.flatnonzero(region)[0]


def _box(mask: Picture, random: np.random.Generator, points: int, width: int) -> Picture:
    label, regions = np.zeros(mask.shape, np.uint8), _regions(mask)
    regions.pop(0)
    boxes = {value: ndimage.find_objects(ndimage.label(region)[0]) for value, region in regions.items()}
    for value in sorted(boxes, key=lambda value: -max(label[box].size for box in boxes[value])):
        for box in boxes[value]:
            label[box] = IGNORE
        for rows, columns in boxes[value]:
            label[_middle(rows), _middle(columns)] = value
    for value, region in regions.items():
        if not (label == value).any():  # the boxes of other classes hide it
            label[_first_pixel(region)] = value
    if not (label == 0).any():  # the object touches every side
        label[_first_pixel(mask == 0)] = 0
    return label


def _middle(side: slice) -> slice:
    quarter = (side.stop - side.start) // 4
    return slice(side.start + quarter, side.stop - quarter)


def _block(mask: Picture, random: np.random.Generator, points: int, width: int) -> Picture:
    foreground, (height, length) = mask > 0, mask.shape
    border = foreground & ~ndimage.binary_erosion(foreground, border_value=1)
    down, right = divmod(int(random.choice(np.flatnonzero(border))), length)
    tall, wide = max(height // 2, 3), max(length // 2, 3)
    top, left = min(max(down - tall // 2, 0), height - tall), min(max(right - wide // 2, 0), length - wide)
    label = np.full(mask.shape, IGNORE, np.uint8)
    block = slice(max(top, 0), top + tall), slice(max(left, 0), left + wide)
    label[block] = mask[block]
    return label


WEAK = {LabelKind.SCRIBBLE: _scribble, LabelKind.POINTS: _points, LabelKind.BOX: _box, LabelKind.BLOCK: _block}


def weaken_list(
    datalist: DataList,
    data_root: str | Path,
    kinds: Mapping[str, LabelKind | str],
    *,
    seed: int = 0,
    points: int = POINTS,
    width: int = WIDTH,
) -> DataList:
    """Returns a list in which masks of the sites' training images are replaced by weak labels drawn from them.

    The labels are written to ``weak/<kind>-<seed>/<path of the mask>.png`` under the data root and depend only on mask,
    kind and seed. Existing files from other masks or classes are not replaced. Public, validation and test images keep
    their masks, and so do images with an empty or full mask. Images without a mask get no label.

    Args:
        datalist: list with masks at the sites in ``kinds``.
        data_root: folder that the list's paths are relative to; the labels are written below it.
        kinds: kind by site; a site that is not named keeps its labels.
        seed: seed of all draws.
        points, width: as in :func:`weaken`.

    Raises:
        Refused: an unknown site or kind, a site whose labels are weak already, no training image with a mask, a file
            that cannot be read or written. No file is written then.
    """
    problems = Problems(_size_problems(points, width, "--"))
    if not kinds:
        problems.add(f"{datalist.name} -> sites", found="no site that trains", expected="sites with training images")
    for site, kind in kinds.items():
        wrong = one_of("--kind", site, sorted(datalist.sites)) or one_of(f"--kind of {site}", kind, WEAK)
        if wrong:
            problems.extend(wrong)
        elif weak_kinds := [str(item.label_kind) for item in datalist.sites[site].unlabelled if item.weak]:
            found = f"{counted(len(weak_kinds), 'weak label')} ({', '.join(sorted(set(weak_kinds)))})"
            hint = "use the list with masks; a site that is not in --kind keeps its labels"
            problems.add(f"sites -> {site} -> unlabelled", found, "masks to make weak labels from", hint)
        elif not any(item.label for item in datalist.sites[site].unlabelled):
            hint = "make the list with masks of the sites' own images"
            problems.add(f"sites -> {site} -> unlabelled", found="no masks", expected="masks to derive from", hint=hint)
    for name, size, default, users in (("points", points, POINTS, _SIZED[1:]), ("width", width, WIDTH, _SIZED)):
        used = size == default or any(kind in users for kind in kinds.values())
        expected = f"{default}, as no site here gets {' or '.join(users)}"
        problems.unless(used, f"--{name}", size, expected, "leave it out")
    problems.refuse_if_any()
    masked = [(site, item) for site in kinds for item in datalist.sites[site].unlabelled if item.label]
    weakened, classes = dict[str, Item](), datalist.classes
    with undo_on_error() as written:
        for site, item in progress_bar(masked, desc="weak labels", unit="image"):
            label, kind = str(item.label), LabelKind(kinds[site])
            path = confine(data_root, label)
            mask = read_classes(path, classes) if classes else read_mask(path, datalist.mask_threshold)
            if mask.all() or not mask.any():
                continue
            random = np.random.default_rng(derive_seed(seed, "weak label", kind.value, item.label_sha256 or ""))
            content = png_of(weaken(mask, kind, random=random, points=points, width=width))
            suffix = "" if points == POINTS else f"-{points}-points"
            suffix += "" if width == WIDTH else f"-{width}-px"
            relative = PurePosixPath("weak", f"{kind.value}-{seed}{suffix}", label).with_suffix(".png")
            path = confine(data_root, str(relative))
            write_new({path: content}, written, hint="take another --seed, or move the folder weak away")
            hashed = {"label_sha256": sha256_bytes(content), "label_kind": kind.value}
            weakened[item.image] = replace(item, label=str(relative), **hashed)
    sites = {
        name: Site([weakened.get(item.image, item) for item in site.unlabelled], site.validation, site.test)
        for name, site in datalist.sites.items()
    }
    return DataList(datalist.name, datalist.public, sites, datalist.mask_threshold, datalist.classes)
