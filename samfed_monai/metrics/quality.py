"""Estimated quality of a mask: its expected Dice, from the predicted probabilities.

An estimate needs no label. With some labelled images, a :class:`Calibration` converts estimates to the mean Dice of
such images, and to a lower bound that holds for most of them. It is in a file beside the weights of its model, and
inside an exported file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from samfed_monai.core.errors import Refused, refused
from samfed_monai.core.io import PUBLIC, canonical_hash, parse_json, read_json, sha256_file, write_json
from samfed_monai.core.validators import schema_problems
from samfed_monai.data.datalist import LEAST_IMAGES

ProbabilityMap = NDArray[np.float32]
Mask = NDArray[Any]

LEVELS = (np.arange(10) + 0.5) / 10
"""Thresholds over which :func:`level_dice` averages."""
DOUBTFUL = 0.7
"""Expected Dice below which a mask is reported as doubtful."""
COVERAGE = 0.9
"""Fraction of images whose Dice should be at or above the bound."""
MIN_IMAGES = 20
"""Number of labelled images that a calibration needs; with fewer, a bound for nine in ten is not reliable."""
GROUPS = 16
"""Maximum number of groups of images that a site sends."""
QUALITY_FILE = "quality.json"
"""Name of the file with a :class:`Quality` in a run's folder."""
SCHEMA = 1
"""Version of the JSON content of a :class:`Quality`."""
PREFIX = "quality_"
"""Prefix of the names of a group's numbers in a message."""
_LEAST_SPREAD = 0.05  # of Dice, for an estimate of 1


def level_dice(probabilities: ProbabilityMap, mask: Mask) -> float:
    """Expected Dice if the true mask is the area above one of the thresholds :data:`LEVELS`, with equal probability.

    Pixels then change together, like a border that is further inside or outside.

    Args:
        probabilities: (H, W) float in [0, 1], the probability of the foreground.
        mask: (H, W) bool.
    """
    levels = (probabilities * len(LEVELS) + 0.5).astype(np.uint8)  # number of thresholds that a pixel reaches
    overlap, areas = (np.bincount(values.ravel(), minlength=len(LEVELS) + 1) for values in (levels[mask], levels))
    cumulative = [np.cumsum(counts[::-1])[::-1][1:] for counts in (overlap, areas)]
    sizes = cumulative[1] + int(np.count_nonzero(mask))
    return float(np.mean(np.where(sizes > 0, 2 * cumulative[0] / np.maximum(sizes, 1), 1.0)))


def estimate(probabilities: ProbabilityMap, threshold: float = 0.5) -> float:
    """Estimates the Dice of a mask by :func:`level_dice`; for several classes it is the mean over those in the mask.

    Args:
        probabilities: (C, H, W) float in [0, 1]: of the foreground, or of the background and K classes.
        threshold: lowest probability of a foreground pixel, for one class.

    Returns:
        The estimate in [0, 1]; without calibration it is a few hundredths too high.
    """
    if len(probabilities) == 1:
        return level_dice(probabilities[0], probabilities[0] >= threshold)
    classes = probabilities.argmax(axis=0)
    dice = [level_dice(probabilities[value], classes == value) for value in np.unique(classes) if value]
    return float(np.mean(dice)) if dice else level_dice(1 - probabilities[0], classes > 0)


def margin(estimated: float, dice: float) -> float:
    """Excess of an estimate over the Dice, relative to the estimate's distance from 1; negative if it was too low."""
    return (estimated - dice) / (1 + _LEAST_SPREAD - estimated)


def estimate_of(row: Mapping[str, Any], summary: Mapping[str, Any]) -> float:
    """Estimate in a row of a table of scores; 0 for an empty mask, except for slices of volumes, which may be empty.

    Args:
        row: row with ``estimate``, and ``empty`` if there are labels.
        summary: summary of the site's scores, with ``volumes`` if images are slices.
    """
    is_empty = "volumes" not in summary and row.get("empty") in ("prediction", "both")
    return 0.0 if is_empty else float(row["estimate"])


@dataclass(frozen=True)
class Group:
    """Means over some images that relate estimates to Dice and do not reveal any single image.

    Args:
        images: number of images.
        estimate: their mean estimate; groups are formed in its order.
        dice: their mean Dice.
        margin: mean :func:`margin` of as many images, consecutive in the order of margins.
    """

    images: int
    estimate: float
    dice: float
    margin: float


def groups_of(estimates: Sequence[float], dice: Sequence[float], *, least: int | None = None) -> list[Group]:
    """Forms at most :data:`GROUPS` groups of at least ``least`` images for a message; none from too few images.

    Empty masks, with estimate 0, are in no group, since they have no information. Their number, or scores of a few
    images, must not follow from the groups and the mean over all images. So at least ``least`` other images are left
    out with them, such that the number left out is a multiple of ``least``.

    Args:
        estimates: estimate of each image; 0 for an empty mask.
        dice: true Dice of each image.
        least: minimum number of images in a group; ``None`` makes a group of every image, without a maximum.
    """
    pairs = [pair for pair in zip(estimates, dice, strict=True) if pair[0]]
    if (excluded := len(estimates) - len(pairs)) and least is not None and least > 1:
        pairs = pairs[least + -excluded % least :]
    count = len(pairs) if least is None else min(GROUPS, len(pairs) // least)
    if not count:
        return []
    estimated, dices = np.array(pairs, float).T
    order = np.argsort(estimated, kind="stable")
    margins = np.sort([margin(*pair) for pair in zip(estimated, dices, strict=True)])
    parts = zip(*(np.array_split(values, count) for values in (estimated[order], dices[order], margins)), strict=True)
    return [Group(len(a), float(a.mean()), float(b.mean()), float(c.mean())) for a, b, c in parts]


def metrics_of(groups: Sequence[Group]) -> dict[str, float]:
    """Converts groups to numbers of a message: ``quality_images_0``, ``quality_estimate_0``, …"""
    return {f"{PREFIX}{key}_{at}": value for at, group in enumerate(groups) for key, value in asdict(group).items()}


def groups_in(metrics: Mapping[str, float]) -> list[Group]:
    """The inverse of :func:`metrics_of`; other numbers and incomplete groups are skipped."""
    groups = []
    for at in range(GROUPS):
        fields = {key: metrics.get(f"{PREFIX}{key}_{at}") for key in Group.__dataclass_fields__}
        if (images := fields.pop("images")) and None not in fields.values():
            groups.append(Group(int(images), **fields))  # type: ignore[arg-type]
    return groups


@dataclass(frozen=True)
class Calibration:
    """Relation of a model's estimates to the Dice of labelled images.

    Args:
        estimates: non-decreasing, in [0, 1].
        dice: Dice at these estimates, non-decreasing; values between them are interpolated.
        margin: the :func:`margin` that a fraction :data:`COVERAGE` of the images did not exceed.
        images: number of images.
    """

    estimates: tuple[float, ...]
    dice: tuple[float, ...]
    margin: float
    images: int

    def __post_init__(self) -> None:
        non_decreasing = all(list(each) == sorted(each) for each in (self.estimates, self.dice))
        if not non_decreasing or len(self.estimates) != len(self.dice):
            raise ValueError("estimates and Dice that differ in number, or decrease")

    @classmethod
    def fit(cls, groups: Iterable[Group]) -> Calibration | None:
        """Fits isotonic regression of Dice and the split-conformal quantile of margins; ``None`` for too few images.

        Args:
            groups: groups of images that the model was not trained on.
        """
        all_groups = list(groups)
        images = sum(group.images for group in all_groups)
        if images < MIN_IMAGES:
            return None
        weights = np.array([group.images for group in all_groups], float)
        distinct, index = np.unique([group.estimate for group in all_groups], return_inverse=True)
        counts = np.bincount(index, weights)
        dice = np.bincount(index, weights * [group.dice for group in all_groups]) / counts
        steps = isotonic_regression(dice, weights=counts)
        parts = [slice(*edges) for edges in itertools.pairwise(steps.blocks)]
        estimates = [float(np.average(distinct[part], weights=counts[part])) for part in parts]
        fitted = [min(max(float(steps.x[part][0]), 0.0), 1.0) for part in parts]
        return cls(tuple(estimates), tuple(fitted), _quantile(all_groups, images), images)

    def __call__(self, estimated: float) -> tuple[float, float]:
        """Returns expected Dice and lower bound, both in [0, 1], for an estimate; both are 0 for an empty mask (0).

        The bound is never above the expected Dice, which for low estimates is based on few images.
        """
        if estimated == 0:
            return 0.0, 0.0
        bound = estimated - self.margin * (1 + _LEAST_SPREAD - estimated)
        expected = float(np.interp(estimated, self.estimates, self.dice))
        return expected, max(min(bound, expected), 0.0)


def _quantile(groups: Sequence[Group], images: int) -> float:
    """The margin at rank ``ceil((n + 1) * COVERAGE)`` of n, interpolated between the middles of groups."""
    ordered = sorted(groups, key=lambda group: group.margin)
    sizes = np.array([group.images for group in ordered], float)
    middles = np.cumsum(sizes) - (sizes - 1) / 2
    return float(np.interp(min(math.ceil((images + 1) * COVERAGE), images), middles, [g.margin for g in ordered]))


def colours_of(image: NDArray[np.float32]) -> list[float]:
    """Mean and standard deviation of each channel of an image (3, H, W) in [0, 1]: six numbers."""
    return [*image.mean(axis=(1, 2), dtype=np.float64).tolist(), *image.std(axis=(1, 2), dtype=np.float64).tolist()]


@dataclass(frozen=True)
class Colours:
    """Range of colours of a model's training images, to recognise different images.

    Args:
        low, high: six numbers each, see :func:`colours_of`.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, rows: Iterable[Sequence[float]]) -> Colours | None:
        """The range of the rows of :func:`colours_of`, a tenth wider on each side; ``None`` for fewer than two rows."""
        table = np.array(list(rows), float)
        if len(table) < 2:
            return None
        low, high = table.min(axis=0), table.max(axis=0)
        width = (high - low) / 10
        return cls(tuple((low - width).tolist()), tuple((high + width).tolist()))

    def contains(self, row: Sequence[float]) -> bool:
        """Whether an image's row of :func:`colours_of` is inside the range."""
        return all(low <= value <= high for low, value, high in zip(self.low, row, self.high, strict=True))


@dataclass(frozen=True)
class Quality:
    """Quality of a model: the calibration of its estimates and the colours of its images.

    Args:
        calibration: ``None`` if there were too few labelled images.
        colours: ``None`` if unknown.
        images: digests of the calibration's images, see :func:`digest_of`.
    """

    calibration: Calibration | None = None
    colours: Colours | None = None
    images: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


WEIGHTS = "model_sha256"
"""Key of the SHA-256 of the weights that the file belongs to, if they are a single file."""

QUALITY = "quality"
"""Key of the quality in an exported file's metadata, as JSON text, or in a bundle's ``metadata.json``, as an object."""

_SCHEMA: dict[str, Any] = read_json(Path(__file__).with_name("quality.schema.json"))
_HINT = "delete it, or create it again: samfed evaluate BUNDLE --model MODEL … --split validation --calibrate"


def quality_path(model: Path) -> Path:
    """Path of a model's quality file: in a run's folder, or ``model.quality.json`` beside a weights file."""
    return model / QUALITY_FILE if model.is_dir() else model.with_suffix(".quality.json")


def write_quality(quality: Quality, model: Path) -> Path:
    """Writes the quality file of a run, or of a weights file (with its hash), and returns its path."""
    weights_hash = {} if model.is_dir() else {WEIGHTS: sha256_file(model)}
    path = quality_path(model)
    write_json(path, {**quality.as_dict(), **weights_hash}, mode=PUBLIC)
    return path


def read_quality(model: Path) -> Quality:
    """Reads the quality of a run or a weights file; an empty one without a file.

    Raises:
        Refused: the file belongs to other weights, or is invalid.
    """
    path = quality_path(model)
    if not path.is_file():
        return Quality()
    content = read_json(path, name=str(path))
    if not model.is_dir() and isinstance(content, dict) and content.get(WEIGHTS) != sha256_file(model):
        found, expected = f"{str(content.get(WEIGHTS))[:12]}, a hash of other weights", f"the SHA-256 of {model.name}"
        raise refused(f"{path} -> {WEIGHTS}", found, expected, _HINT)
    return quality_of(content, str(path))


def quality_of(content: Any, where: str, hint: str = _HINT) -> Quality:
    """Parses a quality from JSON content or text.

    Args:
        content: content of a file or of an exported network's metadata; text is decoded.
        where: place, for the message.
        hint: how to fix it, for the message.

    Raises:
        Refused: invalid content.
    """
    try:
        content = parse_json(content) if isinstance(content, str) else content
        if problems := schema_problems(content, _SCHEMA, where):
            raise Refused([replace(each, hint=each.hint or hint) for each in problems])
        calibration, colours = content.get("calibration"), content.get("colours")
        if calibration:
            estimates, dice = (tuple(calibration[name]) for name in ("estimates", "dice"))
            calibration = Calibration(estimates, dice, calibration["margin"], calibration["images"])
        if colours:
            colours = Colours(tuple(colours["low"]), tuple(colours["high"]))
        return Quality(calibration, colours, tuple(content.get("images", ())))
    except Refused:
        raise
    except ValueError as error:
        raise refused(where, str(error), "a model's quality", hint) from None


def digest_of(hashes: Collection[str]) -> str | None:
    """Digest of a set of images, which reveals no single hash; ``None`` for fewer than :data:`LEAST_IMAGES`.

    Args:
        hashes: SHA-256 of the images, in any order.
    """
    return canonical_hash(sorted(hashes)) if len(hashes) >= LEAST_IMAGES else None


def digests_of(sites: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """Digests of the images of each site, and of all sites together.

    Args:
        sites: name to the SHA-256 of its images.
    """
    all_hashes = [each for hashes in sites.values() for each in hashes]
    digests = {digest_of(hashes) for hashes in (all_hashes, *sites.values())}
    return tuple(sorted(digest for digest in digests if digest is not None))


def recognised(sites: Mapping[str, Collection[str]], digests: Collection[str]) -> list[str]:
    """Names of the sites whose images match one of the digests; all sites if their images together match one.

    Args:
        sites: see :func:`digests_of`.
        digests: ``images`` of a :class:`Quality`.
    """
    if digest_of([each for hashes in sites.values() for each in hashes]) in digests:
        return list(sites)
    return [name for name, hashes in sites.items() if digest_of(hashes) in digests]
