"""How far a mask is to be trusted: the Dice that it is expected to have, from the probabilities that it was made of.

An estimate needs no label. Where some images have labels, a :class:`Calibration` turns estimates into the Dice that
such images had on average, and into a bound that most of them were above.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

Chances = NDArray[np.float32]
Mask = NDArray[Any]

LEVELS = (np.arange(10) + 0.5) / 10
"""Thresholds over which :func:`level_dice` averages."""
DOUBTFUL = 0.7
"""Expected Dice below which a mask is called doubtful."""
COVERAGE = 0.9
"""Share of images whose Dice is to be at or above the bound."""
FEWEST = 20
"""Images with labels that a calibration needs: with fewer, a bound for nine in ten is a guess."""
GROUPS = 16
"""Most groups of images that a site sends."""
IN_RUN = "quality.json"
"""Name of the file with a :class:`Quality` in a run's folder."""
SCHEMA = 1
"""Version of the JSON content of a :class:`Quality`."""
PREFIX = "quality_"
"""Before the name of a number that a site sends of a group."""
_LEAST_SPREAD = 0.05  # of Dice, where the estimate is 1


def level_dice(chances: Chances, mask: Mask) -> float:
    """Dice that is expected if the truth were one of the areas above a threshold, each of :data:`LEVELS` as likely.

    Pixels then come and go together, as a border does that lies further in or out.

    Args:
        chances: (H, W) float in [0, 1], the probability of the foreground.
        mask: (H, W) bool.
    """
    levels = (chances * len(LEVELS) + 0.5).astype(np.uint8)  # how many thresholds a pixel reaches
    shared, areas = (np.bincount(found.ravel(), minlength=len(LEVELS) + 1) for found in (levels[mask], levels))
    above = [np.cumsum(counts[::-1])[::-1][1:] for counts in (shared, areas)]
    sizes = above[1] + int(np.count_nonzero(mask))
    return float(np.mean(np.where(sizes > 0, 2 * above[0] / np.maximum(sizes, 1), 1.0)))


def estimate(chances: Chances, threshold: float = 0.5) -> float:
    """The estimate that masks are judged by: :func:`level_dice`; of several classes the mean over those in the mask.

    Args:
        chances: (C, H, W) float in [0, 1]: the foreground's probability, or those of the background and K classes.
        threshold: from which a pixel is foreground, of one class.

    Returns:
        In [0, 1], not calibrated: it promises some hundredths too much.
    """
    if len(chances) == 1:
        return level_dice(chances[0], chances[0] >= threshold)
    drawn = chances.argmax(axis=0)
    each = [level_dice(chances[value], drawn == value) for value in np.unique(drawn) if value]
    return float(np.mean(each)) if each else level_dice(1 - chances[0], drawn > 0)


def margin(estimated: float, dice: float) -> float:
    """By how much an estimate promised too much, as a share of what it left open; below 0 where it promised less."""
    return (estimated - dice) / (1 + _LEAST_SPREAD - estimated)


def estimate_of(row: Mapping[str, Any], summary: Mapping[str, Any]) -> float:
    """The estimate in a row of a table of scores: 0 of an empty mask, unless slices of volumes were scored, which may
    hold nothing.

    Args:
        row: with ``estimate``, and ``empty`` where labels were there.
        summary: of the site's scores; with ``volumes`` where images are slices.
    """
    nothing = "volumes" not in summary and row.get("empty") in ("prediction", "both")
    return 0.0 if nothing else float(row["estimate"])


@dataclass(frozen=True)
class Group:
    """What some images say of a model's estimates: means over them, so that no single image can be seen in it.

    Args:
        images: how many.
        estimate: their mean estimate; groups are formed in its order.
        dice: their mean Dice.
        margin: a mean :func:`margin`, of as many images that follow one another in the order of margins.
    """

    images: int
    estimate: float
    dice: float
    margin: float


def groups_of(estimates: Sequence[float], dice: Sequence[float], *, least: int | None = None) -> list[Group]:
    """Images as at most :data:`GROUPS` groups of at least ``least`` each, which a message holds; none of too few.

    Empty masks, of estimate 0, are in no group: nothing is to be learned of them. Who knows the mean over all images
    must not see from what is missing how many they are, nor a score of few images: at least ``least`` others are left
    out with them, as many as make a multiple of it.

    Args:
        estimates: of each image; 0 of an empty mask.
        dice: true Dice of each image.
        least: images of a group; ``None`` keeps every image apart, however many there are.
    """
    pairs = [pair for pair in zip(estimates, dice, strict=True) if pair[0]]
    if (left := len(estimates) - len(pairs)) and least is not None and least > 1:
        pairs = pairs[least + -left % least :]
    count = len(pairs) if least is None else min(GROUPS, len(pairs) // least)
    if not count:
        return []
    estimated, true = np.array(pairs, float).T
    order = np.argsort(estimated, kind="stable")
    margins = np.sort([margin(*pair) for pair in zip(estimated, true, strict=True)])
    parts = zip(*(np.array_split(values, count) for values in (estimated[order], true[order], margins)), strict=True)
    return [Group(len(a), float(a.mean()), float(b.mean()), float(c.mean())) for a, b, c in parts]


def metrics_of(groups: Sequence[Group]) -> dict[str, float]:
    """Groups as numbers of a message: ``quality_images_0``, ``quality_estimate_0``, …"""
    return {f"{PREFIX}{key}_{at}": value for at, group in enumerate(groups) for key, value in asdict(group).items()}


def groups_in(metrics: Mapping[str, float]) -> list[Group]:
    """The inverse of :func:`metrics_of`; other numbers are passed over, and so is a group that lacks one of its own."""
    found = []
    for at in range(GROUPS):
        own = {key: metrics.get(f"{PREFIX}{key}_{at}") for key in Group.__dataclass_fields__}
        if (images := own.pop("images")) and None not in own.values():
            found.append(Group(int(images), **own))  # type: ignore[arg-type]
    return found


@dataclass(frozen=True)
class Calibration:
    """What a model's estimates meant on images with labels.

    Args:
        estimates: never decreasing, in [0, 1].
        dice: the Dice that was found there, never decreasing; between two of them it is interpolated.
        margin: the :func:`margin` that a share of :data:`COVERAGE` of the images did not exceed.
        images: how many images there were.
    """

    estimates: tuple[float, ...]
    dice: tuple[float, ...]
    margin: float
    images: int

    def __post_init__(self) -> None:
        rising = all(list(each) == sorted(each) for each in (self.estimates, self.dice))
        if not rising or len(self.estimates) != len(self.dice):
            raise ValueError("estimates and Dice of another number, or that decrease")

    @classmethod
    def fit(cls, groups: Iterable[Group]) -> Calibration | None:
        """Isotonic regression of Dice, and the split-conformal quantile of the margins; ``None`` of too few images.

        Args:
            groups: of images that the model was not trained on.
        """
        found = list(groups)
        images = sum(group.images for group in found)
        if images < FEWEST:
            return None
        weights = np.array([group.images for group in found], float)
        at, which = np.unique([group.estimate for group in found], return_inverse=True)
        counts = np.bincount(which, weights)
        dice = np.bincount(which, weights * [group.dice for group in found]) / counts
        steps = isotonic_regression(dice, weights=counts)
        parts = [slice(*edges) for edges in itertools.pairwise(steps.blocks)]
        estimates = [float(np.average(at[part], weights=counts[part])) for part in parts]
        levels = [min(max(float(steps.x[part][0]), 0.0), 1.0) for part in parts]
        return cls(tuple(estimates), tuple(levels), _quantile(found, images), images)

    def __call__(self, estimated: float) -> tuple[float, float]:
        """Expected Dice and its lower bound, both in [0, 1], of an estimate; 0 is that of an empty mask.

        The bound is never above the expected Dice, which for low estimates comes from few images.
        """
        if estimated == 0:
            return 0.0, 0.0
        bound = estimated - self.margin * (1 + _LEAST_SPREAD - estimated)
        expected = float(np.interp(estimated, self.estimates, self.dice))
        return expected, max(min(bound, expected), 0.0)


def _quantile(groups: Sequence[Group], images: int) -> float:
    """The margin at rank ``ceil((n + 1) * COVERAGE)`` of n, between the middles of groups."""
    ordered = sorted(groups, key=lambda group: group.margin)
    sizes = np.array([group.images for group in ordered], float)
    middles = np.cumsum(sizes) - (sizes - 1) / 2
    return float(np.interp(min(math.ceil((images + 1) * COVERAGE), images), middles, [g.margin for g in ordered]))


def colours_of(image: NDArray[np.float32]) -> list[float]:
    """Mean and standard deviation of each channel of an image (3, H, W) in [0, 1]: six numbers."""
    return [*image.mean(axis=(1, 2), dtype=np.float64).tolist(), *image.std(axis=(1, 2), dtype=np.float64).tolist()]


@dataclass(frozen=True)
class Colours:
    """The range of colours of the images that a model was shown; what is outside it is unlike them.

    Args:
        low: six numbers as of :func:`colours_of`.
        high: likewise.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, rows: Iterable[Sequence[float]]) -> Colours | None:
        """The range of the rows of :func:`colours_of`, a tenth wider on each side; ``None`` of fewer than two."""
        table = np.array(list(rows), float)
        if len(table) < 2:
            return None
        low, high = table.min(axis=0), table.max(axis=0)
        width = (high - low) / 10
        return cls(tuple((low - width).tolist()), tuple((high + width).tolist()))

    def hold(self, row: Sequence[float]) -> bool:
        """Whether an image with such a row is inside."""
        return all(low <= value <= high for low, value, high in zip(self.low, row, self.high, strict=True))


@dataclass(frozen=True)
class Quality:
    """What is known of a model beside its weights: what its estimates are worth, and the colours that it was shown.

    Args:
        calibration: ``None`` where too few images with labels were at hand.
        colours: ``None`` where they are not known.
        images: by which those of the calibration are recognised, see :mod:`samfed_monai.metrics.quality_file`.
    """

    calibration: Calibration | None = None
    colours: Colours | None = None
    images: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}
