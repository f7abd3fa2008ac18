"""Dice, IoU, HD95, sensitivity, precision and areas of one mask, of a site and of all sites, by stated conventions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal

import numpy as np
from scipy.ndimage import distance_transform_edt

from samfed_monai.metrics.volumes import PERCENTILE, pool_volumes

Mask = np.ndarray

BLOCK = 1 << 16
"""Distances held at a time: 256 KB stay in the cache, and OpenBLAS keeps products of this size on one thread."""

PAIRS_PER_PIXEL = 128
"""Pairs of pixels that take about as long as one pixel of scipy's distance transform (0.3 ns and 40 ns)."""

EXACT_IN_FLOAT32 = 1 << 24
"""Whole numbers up to here are float32 numbers: sums of squares below it are not rounded."""


def surface(mask: Mask) -> Mask:
    """Pixels of a mask with at least one of their four neighbours outside it; beyond the frame counts as outside.

    The same pixels as ``mask ^ scipy.ndimage.binary_erosion(mask)``, which MONAI and MedPy use, without its overhead.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) bool.
    """
    inside = np.zeros_like(mask)
    core = inside[1:-1, 1:-1]
    np.logical_and(mask[:-2, 1:-1], mask[2:, 1:-1], out=core)
    core &= mask[1:-1, :-2]
    core &= mask[1:-1, 2:]
    return mask & ~inside


def squared_distances(a: Mask, b: Mask) -> tuple[np.ndarray, np.ndarray]:
    """Squared distance of every pixel of each mask to the nearest pixel of the other.

    Surfaces are thin, so that comparing every pixel of one with every pixel of the other, as one matrix product, takes
    less time than a distance transform of the frame (of OpenCV or scipy) or a k-d tree (MONAI's). Only for surfaces
    that fill much of the frame, such as noise, the distance transform is the cheaper one, and is taken.

    Args:
        a: (H, W) bool, at least one pixel.
        b: (H, W) bool, at least one pixel.

    Returns:
        Two arrays in pixels squared, whole numbers held as floats, without rounding: of the N pixels of ``a`` and of
        the M pixels of ``b``, each in the order of ``np.flatnonzero``.
    """
    at_a, at_b = np.flatnonzero(a), np.flatnonzero(b)
    if len(at_a) * len(at_b) <= PAIRS_PER_PIXEL * a.size:
        return _all_pairs(at_a, at_b, a.shape)
    to_a, to_b = distance_transform_edt(~a)[b], distance_transform_edt(~b)[a]
    return np.rint(to_b**2), np.rint(to_a**2)


def _all_pairs(at_a: np.ndarray, at_b: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    # |p - q|^2 = |p|^2 - 2 p.q + |q|^2 is one product of (|p|^2, p, 1) and (1, -2 q, |q|^2)
    height, width = shape
    exact = 2 * (height * height + width * width) <= EXACT_IN_FLOAT32
    dtype = np.float32 if exact else np.float64
    (row_a, column_a), (row_b, column_b) = np.divmod(at_a, width), np.divmod(at_b, width)
    left, right = np.ones((len(at_a), 4), dtype), np.ones((4, len(at_b)), dtype)
    left[:, 0], left[:, 1], left[:, 2] = row_a * row_a + column_a * column_a, row_a, column_a
    right[1], right[2], right[3] = -2 * row_b, -2 * column_b, row_b * row_b + column_b * column_b

    step = max(1, BLOCK // len(at_b))
    block = np.empty((step, len(at_b)), dtype)
    to_b, to_a = np.empty(len(at_a), dtype), np.full(len(at_b), np.inf, dtype)
    for start in range(0, len(at_a), step):
        rows = left[start : start + step]
        pairs = np.matmul(rows, right, out=block[: len(rows)])
        pairs.min(axis=1, out=to_b[start : start + step])
        np.minimum(to_a, pairs.min(axis=0), out=to_a)
    return to_b, to_a


def hausdorff95(prediction: Mask, label: Mask, *, pooled: bool = False) -> float:
    """HD95 of two masks that both hold at least one pixel.

    Both masks are cropped to their joint bounding box first, which changes no distance: every surface pixel is in it.

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


Empty = Literal["none", "both", "prediction", "label"]


@dataclass(frozen=True)
class Scores:
    """The scores of one image.

    Args:
        dice: in [0, 1].
        iou: intersection over union, in [0, 1].
        hd95: 95th percentile of the Hausdorff distance, pixels at the size that was compared.
        empty: which of the two masks held no pixel.
        sensitivity: part of the label that was found, in [0, 1].
        precision: part of the prediction that is right, in [0, 1].
        area: the smaller of both areas as part of the larger, in [0, 1]. These three are ``None`` where a table does
            not have them.
    """

    dice: float
    iou: float
    hd95: float
    empty: Empty = "none"
    sensitivity: float | None = field(default=None, compare=False)
    precision: float | None = field(default=None, compare=False)
    area: float | None = field(default=None, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """By name; of :data:`BESIDE` what is known."""
        return {name: value for name, value in asdict(self).items() if name not in BESIDE or value is not None}


BESIDE = ("sensitivity", "precision", "area")
"""What is reported beside Dice, of images that have it."""


def segmentation_scores(prediction: np.ndarray, label: np.ndarray, *, pooled: bool = False) -> Scores:
    """Scores a predicted mask against its label.

    Empty masks (docs/method.md): both empty is a right answer, Dice 1, IoU 1 and HD95 0; one empty is a wholly wrong
    one, Dice 0, IoU 0 and HD95 the image's diagonal; :data:`BESIDE` are as Dice. ``empty`` says which, so that they can
    be counted apart.

    Args:
        prediction: (H, W) bool, or numbers of which every non-zero one is foreground.
        label: (H, W), likewise, of the same size; nothing is resized here.
        pooled: MedPy's HD95 instead of MONAI's; see :func:`samfed_monai.metrics.hausdorff95`.

    Raises:
        ValueError: not two masks (H, W) of one size.
    """
    prediction, label = np.asarray(prediction), np.asarray(label)
    if prediction.ndim != 2 or prediction.shape != label.shape:
        raise ValueError(
            f"expected two masks (H, W) of one size, found prediction {prediction.shape} and label {label.shape}"
        )
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


def scores_by_class(prediction: np.ndarray, label: np.ndarray, count: int, *, pooled: bool = False) -> list[Scores]:
    """Scores of each of several classes, as :func:`segmentation_scores` has them of one.

    Args:
        prediction: (H, W) in 0..K.
        label: the same.
        count: K.
        pooled: as in :func:`segmentation_scores`.
    """
    return [segmentation_scores(prediction == each, label == each, pooled=pooled) for each in range(1, count + 1)]


def over_classes(scores: Iterable[Scores], *, skip_empty: bool = False) -> Scores:
    """The scores of an image of several classes: the mean over those that label or prediction holds.

    A class that neither holds says nothing of how well the others were found and is left out; where that is all of
    them, the image counts as one with two empty masks (Dice 1). ``empty`` is of all classes together.

    Args:
        scores: of each class.
        skip_empty: leave classes with an empty mask out of HD95, as :func:`summarise` leaves out such images; where no
            class is left, the image is one of them.
    """
    table = list(scores)
    there = [each for each in table if each.empty != "both"]
    if not there:
        return Scores(1.0, 1.0, 0.0, "both", 1.0, 1.0, 1.0)
    sides = {each.empty for each in there}
    empty: Empty = "prediction" if sides == {"prediction"} else "label" if sides == {"label"} else "none"
    measured = [each for each in there if each.empty == "none"] if skip_empty else there
    if not measured and empty == "none":
        empty = "prediction"  # one class is missed, another one is nowhere
    dice, iou = (fmean(getattr(each, name) for each in there) for name in ("dice", "iou"))
    return Scores(dice, iou, fmean(each.hd95 for each in measured or there), empty, **_beside(there))


def _beside(table: Sequence[Scores]) -> dict[str, float]:
    """Means of :data:`BESIDE`; of none that one of the scores lacks."""
    columns = {name: [getattr(each, name) for each in table] for name in BESIDE}
    return {name: fmean(values) for name, values in columns.items() if values and None not in values}


def summarise_classes(
    table: Iterable[list[Scores]], classes: Sequence[str], *, skip_empty: bool = False
) -> dict[str, dict[str, Any]]:
    """Means of each class over the images on which label or prediction holds it.

    Args:
        table: one list of scores, in the order of the classes, per image.
        classes: their names.
        skip_empty: as in :func:`summarise`.

    Returns:
        name to ``{"dice", "iou", "hd95", "n"}``; ``n`` is the number of those images.
    """
    rows, found = list(table), {}
    for place, name in enumerate(classes):
        column = [row[place] for row in rows]
        of_class = summarise((each for each in column if each.empty != "both"), skip_empty=skip_empty)
        found[name] = {key: of_class[key] for key in (*NAMES, "n")}
    return found


NAMES = ("dice", "iou", "hd95")
EMPTY = ("both", "prediction", "label")


def summarise(scores: Iterable[Scores], *, skip_empty: bool = False) -> dict[str, Any]:
    """Means over images, with the number of empty masks beside them.

    Args:
        scores: one per image.
        skip_empty: leave images with an empty mask out of the mean of HD95, as HSSF's tables do (Dice and IoU still
            count them). Only for comparison with published tables: a network that predicts nothing looks better.

    Returns:
        ``{"dice", "iou", "hd95", "n", "empty": {"both", "prediction", "label"}}``; a mean over no image is ``None``.
        Means of :data:`BESIDE` follow, where every image has them.
    """
    table = list(scores)
    measured = [score for score in table if score.empty == "none"] if skip_empty else table
    empty: Counter[str] = Counter(score.empty for score in table)
    return {
        "dice": _mean(score.dice for score in table),
        "iou": _mean(score.iou for score in table),
        "hd95": _mean(score.hd95 for score in measured),
        "n": len(table),
        "empty": {which: empty[which] for which in EMPTY},
        **_beside(table),
    }


def pool(summaries: Iterable[Mapping[str, Any]], *, skip_empty: bool = False) -> dict[str, Any]:
    """The summary of all images behind several summaries, as :func:`summarise` would give it.

    A mean that a summary lacks (``None``: no images, or a client that did not send it) does not count; of counts one of
    which is lacking there is no sum, and in the weights of HD95 it is 0.

    Args:
        summaries: what :func:`summarise` returned for each site.
        skip_empty: as the summaries were made: HD95 is then weighted by the images without an empty mask.
    """
    parts = list(summaries)
    images, of_volumes = [part["n"] for part in parts], [part["volumes"] for part in parts if part.get("volumes")]
    counts = {which: [part["empty"][which] for part in parts] for which in EMPTY}
    measured = [part["n"] - sum(count or 0 for count in part["empty"].values()) for part in parts]
    return {
        **{name: _weighted(parts, name, measured if name == "hd95" and skip_empty else images) for name in NAMES},
        "n": sum(images),
        "empty": {which: None if None in found else sum(found) for which, found in counts.items()},
        **{name: _weighted(parts, name, images) for name in BESIDE if _all_have(parts, name)},
        **_pooled_classes(parts, skip_empty=skip_empty),
        **({"volumes": pool_volumes(of_volumes)} if of_volumes else {}),
    }


def _all_have(parts: Iterable[Mapping[str, Any]], name: str) -> bool:
    with_images = [part for part in parts if part["n"]]
    return bool(with_images) and all(part.get(name) is not None for part in with_images)


def _pooled_classes(parts: list[Mapping[str, Any]], *, skip_empty: bool) -> dict[str, Any]:
    """``classes`` of all summaries together, where one has them; a count that is lacking is that of all images.

    With ``skip_empty`` there is no HD95 of several: how many images of a class it was measured on is not said.
    """
    names = list(dict.fromkeys(name for part in parts for name in part.get("classes") or {}))
    if not names:
        return {}
    nothing = {"dice": None, "iou": None, "hd95": None, "n": 0}
    found = {}
    for name in names:
        of_class = [(part.get("classes") or {}).get(name, nothing) for part in parts]
        counts = [each["n"] for each in of_class]
        weights = [part["n"] if n is None else n for part, n in zip(parts, counts, strict=True)]
        means = {key: _weighted(of_class, key, weights) for key in NAMES}
        if skip_empty and len(parts) > 1:
            means["hd95"] = None
        found[name] = {**means, "n": None if None in counts else sum(counts)}
    return {"classes": found}


def worst(sites: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The summary of the site with the lowest Dice, its name under ``site``; the first by name among equals.

    Args:
        sites: what :func:`summarise` returned for each.

    Returns:
        ``None`` where no site has a Dice.
    """
    scored = [(summary["dice"], site) for site, summary in sites.items() if summary["dice"] is not None]
    if not scored:
        return None
    site = min(scored)[1]
    return {"site": site, **sites[site]}


def convention(*, pooled: bool = False, skip_empty: bool = False) -> dict[str, str]:
    """What HD95 means and what an empty mask counts, as ``convention`` of ``results.json`` states it.

    Args:
        pooled: as in :func:`samfed_monai.metrics.hausdorff95`.
        skip_empty: as in :func:`summarise`.

    Returns:
        ``{"hd95": "max of directed" | "pooled", "empty": "diagonal" | "skipped"}``.
    """
    return {"hd95": "pooled" if pooled else "max of directed", "empty": "skipped" if skip_empty else "diagonal"}


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return fmean(numbers) if numbers else None


def _weighted(parts: list[Mapping[str, Any]], name: str, weights: list[int]) -> float | None:
    counted = [(part[name], n) for part, n in zip(parts, weights, strict=True) if n and part.get(name) is not None]
    total = sum(n for _, n in counted)
    return sum(value * n for value, n in counted) / total if total else None
