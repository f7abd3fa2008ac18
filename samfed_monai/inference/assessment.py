"""Quality of a predicted mask without labels: its expected Dice, a lower bound, and flags of what is unusual.

Also compares the estimates with true Dice on labelled images and calibrates them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, label, maximum_filter, minimum_filter
from scipy.stats import spearmanr
from torch import Tensor

from samfed_monai.core.errors import refused
from samfed_monai.core.io import from_csv
from samfed_monai.core.text import counted
from samfed_monai.handlers.mask_writer import Prediction
from samfed_monai.metrics.quality import DOUBTFUL, MIN_IMAGES, Calibration, Quality, colours_of, estimate_of, groups_of

EMPTY = "empty"
"""Flag of an empty mask."""
COLUMNS = ("expected_dice", "lower_bound", "doubtful", "flags")
"""Columns in the table of areas; ``doubtful`` is yes or empty, flags are separated by semicolons."""
MAX_SIDE = 256
"""Pixels of a side to which masks and images are reduced to count pieces and find the border."""
MIN_PIECE = 0.02
"""Share of the mask below which a component does not count as a piece."""
BLACK = 0.1
"""Largest channel value of black pixels in an endoscope's frame: black in video is 16 of 255, plus noise."""
MIN_FRAME = 5
"""Smallest thickness of a black frame, in pixels."""


@dataclass(frozen=True)
class Assessment:
    """The expected quality of one mask.

    Args:
        expected_dice: Dice with the unknown true mask, in [0, 1]; slightly too high without a calibration; 0 for an
            empty mask, except of a slice or frame, which may contain no foreground.
        lower_bound: nine in ten masks have at least this Dice, in [0, 1]; ``None`` without a calibration.
        flags: ``empty``, ``touches the border`` (of the picture without its black frame), ``several pieces``, ``unlike
            the training images``.
        doubtful_below: expected Dice below which the mask is doubtful.
    """

    expected_dice: float
    lower_bound: float | None = None
    flags: tuple[str, ...] = ()
    doubtful_below: float = DOUBTFUL

    @property
    def doubtful(self) -> bool:
        return self.expected_dice < self.doubtful_below

    def with_zero_dice(self) -> Assessment:
        """Returns the assessment with Dice 0, for an empty mask of an image that must contain foreground."""
        return replace(self, expected_dice=0.0, lower_bound=None if self.lower_bound is None else 0.0)

    def row(self) -> dict[str, Any]:
        """Returns the cells of :data:`COLUMNS`."""
        bound = {} if self.lower_bound is None else {"lower_bound": round(self.lower_bound, 4)}
        marks = {"doubtful": "yes" if self.doubtful else "", "flags": "; ".join(self.flags)}
        return {"expected_dice": round(self.expected_dice, 4), **bound, **marks}


def flags_of(mask: NDArray[Any], image: NDArray[np.float32] | None = None, quality: Quality | None = None) -> list[str]:
    """Returns the flags of a mask and its image, see :class:`Assessment`.

    Args:
        mask: (H, W), foreground where it is not 0.
        image: (3, H, W) in [0, 1], as the network saw it.
        quality: of the model; may include the colours of its training images.
    """
    mask_pixels = mask > 0
    content = np.ones((1, *mask_pixels.shape), np.float32) if image is None else image
    stride = max(1, max(content.shape) // MAX_SIDE)
    edge = border_of(content[:, ::stride, ::stride])
    rows, columns = (np.arange(size) * coarse // size for size, coarse in zip(mask.shape, edge.shape, strict=True))
    step = max(1, max(mask_pixels.shape) // MAX_SIDE)  # large pictures are subsampled
    pieces = np.bincount(label(mask_pixels[::step, ::step], np.ones((3, 3)))[0].ravel())[1:]
    colours = quality.colours if quality is not None else None
    flags = {
        EMPTY: not mask_pixels.any(),
        "touches the border": bool(edge[np.ix_(rows, columns)][mask_pixels].any()),
        "several pieces": int((pieces >= MIN_PIECE * pieces.sum()).sum()) > 1,
        "unlike the training images": bool(colours and image is not None and not colours.contains(colours_of(image))),
    }
    return [name for name, raised in flags.items() if raised]


def border_of(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns the border of a picture's content (H, W): true in its black frame, and one pixel inside frame or edge.

    A frame is black, connected with the edge of the picture, and at least :data:`MIN_FRAME` pixels thick.

    Args:
        image: (C, H, W) in [0, 1].
    """
    black = np.pad(image.max(axis=0) < BLACK, MIN_FRAME, constant_values=True)
    regions, _ = label(maximum_filter(minimum_filter(black, MIN_FRAME), MIN_FRAME))
    border = binary_dilation(regions == regions[MIN_FRAME // 2, MIN_FRAME // 2])
    return np.asarray(border[MIN_FRAME:-MIN_FRAME, MIN_FRAME:-MIN_FRAME])


def assess(
    prediction: Prediction,
    image: Tensor,
    quality: Quality,
    *,
    threshold: float = 0.5,
    doubtful_below: float = DOUBTFUL,
    parts: bool = False,
) -> Assessment:
    """Estimates the quality of one predicted mask.

    Args:
        prediction: the prediction.
        image: (3, H, W) float in [0, 1], as the network saw it.
        quality: of the model; its calibration is only used at a threshold of 0.5.
        threshold: lowest probability of foreground.
        doubtful_below: expected Dice below which a mask is doubtful.
        parts: whether the image is a slice or frame, many of which contain no foreground.
    """
    flags = tuple(flags_of(prediction.mask, image.cpu().numpy(), quality))
    calibrated = quality.calibration if threshold == 0.5 else None
    expected, bound = calibrated(prediction.estimate) if calibrated else (prediction.estimate, None)
    assessment = Assessment(expected, bound, flags, doubtful_below)
    return assessment.with_zero_dice() if EMPTY in flags and not parts else assessment


Pairs = Sequence[tuple[float, float]]
"""(estimate, true Dice) of each image."""
FEWEST_RANKED = 5
"""Fewest images for a rank correlation."""


def scored_pairs(output_dir: Path, result: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """Reads estimate and Dice of every image, by site and id, from the tables of ``samfed evaluate``.

    Args:
        output_dir: its output folder.
        result: content of its ``metrics.json``.
    """
    by_site: dict[str, dict[str, tuple[float, float]]] = {}
    for site, summary in result["sites"].items():
        with (output_dir / site / result["split"] / "scores.csv").open(encoding="utf-8", newline="") as stream:
            by_site[site] = {row["id"]: (estimate_of(row, summary), float(row["dice"])) for row in from_csv(stream)}
    return by_site


def require_enough(images: int, split: str, which: str = "") -> None:
    """Refuses a calibration on too few images of a split."""
    if images < MIN_IMAGES:
        hint = "leave --calibrate out, choose another --split, or label more images"
        expected = f"at least {MIN_IMAGES} {split} images with masks"
        raise refused("--calibrate", found=f"{counted(images, 'image')}{which}", expected=expected, hint=hint)


def calibrated_on(pairs: Pairs, split: str) -> Calibration:
    """Calibrates a model on images of a split that it was not trained on; empty masks are left out.

    Raises:
        Refused: too few images.
    """
    groups = groups_of([estimate for estimate, _ in pairs], [dice for _, dice in pairs])
    require_enough(len(groups), split, " in which the model finds anything" if len(groups) < len(pairs) else "")
    return cast(Calibration, Calibration.fit(groups))


def measure(pairs: Pairs, calibration: Calibration | None, *, calibrating: int = 0) -> dict[str, Any]:
    """Measures how reliable the estimates are.

    Args:
        pairs: of images with labels.
        calibration: of the model; ``None`` uses the uncalibrated estimates, without a bound.
        calibrating: number of images that were used for the calibration, on which it looks better than it is.

    Returns:
        ``images``; ``calibrated``; ``calibrating``; ``expected_dice`` and ``dice``, their means; ``error``, their mean
        absolute difference; ``above_bound``, the share of images with at least their lower bound (``None`` without
        one); ``spearman``, the rank correlation of estimate and Dice (``None`` with fewer than five images, or if one
        is constant); ``worst_in_doubtful``, the share of the tenth with the lowest Dice that is in the fifth with the
        lowest estimates; ``dice_of_others``, the mean Dice of the other four fifths.
    """
    estimates, dice = (np.array(column, float) for column in zip(*pairs, strict=True))
    estimated = [calibration(estimate) if calibration else (estimate, None) for estimate in estimates.tolist()]
    expected = np.array([estimate for estimate, _ in estimated])
    bounds = [(bound, true) for (_, bound), true in zip(estimated, dice.tolist(), strict=True) if bound is not None]
    order, tenth, fifth = np.argsort(estimates, kind="stable"), max(1, len(dice) // 10), max(1, len(dice) // 5)
    worst, doubtful = set(np.argsort(dice, kind="stable")[:tenth].tolist()), set(order[:fifth].tolist())
    others, ranked = dice[order[fifth:]], len(dice) >= FEWEST_RANKED and np.ptp(estimates) and np.ptp(dice)
    return {
        "images": len(dice),
        "calibrated": calibration is not None,
        "calibrating": calibrating,
        "expected_dice": float(expected.mean()),
        "dice": float(dice.mean()),
        "error": float(np.abs(expected - dice).mean()),
        "above_bound": float(np.mean([bound <= true + 1e-9 for bound, true in bounds])) if bounds else None,
        "spearman": float(spearmanr(estimates, dice).statistic) if ranked else None,
        "worst_in_doubtful": len(worst & doubtful) / tenth,
        "dice_of_others": float(others.mean()) if len(others) else None,
    }


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Returns the result of :func:`measure` as sentences."""
    how = "expected" if result["calibrated"] else "expected (not calibrated)"
    apart = f"{result['error']:.3f} apart on average"
    lines = [f"{how} Dice {result['expected_dice']:.3f}, true {result['dice']:.3f}, {apart}"]
    if result["above_bound"] is not None:
        lines.append(f"{result['above_bound']:.0%} of the masks reach their lower bound (target: 90 %)")
    if result["spearman"] is not None:
        lines.append(f"rank correlation of expected and true Dice {result['spearman']:.2f}")
    if calibrating := result["calibrating"]:
        which = "these" if calibrating == result["images"] else f"{calibrating} of these"
        source = f"the model was calibrated on {which} {counted(result['images'], 'image')}: on other images"
        lines.append(f"{source}, expected and true Dice differ more, and fewer masks reach their bound")
    return lines
