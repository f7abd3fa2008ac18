"""The 95th percentile of the Hausdorff distance of two masks, in both conventions in use."""

from __future__ import annotations

import math

import numpy as np

from samfed_monai.metrics.surfaces import Mask, squared_distances, surface

PERCENTILE = 95


def hausdorff95(prediction: Mask, label: Mask, *, pooled: bool = False) -> float:
    """HD95 of two masks that both hold at least one pixel.

    Both masks are cropped to their joint bounding box first, which changes no distance: every surface pixel lies in it.

    Args:
        prediction: (H, W) bool.
        label: (H, W) bool.
        pooled: ``False`` takes the larger of the two directed percentiles, as MONAI's
            ``compute_hausdorff_distance(percentile=95)`` does; ``True`` takes the percentile of both directions
            pooled, as MedPy's ``hd95`` does (the tables of HSSF, Ma et al., IEEE TMI 2024).

    Returns:
        Distance in pixels.

    Raises:
        ValueError: a mask is empty; :func:`samfed_monai.metrics.segmentation_scores` says what counts then.
    """
    if not prediction.any() or not label.any():
        raise ValueError("HD95 of an empty mask is not defined; segmentation_scores holds the convention for it")
    box = joint_box(prediction, label)
    to_label, to_prediction = squared_distances(surface(prediction[box]), surface(label[box]))
    if pooled:
        return _percentile(np.concatenate([to_label, to_prediction]))
    return max(_percentile(to_label), _percentile(to_prediction))


def joint_box(a: Mask, b: Mask) -> tuple[slice, slice]:
    """The smallest rows and columns that hold every pixel of both masks; empty slices where there is none.

    Args:
        a: (H, W) bool.
        b: (H, W) bool.
    """
    either = a | b
    rows, columns = np.flatnonzero(either.any(axis=1)), np.flatnonzero(either.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _percentile(squares: np.ndarray) -> float:
    """``np.percentile(np.sqrt(squares), PERCENTILE)``, linear between neighbours, without a sort or all the roots."""
    place = (len(squares) - 1) * PERCENTILE / 100
    below = math.floor(place)
    above = min(below + 1, len(squares) - 1)
    ordered = np.partition(squares, (below, above))
    low, high = math.sqrt(ordered[below]), math.sqrt(ordered[above])
    return low + (high - low) * (place - below)
