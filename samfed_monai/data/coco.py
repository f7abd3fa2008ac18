"""COCO's object annotations: masks as polygons and run lengths, and back to the same masks."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import read_json
from samfed_monai.data.datalist import unsafe

Mask = NDArray[np.bool_]

OUTSIDE = 1.0
"""Pixels that an outline may leave its picture by, as hand-drawn ones do at its border; it is cut off there."""


def installed() -> bool:
    """Whether ``pycocotools`` is there."""
    return importlib.util.find_spec("pycocotools") is not None


def require_pycocotools(where: str) -> list[Problem]:
    """What is wrong if ``pycocotools`` is not there.

    Args:
        where: what asks for it.
    """
    hint = "pip install 'samfed-monai[coco]'"
    return [] if installed() else [Problem(where, found="no pycocotools", expected="it, for COCO", hint=hint)]


def annotations_of(mask: NDArray[Any]) -> Iterator[dict[str, Any]]:
    """An annotation for each piece of the foreground: ``segmentation``, ``area`` and ``bbox``, without ids.

    Of class values the pieces of one class after those of the other, each with its value as ``category_id``; an empty
    class has none.

    A piece (8 neighbours) is polygons along the edges of its pixels, as many as touch only at corners; one with holes,
    which COCO's polygons cannot have, is compressed run lengths. :func:`mask_of` makes the same mask of either.

    Args:
        mask: (H, W) bool, or the values of several classes.
    """
    from scipy.ndimage import find_objects, label

    if mask.dtype != bool:
        for value in range(1, int(mask.max(initial=0)) + 1):
            yield from ({"category_id": value, **one} for one in annotations_of(mask == value))
        return
    pieces, number = label(mask, np.ones((3, 3)))
    for index, (rows, columns) in enumerate(find_objects(pieces, number), start=1):
        piece = pieces[rows, columns] == index
        top, left = rows.start, columns.start
        box = [left, top, piece.shape[1], piece.shape[0]]
        polygons = _polygons(piece, left, top)
        segmentation = _run_lengths(pieces == index) if polygons is None else polygons
        yield {"segmentation": segmentation, "area": int(piece.sum()), "bbox": box, "iscrowd": 0}


def _polygons(piece: Mask, left: int, top: int) -> list[list[int]] | None:
    from scipy.ndimage import binary_fill_holes, find_objects, label

    parts, number = label(piece)  # 4 neighbours
    outlines = []
    for index, place in enumerate(find_objects(parts, number), start=1):
        part = parts[place] == index
        if not np.array_equal(binary_fill_holes(part), part):
            return None
        corner = np.array([left + place[1].start, top + place[0].start])
        outlines.append([int(number) for number in (np.array(_outline(part)) + corner).reshape(-1)])
    return outlines


def _outline(part: Mask) -> list[tuple[int, int]]:
    """Corners (x, y) of the edge of a part without holes, clockwise; of an edge's points only those where it turns.

    The edge passes each corner once: where a part touched itself at a corner it would go round a hole.
    """
    padded = np.pad(part, 1)
    inside = padded[1:-1, 1:-1]
    away: dict[tuple[int, int], tuple[int, int]] = {}  # from a corner, the step that has the part on its right
    for step, neighbour, (right, down) in (
        ((1, 0), padded[:-2, 1:-1], (0, 0)),
        ((0, 1), padded[1:-1, 2:], (1, 0)),
        ((-1, 0), padded[2:, 1:-1], (1, 1)),
        ((0, -1), padded[1:-1, :-2], (0, 1)),
    ):
        for y, x in zip(*np.nonzero(inside & ~neighbour), strict=True):
            away[int(x) + right, int(y) + down] = step
    corner = start = min(away, key=lambda point: (point[1], point[0]))  # top left: the edge leaves it to the right
    step = (1, 0)
    corners: list[tuple[int, int]] = []
    while not corners or corner != start:
        taken = away[corner]
        if taken != step or not corners:
            corners.append(corner)
        step = taken
        corner = (corner[0] + step[0], corner[1] + step[1])
    return corners


def _run_lengths(mask: Mask) -> dict[str, Any]:
    from pycocotools import mask as coco

    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode("ascii")}


def coco_of(
    pictures: Sequence[Mapping[str, Any]], annotations: Sequence[Sequence[Mapping[str, Any]]], labels: Sequence[str]
) -> Any:
    """The content of a COCO file; ids count from 1 in the order of the pictures, and of the categories.

    Args:
        pictures: ``file_name``, ``height`` and ``width`` of each, and whatever else belongs to its entry.
        annotations: of each picture, those of :func:`annotations_of`; one without a ``category_id`` is of the first
            category.
        labels: names of the categories.
    """
    found: list[dict[str, Any]] = []
    for number, ones in enumerate(annotations, start=1):
        found += [
            {"id": len(found) + place, "image_id": number, "category_id": 1, **one} for place, one in enumerate(ones, 1)
        ]
    return {
        "info": {"description": "masks of samfed infer"},
        "images": [{"id": number, **picture} for number, picture in enumerate(pictures, start=1)],
        "annotations": found,
        "categories": [{"id": number, "name": label} for number, label in enumerate(labels, start=1)],
    }


@dataclass(frozen=True)
class Annotated:
    """A picture of a COCO file with the outlines that count.

    Args:
        where: its file, for messages.
        file_name: as it stands there.
        height: pixels, as it stands there.
        width: pixels.
        segmentations: polygons (lists of x, y in turn) or run lengths of each annotation, with the annotation's id.
    """

    where: Path
    file_name: str
    height: int
    width: int
    segmentations: list[tuple[Any, Any]] = field(default_factory=list)

    def mask(self) -> Mask:
        """The foreground: every annotation's pixels together, also those of crowds.

        Raises:
            Refused: everything that is wrong with them.
        """
        problems, drawn = Problems(), np.zeros((self.height, self.width), bool)
        for number, segmentation in self.segmentations:
            with problems.collected():
                place = f"{self.where}: annotation {number} of {self.file_name}"
                drawn |= mask_of(segmentation, self.height, self.width, where=place)
        problems.refuse_if_any()
        return drawn


def read_coco(path: Path, *, categories: Sequence[str] = ()) -> list[Annotated]:
    """The pictures of a COCO file, in its order.

    Args:
        path: the JSON file.
        categories: names of those that are foreground; empty takes the only one that has annotations.

    Raises:
        Refused: a file of another kind, several categories of which none is named, a name that it does not have,
            entries without what belongs to them; all of it at once.
    """
    content, problems = read_json(path), Problems()
    parts = ("images", "annotations", "categories")
    lacking = [name for name in parts if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if lacking:
        expected = "a COCO file of object annotations"
        raise Refused([Problem(str(path), found=f"no list {' or '.join(map(repr, lacking))}", expected=expected)])
    pictures: dict[Any, Annotated] = {}
    names: set[str] = set()
    for place, entry in enumerate(content["images"]):
        problem, name = _image_problem(entry), entry.get("file_name") if isinstance(entry, dict) else None
        if problem is None and (entry["id"] in pictures or name in names):
            problem = f"{name!r} or its id twice", "each picture once"
        if problem is not None:
            problems.add(f"{path} -> images#{place}", found=problem[0], expected=problem[1])
            continue
        names.add(str(name))
        pictures[entry["id"]] = Annotated(path, str(name), entry["height"], entry["width"])
    with problems.collected():
        wanted = _wanted(path, content, categories)
    problems.refuse_if_any()
    for place, one in enumerate(content["annotations"]):
        where = f"{path} -> annotations#{place}"
        if not isinstance(one, dict) or "image_id" not in one or "category_id" not in one:
            problems.add(where, found="no image_id or no category_id", expected="both")
        elif not _is_key(one["category_id"]):
            problems.add(where, found=f"category_id {one['category_id']!r}", expected="the id of one of its categories")
        elif one["category_id"] not in wanted:
            continue
        elif not _is_key(one["image_id"]) or one["image_id"] not in pictures:
            problems.add(where, found=f"image_id {one['image_id']!r}", expected="the id of one of its images")
        else:
            pictures[one["image_id"]].segmentations.append((one.get("id", place), one.get("segmentation")))
    problems.refuse_if_any()
    return list(pictures.values())


def _is_key(value: Any) -> bool:
    return isinstance(value, int | str)


def _image_problem(entry: Any) -> tuple[str, str] | None:
    """What was found, and expected, if an entry of ``images`` lacks something."""
    if not isinstance(entry, dict) or not _is_key(entry.get("id")) or not isinstance(entry.get("file_name"), str):
        return "no id or no file_name", "both"
    reason = unsafe(entry["file_name"])
    if reason is not None:
        return reason, "a file_name below the site's folder"
    sides = [entry.get("height"), entry.get("width")]
    if not all(isinstance(side, int) and side > 0 for side in sides):
        return f"height and width {sides}", "both in pixels"
    return None


def _wanted(path: Path, content: Mapping[str, Any], categories: Sequence[str]) -> set[Any]:
    """Ids of the categories that are foreground."""
    named = {
        one["id"]: str(one.get("name", one["id"]))
        for one in content["categories"]
        if isinstance(one, dict) and _is_key(one.get("id"))
    }
    there = sorted(set(named.values()))
    missing = [name for name in categories if name not in there]
    if missing:
        found = f"no category {', '.join(map(repr, missing))}"
        raise Refused([Problem(str(path), found=found, expected=f"one of {there}", hint="name one with --category")])
    used = {
        one.get("category_id")
        for one in content["annotations"]
        if isinstance(one, dict) and _is_key(one.get("category_id"))
    }
    if categories:
        return {number for number, name in named.items() if name in categories}
    if len(used) > 1:
        names = ", ".join(sorted(named.get(number, str(number)) for number in used))
        hint = "say which are foreground: --category NAME[,NAME]"
        raise Refused(
            [Problem(str(path), found=f"annotations of several categories: {names}", expected="one", hint=hint)]
        )
    return used


def mask_of(segmentation: Any, height: int, width: int, *, where: str = "segmentation") -> Mask:
    """The pixels (H, W) of one annotation, as pycocotools draws it.

    Args:
        segmentation: polygons, of which a pixel belongs to any; or run lengths, as numbers or compressed.
        height: of the picture, in pixels.
        width: likewise.
        where: what messages call it.

    Raises:
        Refused: neither of both; a polygon of fewer than three points, or more than :data:`OUTSIDE` outside of the
            picture; run lengths of another size, or that do not fill it.
    """
    if isinstance(segmentation, dict):
        return _from_run_lengths(segmentation, height, width, where)
    polygons = segmentation if isinstance(segmentation, list) else []
    if not polygons:
        expected, hint = (
            "polygons or run lengths",
            "a box alone is no mask: see `samfed prepare weak`, or draw outlines",
        )
        raise Refused([Problem(where, found="no outline", expected=expected, hint=hint)])
    for polygon in polygons:
        _check_polygon(polygon, height, width, where)
    from pycocotools import mask as coco

    clipped = [_clipped(polygon, height, width) for polygon in polygons]
    drawn = coco.decode(coco.merge(coco.frPyObjects(clipped, height, width)))
    return drawn.astype(bool)


def _check_polygon(polygon: Any, height: int, width: int, where: str) -> None:
    numbers = polygon if isinstance(polygon, list) else []
    if len(numbers) < 6 or len(numbers) % 2 or not all(_is_number(number) for number in numbers):
        expected = "a list of x and y in turn, of at least three points"
        raise Refused([Problem(where, found=f"a polygon of {len(numbers)} numbers", expected=expected)])
    for axis, side, values in (("x", width, numbers[::2]), ("y", height, numbers[1::2])):
        low, high = min(values), max(values)
        if low < -OUTSIDE or high > side + OUTSIDE:
            expected = f"an outline inside of the picture, {width} x {height} pixels"
            hint = "was it drawn on a picture of another size?"
            raise Refused([Problem(where, found=f"{axis} from {low:g} to {high:g}", expected=expected, hint=hint)])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _clipped(polygon: list[float], height: int, width: int) -> list[float]:
    points = np.clip(np.reshape(np.asarray(polygon, np.float64), (-1, 2)), 0, [width, height])
    return [float(number) for number in points.reshape(-1)]


def _from_run_lengths(runs: Mapping[str, Any], height: int, width: int, where: str) -> Mask:
    size, counts = runs.get("size"), runs.get("counts")
    if size != [height, width]:
        expected = f"[{height}, {width}], height and width of the picture"
        raise Refused([Problem(where, found=f"run lengths of size {size}", expected=expected)])
    lengths: Any = _lengths(counts) if isinstance(counts, str) else counts
    whole = isinstance(lengths, list) and all(type(length) is int and length >= 0 for length in lengths)
    if not whole or sum(lengths) != height * width:  # pycocotools leaves what is too short to chance
        expected = f"run lengths that fill {height * width} pixels"
        found = f"{sum(lengths)} pixels" if whole else "no such numbers"
        raise Refused([Problem(where, found=found, expected=expected, hint="export the file anew")])
    drawn = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    filled: Mask = drawn.reshape((height, width), order="F")
    return filled


def _lengths(text: str) -> list[int]:
    """Run lengths of COCO's compressed string: 5 bits a character, from the 4th on as differences to two before."""
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:  # negative
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return [-1] if shift else lengths
