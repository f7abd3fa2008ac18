"""What viewers and spreadsheets take of masks: outlines drawn on the pictures, polygons, areas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samfed_monai.data.classes import colour_of
from samfed_monai.reports.overlays import OUTLINES, draw_outlines

COLUMNS = ("name", "width", "height", "foreground_pixels", "share", "components", "mm2")
"""Heads of a table of areas: a picture's name and size in pixels; its foreground in pixels, as a share in [0, 1], in
pieces (8-neighbours), and in mm² where the file says how large a pixel is."""


def area_of(name: str, mask: NDArray[np.bool_], pixel_area: float | None = None) -> dict[str, Any]:
    """A row of :data:`COLUMNS`.

    Args:
        name: of the picture.
        mask: (H, W).
        pixel_area: mm² of a pixel, if that is known.
    """
    from scipy.ndimage import label

    pixels = int(mask.sum())
    row = {
        "name": name,
        "width": mask.shape[1],
        "height": mask.shape[0],
        "foreground_pixels": pixels,
        "share": round(pixels / mask.size, 6),
        "components": int(label(mask, np.ones((3, 3)))[1]),
    }
    return row if pixel_area is None else row | {"mm2": round(pixels * pixel_area, 3)}


def polygons_of(mask: NDArray[np.bool_]) -> list[list[list[list[float]]]]:
    """The foreground as polygons: each an outer ring and the holes in it, rings closed, as GeoJSON has them.

    Points are (x, y) in pixels from the picture's upper left corner; a pixel is a square of side 1, and the line runs
    through the middle between foreground and background pixels' centres (marching squares, ``contourpy``).

    Args:
        mask: (H, W).
    """
    from contourpy import FillType, contour_generator

    padded = np.pad(mask, 1).astype(np.float64)
    lines = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    return [
        [(points[start:end] - 0.5).tolist() for start, end in pairwise(offsets)]
        for points, offsets in zip(*lines, strict=True)
    ]


def geojson_of(mask: NDArray[Any], *, labels: Sequence[str] = ("foreground",)) -> bytes:
    """A GeoJSON feature collection of :func:`polygons_of`, as QuPath and others open it.

    Args:
        mask: (H, W) bool, or the values of several classes: their features have a colour each, that of the outlines.
        labels: what the foreground is called, or the classes from the first on.
    """
    several, features = mask.dtype != bool, []
    for number, label in enumerate(labels, start=1):
        kind = {"name": label, **({"color": list(colour_of(number))} if several else {})}
        about = {"objectType": "annotation", "classification": kind}
        features += [
            {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": about}
            for rings in polygons_of(mask == number if several else mask)
        ]
    return (json.dumps({"type": "FeatureCollection", "features": features}) + "\n").encode()


def outlined(picture: NDArray[np.uint8], mask: NDArray[Any]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with its mask's outline, (H, W) bool; of class values one in each class's colour
    (:func:`samfed_monai.data.classes.colour_of`)."""
    lines, colours = {"student": mask}, OUTLINES
    if mask.dtype != bool:
        numbers = range(1, int(mask.max()) + 1)
        lines, colours = (
            {str(each): mask == each for each in numbers},
            {str(each): colour_of(each) for each in numbers},
        )
    return draw_outlines(picture, lines, colours)
