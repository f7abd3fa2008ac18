"""What a model's masks promised beside what they kept, on images with labels; the calibration that follows from it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy.stats import rankdata

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.words import counted
from samfed_monai.metrics.quality import FEWEST, Calibration, estimate_of, groups_of

Pairs = Sequence[tuple[float, float]]
"""Estimate and true Dice of each image."""
FEWEST_RANKED = 5
"""Images without which no rank correlation is given."""


def scored_pairs(output_dir: Path, result: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Estimate and Dice of every image of ``samfed evaluate``, by site, from the tables that it wrote.

    Args:
        output_dir: its folder.
        result: content of its ``metrics.json``.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for site, summary in result["sites"].items():
        with (output_dir / site / result["split"] / "scores.csv").open(encoding="utf-8", newline="") as stream:
            found[site] = [(estimate_of(row, summary), float(row["dice"])) for row in csv.DictReader(stream)]
    return found


def require_enough(images: int, split: str) -> None:
    """Refuses a calibration on too few images of a split."""
    if images < FEWEST:
        hint = "leave --calibrate out, choose another --split, or label more images"
        expected, found = f"at least {FEWEST} {split} images with masks", counted(images, "image")
        raise Refused([Problem("--calibrate", found=found, expected=expected, hint=hint)])


def calibrated_on(pairs: Pairs, split: str) -> Calibration:
    """The calibration of a model on images of a split that it was not trained on.

    Raises:
        Refused: too few images.
    """
    made = Calibration.fit(groups_of([estimate for estimate, _ in pairs], [dice for _, dice in pairs]))
    if made is None:
        require_enough(len(pairs), split)
    return cast(Calibration, made)


def kept(pairs: Pairs, calibration: Calibration | None, *, calibrating: int = 0) -> dict[str, Any]:
    """How far estimates can be relied on.

    Args:
        pairs: of images with labels.
        calibration: of the model; ``None`` takes estimates as they are, and there is no bound.
        calibrating: how many of the images are known to be of the calibration, on which it looks better than it is.

    Returns:
        ``images``; ``calibrated``; ``calibrating``; ``expected_dice`` and ``dice``, their means; ``error``, their mean
        distance; ``above_bound``, the share of images with at least their lower bound (``None`` without one);
        ``spearman``, the rank correlation of estimate and Dice (``None`` of fewer than five images, or where one never
        varies); ``worst_in_doubtful``, the share of the tenth with the lowest Dice that is in the fifth with the lowest
        estimates; ``dice_of_others``, the mean Dice of the other four fifths.
    """
    estimates, dice = (np.array(column, float) for column in zip(*pairs, strict=True))
    made = [calibration(each) if calibration else (each, None) for each in estimates.tolist()]
    expected = np.array([each for each, _ in made])
    held = [bound <= true + 1e-9 for (_, bound), true in zip(made, dice.tolist(), strict=True) if bound is not None]
    order, tenth, fifth = np.argsort(estimates, kind="stable"), max(1, len(dice) // 10), max(1, len(dice) // 5)
    worst, doubtful = set(np.argsort(dice, kind="stable")[:tenth].tolist()), set(order[:fifth].tolist())
    others = dice[order[fifth:]]
    return {
        "images": len(dice),
        "calibrated": calibration is not None,
        "calibrating": calibrating,
        "expected_dice": float(expected.mean()),
        "dice": float(dice.mean()),
        "error": float(np.abs(expected - dice).mean()),
        "above_bound": float(np.mean(held)) if held else None,
        "spearman": spearman(estimates, dice),
        "worst_in_doubtful": len(worst & doubtful) / tenth,
        "dice_of_others": float(others.mean()) if len(others) else None,
    }


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation; ``None`` of fewer than :data:`FEWEST_RANKED` values, or where one never varies."""
    if len(a) < FEWEST_RANKED or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What :func:`kept` found, for a reader."""
    how = "expected" if found["calibrated"] else "expected (not calibrated)"
    lines = [
        f"{how} Dice {found['expected_dice']:.3f}, true {found['dice']:.3f}, {found['error']:.3f} apart on average"
    ]
    if found["above_bound"] is not None:
        lines.append(f"{found['above_bound']:.0%} of the masks have at least their lower bound (90 % are to)")
    if found["spearman"] is not None:
        lines.append(f"rank correlation of expected and true Dice {found['spearman']:.2f}")
    if some := found["calibrating"]:
        which = "these" if some == found["images"] else f"{some} of these"
        lines.append(
            f"{which} {counted(found['images'], 'image')} calibrated this model: on other images expected and true "
            "Dice are farther apart, and fewer masks are above their bound"
        )
    return lines
