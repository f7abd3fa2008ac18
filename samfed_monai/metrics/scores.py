"""Dice, IoU, HD95, sensitivity, precision and areas of a mask, a volume, a site and all sites."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Mask = NDArray[Any]

PERCENTILE = 95
"""Percentile of the distances in HD95."""


def surface(mask: Mask) -> Mask:
    """Pixels of a mask with at least one of their four (in a volume, six) neighbours outside it, as in MONAI and MedPy.

    Args:
        mask: (H, W) or (D, H, W) bool, like the result; everything beyond the frame is outside.
    """
    inside = mask.copy()
    for axis in range(mask.ndim):  # much faster than scipy's binary_erosion
        pixels, inner = np.moveaxis(mask, axis, 0), np.moveaxis(inside, axis, 0)
        inner[[0, -1]] = False
        inner[1:] &= pixels[:-1]
        inner[:-1] &= pixels[1:]
    return mask & ~inside


def hausdorff95(
    prediction: Mask, label: Mask, *, pooled: bool = False, spacing: Sequence[float] | None = None
) -> float:
    """HD95 of two non-empty masks.

    Args:
        prediction, label: (H, W) or (D, H, W) bool.
        pooled: ``False`` takes the larger of the two directed percentiles, like MONAI's
            ``compute_hausdorff_distance(percentile=95)``; ``True`` takes the percentile over both directions together,
            like MedPy's ``hd95`` (the tables of HSSF, Ma et al., IEEE TMI 2024).
        spacing: size of a pixel along each axis in mm.

    Returns:
        Distance in pixels, or with ``spacing`` in mm.

    Raises:
        ValueError: a mask is empty; :func:`samfed_monai.metrics.segmentation_scores` has the convention for it.
    """
    if not prediction.any() or not label.any():
        raise ValueError("HD95 of an empty mask is undefined; segmentation_scores has the convention for it")
    box = _box(prediction | label)  # does not change distances
    scale = np.ones(label.ndim) if spacing is None else np.array(spacing)
    predicted, true = (np.argwhere(surface(mask[box])) * scale for mask in (prediction, label))
    distances = [KDTree(true).query(predicted)[0], KDTree(predicted).query(true)[0]]
    return max(map(_percentile, [np.concatenate(distances)] if pooled else distances))


def _box(mask: Mask) -> tuple[slice, ...]:
    """Bounding box of a mask."""
    axes = range(mask.ndim)
    indices = [np.flatnonzero(mask.any(axis=tuple(dropped for dropped in axes if dropped != axis))) for axis in axes]
    return tuple(slice(along[0], along[-1] + 1) for along in indices)


def _percentile(distances: NDArray[np.float64]) -> float:
    """``np.percentile(distances, PERCENTILE)`` with linear interpolation."""
    rank = (len(distances) - 1) * PERCENTILE / 100
    below = math.floor(rank)
    ordered = np.partition(distances, (below, min(below + 1, len(distances) - 1)))
    low, high = float(ordered[below]), float(ordered[min(below + 1, len(distances) - 1)])
    return low + (high - low) * (rank - below)


Empty = Literal["none", "both", "prediction", "label"]


@dataclass(frozen=True)
class Scores:
    """The scores of one image.

    Args:
        dice: in [0, 1].
        iou: intersection over union, in [0, 1].
        hd95: 95th percentile of the Hausdorff distance, in pixels at the size of comparison.
        empty: which of the two masks is empty.
        sensitivity: fraction of the label that was found, in [0, 1].
        precision: fraction of the prediction that is correct, in [0, 1].
        area: ratio of the smaller area to the larger, in [0, 1]. These three are ``None`` if a table does not have
            them.
    """

    dice: float
    iou: float
    hd95: float
    empty: Empty = "none"
    sensitivity: float | None = field(default=None, compare=False)
    precision: float | None = field(default=None, compare=False)
    area: float | None = field(default=None, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """The scores by name; those of :data:`EXTRAS` only if known."""
        return {name: value for name, value in asdict(self).items() if name not in EXTRAS or value is not None}


EXTRAS = ("sensitivity", "precision", "area")
"""Further scores, which images may lack."""


def segmentation_scores(prediction: Mask, label: Mask, *, pooled: bool = False) -> Scores:
    """Scores a predicted mask against its label.

    Empty masks (docs/method.md): if both are empty, the prediction is correct, with Dice 1, IoU 1 and HD95 0; if one is
    empty, it is completely wrong, with Dice 0, IoU 0 and the image's diagonal as HD95. :data:`EXTRAS` are as Dice.
    ``empty`` names the case, for separate counts.

    Args:
        prediction: (H, W) bool, or numbers, where non-zero is foreground.
        label: (H, W), likewise, of the same size; nothing is resized here.
        pooled: MedPy's HD95 instead of MONAI's; see :func:`samfed_monai.metrics.hausdorff95`.

    Raises:
        ValueError: not two masks (H, W) of one size.
    """
    prediction, label = np.asarray(prediction), np.asarray(label)
    if prediction.ndim != 2 or prediction.shape != label.shape:
        found = f"prediction {prediction.shape} and label {label.shape}"
        raise ValueError(f"expected two masks (H, W) of one size, found {found}")
    prediction, label = prediction.astype(bool, copy=False), label.astype(bool, copy=False)
    size_p, size_l = int(np.count_nonzero(prediction)), int(np.count_nonzero(label))
    if not size_p and not size_l:
        return Scores(1.0, 1.0, 0.0, "both", 1.0, 1.0, 1.0)
    if not size_p or not size_l:
        return Scores(0.0, 0.0, math.hypot(*label.shape), "label" if size_p else "prediction", 0.0, 0.0, 0.0)
    overlap = int(np.count_nonzero(prediction & label))
    return Scores(
        dice=2 * overlap / (size_p + size_l),
        iou=overlap / (size_p + size_l - overlap),
        hd95=hausdorff95(prediction, label, pooled=pooled),
        sensitivity=overlap / size_l,
        precision=overlap / size_p,
        area=min(size_p, size_l) / max(size_p, size_l),
    )


def scores_by_class(prediction: Mask, label: Mask, count: int, *, pooled: bool = False) -> list[Scores]:
    """Scores of each of several classes, see :func:`segmentation_scores`.

    Args:
        prediction: (H, W) in 0..K.
        label: (H, W) in 0..K.
        count: K.
        pooled: as in :func:`segmentation_scores`.
    """
    return [segmentation_scores(prediction == each, label == each, pooled=pooled) for each in range(1, count + 1)]


def over_classes(scores: Iterable[Scores], *, skip_empty: bool = False) -> Scores:
    """Scores of an image with several classes: the mean over the classes that label or prediction contains.

    A class in neither of them does not show how well the others were found and is left out; if that is true of all
    classes, the image counts as one with two empty masks (Dice 1). ``empty`` is for all classes together.

    Args:
        scores: scores of each class.
        skip_empty: leave classes with an empty mask out of HD95, as :func:`summarise` leaves out such images; if no
            class remains, the image counts as one of them.
    """
    present = [each for each in scores if each.empty != "both"]
    if not present:
        return Scores(1.0, 1.0, 0.0, "both", 1.0, 1.0, 1.0)
    empties = {each.empty for each in present}
    empty: Empty = "prediction" if empties == {"prediction"} else "label" if empties == {"label"} else "none"
    measured = [each for each in present if each.empty == "none"] if skip_empty else present
    if not measured and empty == "none":
        empty = "prediction"  # some classes are missed, the others wrongly predicted
    dice, iou = fmean(each.dice for each in present), fmean(each.iou for each in present)
    extra = _extra_means([each.as_dict() for each in present])
    return Scores(dice, iou, fmean(each.hd95 for each in measured or present), empty, **extra)


def _extra_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of the scores in :data:`EXTRAS` that all rows have."""
    columns = {name: [row.get(name) for row in rows] for name in EXTRAS}
    return {name: fmean(values) for name, values in columns.items() if values and None not in values}  # type: ignore[arg-type]


NAMES = ("dice", "iou", "hd95")
EMPTY = ("both", "prediction", "label")


def summarise(rows: Iterable[Mapping[str, Any]], *, skip_empty: bool = False) -> dict[str, Any]:
    """Means over images, and numbers of empty masks.

    Args:
        rows: :meth:`Scores.as_dict` of each image; with several classes also ``classes``, the same by class name.
        skip_empty: leave images with an empty mask out of the mean of HD95, as HSSF's tables do (Dice and IoU still
            count them). Only for comparison with published tables: a network that predicts nothing looks better.

    Returns:
        ``{"dice", "iou", "hd95", "n", "empty": {"both", "prediction", "label"}}``; a mean over no image is ``None``.
        Means of :data:`EXTRAS` follow if all images have them. With several classes, ``classes`` has for each name
        ``{"dice", "iou", "hd95", "n"}`` over the ``n`` images whose label or prediction contains the class. A class in
        no label has no scores and ``n`` 0; images on which it is predicted have lower scores because of it.
    """
    table = list(rows)
    measured = [row for row in table if row["empty"] == "none"] if skip_empty else table
    empty: Counter[str] = Counter(row["empty"] for row in table)
    by_class: dict[str, dict[str, Any]] = {}
    for name in table[0].get("classes", ()) if table else ():
        column = [row["classes"][name] for row in table if row["classes"][name]["empty"] != "both"]
        summary = summarise(column if {row["empty"] for row in column} - {"label"} else (), skip_empty=skip_empty)
        by_class[name] = {key: summary[key] for key in (*NAMES, "n")}
    return {
        **{name: _mean(row[name] for row in (measured if name == "hd95" else table)) for name in NAMES},
        "n": len(table),
        "empty": {side: empty[side] for side in EMPTY},
        **_extra_means(table),
        **({"classes": by_class} if by_class else {}),
    }


def pool(summaries: Iterable[Mapping[str, Any]], *, skip_empty: bool = False) -> dict[str, Any]:
    """Combines the summaries of several sites, as :func:`summarise` over all of their images.

    A summary without Dice (no images, or a client that sent no scores) is ignored, and so is a site without a class for
    that class. If one of the others lacks a mean (a client sent only its Dice), there is no overall mean, which would
    be over other images than Dice. If a count is missing, the sum is ``None``, and 0 is used in the weights of HD95.
    With ``skip_empty`` a class has no HD95 over several sites, since its number of measured images is not known.

    Args:
        summaries: result of :func:`summarise` for each site.
        skip_empty: as in the summaries: HD95 is then weighted by the images without an empty mask.
    """
    parts = list(summaries)
    images, of_volumes = [part["n"] for part in parts], [part["volumes"] for part in parts if part.get("volumes")]
    counts = {side: [part["empty"][side] for part in parts] for side in EMPTY}
    measured = [part["n"] - sum(count or 0 for count in part["empty"].values()) for part in parts]
    extra = {name: _weighted(parts, name, images) for name in EXTRAS}
    by_class: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for part in parts for name in part.get("classes") or {}):
        of_class = [(part.get("classes") or {}).get(name, {"n": 0}) for part in parts]
        numbers = [each["n"] for each in of_class]
        weights = [part["n"] if n is None else n for part, n in zip(parts, numbers, strict=True)]
        means = {key: _weighted(of_class, key, weights) for key in NAMES}
        means |= {"hd95": None} if skip_empty and len(parts) > 1 else {}
        by_class[name] = {**means, "n": _sum(numbers)}
    return {
        **{name: _weighted(parts, name, measured if name == "hd95" and skip_empty else images) for name in NAMES},
        "n": sum(images),
        "empty": {side: _sum(values) for side, values in counts.items()},
        **{name: mean for name, mean in extra.items() if mean is not None},
        **({"classes": by_class} if by_class else {}),
        **({"volumes": pool_volumes(of_volumes)} if of_volumes else {}),
    }


def _sum(counts: Sequence[int | None]) -> int | None:
    """Sum of counts; ``None`` if one is missing."""
    return None if None in counts else sum(counts)  # type: ignore[arg-type]


def worst(sites: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Summary of the site with the lowest Dice, with its name in ``site``; the first by name among equals.

    Args:
        sites: result of :func:`summarise` for each site.

    Returns:
        The summary, or ``None`` if no site has a Dice.
    """
    scored = [(summary["dice"], site) for site, summary in sites.items() if summary["dice"] is not None]
    if not scored:
        return None
    site = min(scored)[1]
    return {"site": site, **sites[site]}


def convention(*, pooled: bool = False, skip_empty: bool = False) -> dict[str, str]:
    """Definition of HD95 and treatment of empty masks, as ``convention`` in ``results.json``.

    Args:
        pooled: as in :func:`samfed_monai.metrics.hausdorff95`.
        skip_empty: as in :func:`summarise`.

    Returns:
        ``{"hd95": "max of directed" | "pooled", "empty": "diagonal" | "skipped"}``.
    """
    return {"hd95": "pooled" if pooled else "max of directed", "empty": "skipped" if skip_empty else "diagonal"}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _weighted(parts: Sequence[Mapping[str, Any]], name: str, weights: Sequence[int | None]) -> float | None:
    counted = [(part.get(name), n) for part, n in zip(parts, weights, strict=True) if n and part["dice"] is not None]
    known, total = [(value, n) for value, n in counted if value is not None], sum(n for _, n in counted)
    return sum(value * n for value, n in known) / total if total and len(known) == len(counted) else None


@dataclass
class Volume:
    """The scored slices of one volume, all of one size.

    Args:
        spacing: mm from slice to slice, row to row and column to column at that size; ``None`` if unknown.
        slices: number of the slice, from 1, to its prediction and label, (H, W) in 0..K each.
    """

    spacing: tuple[float, float, float] | None
    slices: dict[int, tuple[Mask, Mask]] = field(default_factory=dict)

    def stacked(self) -> tuple[Mask, Mask]:
        """Prediction and label, (D, H, W); a missing slice between two others is empty in both."""
        first, last = min(self.slices), max(self.slices)
        whole = np.zeros((2, last - first + 1, *self.slices[first][0].shape), np.uint8)
        for number, pair in self.slices.items():
            whole[:, number - first] = pair
        return whole[0], whole[1]


class VolumeScores(NamedTuple):
    """The scores of one class in one volume.

    Args:
        dice: over all slices together, in [0, 1]; ``None`` if the label does not contain the class.
        hd95: 95th percentile of the Hausdorff distance in mm, the larger of the two directions; ``None`` if label or
            prediction do not contain the class, or the spacing is unknown.
    """

    dice: float | None
    hd95: float | None


def volume_scores(prediction: Mask, label: Mask, spacing: Sequence[float] | None) -> VolumeScores:
    """Scores of one class in one volume.

    Args:
        prediction, label: (D, H, W) bool.
        spacing: mm along the three axes, or ``None``.
    """
    sizes = int(prediction.sum()), int(label.sum())
    if not sizes[1]:
        return VolumeScores(None, None)
    hd95 = hausdorff95(prediction, label, spacing=spacing) if sizes[0] and spacing is not None else None
    return VolumeScores(2 * int((prediction & label).sum()) / sum(sizes), hd95)


def summarise_volumes(volumes: Iterable[Volume], classes: Sequence[str]) -> dict[str, Any]:
    """Means over volumes, for each class and overall.

    A volume whose label does not contain a class has no Dice for it, so a class that is absent at a site has none.

    Args:
        volumes: volumes of one site.
        classes: names of the classes; one or none is a single foreground.

    Returns:
        ``{"dice", "hd95_mm", "n", "measured"}``: means of the volumes' means over classes, over the ``n`` volumes whose
        label contains any class, and for HD95 over the ``measured`` ones that have it. With several classes,
        ``classes`` has the same for each name, over the volumes whose label contains it. An empty mean is ``None``.
    """
    table = []
    for volume in volumes:
        prediction, label = volume.stacked()
        numbers = range(1, max(1, len(classes)) + 1)
        table.append([volume_scores(prediction == each, label == each, volume.spacing) for each in numbers])
    whole = [VolumeScores(_mean(each.dice for each in row), _mean(each.hd95 for each in row)) for row in table]
    by_class = {name: _means([row[k] for row in table]) for k, name in enumerate(classes)}
    return {**_means(whole), **({"classes": by_class} if len(classes) > 1 else {})}


def _means(scores: Sequence[VolumeScores]) -> dict[str, Any]:
    dices = [each.dice for each in scores if each.dice is not None]
    distances = [each.hd95 for each in scores if each.hd95 is not None]
    return {"dice": _mean(dices), "hd95_mm": _mean(distances), "n": len(dices), "measured": len(distances)}


WEIGHTS = {"dice": "n", "hd95_mm": "measured"}
"""Keys of means over volumes, with the keys of their numbers of volumes."""


def pool_volumes(summaries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Combines the volume summaries of several sites.

    A site that withheld its scores is ignored in the means, and a withheld count makes the sum ``None``.

    Args:
        summaries: result of :func:`summarise_volumes` for each site, with the same classes.
    """
    parts = list(summaries)
    names = dict.fromkeys(name for part in parts for name in part.get("classes") or {})
    by_class = {name: pool_volumes(part["classes"][name] for part in parts) for name in names}
    counts = {count: [part[count] for part in parts] for count in WEIGHTS.values()}
    return {
        **{key: _weighted(parts, key, counts[count]) for key, count in WEIGHTS.items()},
        **{count: _sum(values) for count, values in counts.items()},
        **({"classes": by_class} if by_class else {}),
    }
