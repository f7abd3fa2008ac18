"""Dice and HD95 of whole volumes: slices of one volume counted together, distances in millimetres."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

PERCENTILE = 95
"""Of distances, in HD95."""


@dataclass
class Volume:
    """The slices of one volume that were scored, at one size.

    Args:
        spacing: mm from slice to slice, row to row and column to column at that size; ``None`` where it is not known.
        slices: number of the slice, from 1, to its prediction and label, (H, W) in 0..K each.
    """

    spacing: tuple[float, float, float] | None
    slices: dict[int, tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=dict)

    def stacked(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Prediction and label, (D, H, W); a slice between two others that was not scored is empty in both."""
        first, last = min(self.slices), max(self.slices)
        whole = np.zeros((2, last - first + 1, *self.slices[first][0].shape), np.uint8)
        for number, pair in self.slices.items():
            whole[:, number - first] = pair
        return whole[0], whole[1]


@dataclass(frozen=True)
class VolumeScores:
    """The scores of one class in one volume.

    Args:
        dice: of all slices together, in [0, 1]; ``None`` where the label does not hold the class.
        hd95: 95th percentile of the Hausdorff distance in mm, the larger of the two directions; ``None`` where label or
            prediction do not hold the class, or the spacing is not known.
    """

    dice: float | None
    hd95: float | None


def volume_scores(
    prediction: NDArray[np.bool_], label: NDArray[np.bool_], spacing: Sequence[float] | None
) -> VolumeScores:
    """Scores of one class in one volume.

    A surface voxel has at least one of its six neighbours outside, as MONAI and MedPy have it; beyond the volume counts
    as outside.

    Args:
        prediction, label: (D, H, W) bool.
        spacing: mm along the three axes, or ``None``.
    """
    sizes = int(prediction.sum()), int(label.sum())
    if not sizes[1]:
        return VolumeScores(None, None)
    dice = 2 * int((prediction & label).sum()) / sum(sizes)
    if not sizes[0] or spacing is None:
        return VolumeScores(dice, None)
    box = tuple(slice(at.min(), at.max() + 1) for at in np.nonzero(prediction | label))
    surfaces = [mask[box] & ~binary_erosion(mask[box]) for mask in (prediction, label)]
    far = [distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    directed = (far[1][surfaces[0]], far[0][surfaces[1]])
    return VolumeScores(dice, max(float(np.percentile(each, PERCENTILE)) for each in directed))


def summarise_volumes(volumes: Iterable[Volume], classes: Sequence[str]) -> dict[str, Any]:
    """Means over volumes, of each class and of all.

    A volume whose label does not hold a class has no Dice of it, so that a class absent at a site has none there.

    Args:
        volumes: of one site.
        classes: names; one or none is a single foreground.

    Returns:
        ``{"dice", "hd95_mm", "n", "measured"}``: means over the ``n`` volumes whose label holds any class, of their
        means over classes, HD95 over the ``measured`` ones that have it; of several classes, too, ``classes``, name to
        the same over the volumes whose label holds it. A mean of nothing is ``None``.
    """
    table = []
    for volume in volumes:
        prediction, label = volume.stacked()
        numbers = range(1, max(1, len(classes)) + 1)
        table.append([volume_scores(prediction == each, label == each, volume.spacing) for each in numbers])
    whole = [VolumeScores(_mean(each.dice for each in row), _mean(each.hd95 for each in row)) for row in table]
    summary = _means(whole)
    if len(classes) < 2:
        return summary
    return {**summary, "classes": {name: _means([row[k] for row in table]) for k, name in enumerate(classes)}}


def pool_volumes(summaries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of all volumes behind several sites' summaries.

    Args:
        summaries: what :func:`summarise_volumes` returned for each site, with the same classes.
    """
    parts = list(summaries)
    names = list(dict.fromkeys(name for part in parts for name in part.get("classes") or {}))
    by_class = {name: _pooled([part["classes"][name] for part in parts]) for name in names}
    return {**_pooled(parts), **({"classes": by_class} if names else {})}


def _pooled(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = {count: sum(part[count] for part in parts) for count in WEIGHTS.values()}
    sums = {key: sum(part[key] * part[count] for part in parts if part[count]) for key, count in WEIGHTS.items()}
    return {**{key: sums[key] / counts[count] if counts[count] else None for key, count in WEIGHTS.items()}, **counts}


WEIGHTS = {"dice": "n", "hd95_mm": "measured"}
"""What is averaged, and what says over how many volumes."""


def _means(scores: Sequence[VolumeScores]) -> dict[str, Any]:
    dices = [each.dice for each in scores if each.dice is not None]
    distances = [each.hd95 for each in scores if each.hd95 is not None]
    return {"dice": _mean(dices), "hd95_mm": _mean(distances), "n": len(dices), "measured": len(distances)}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
