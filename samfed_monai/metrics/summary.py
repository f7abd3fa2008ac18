"""From the scores of images to the score of a site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from samfed_monai.metrics.scores import Scores


def summarise(scores: Iterable[Scores], *, skip_empty: bool = False) -> dict[str, Any]:
    """Means over images, with the number of empty masks beside them.

    Args:
        scores: one per image.
        skip_empty: leave images with an empty mask out of the mean of HD95, as HSSF's tables do (Dice and IoU still
            count them). Only for comparison with published tables: a network that predicts nothing looks better.

    Returns:
        ``{"dice", "iou", "hd95", "n", "empty": {"both", "prediction", "label"}}``; a mean over no image is ``None``.
    """
    table = list(scores)
    measured = [score for score in table if score.empty == "none"] if skip_empty else table
    empty = Counter(score.empty for score in table)
    return {
        "dice": _mean(score.dice for score in table),
        "iou": _mean(score.iou for score in table),
        "hd95": _mean(score.hd95 for score in measured),
        "n": len(table),
        "empty": {which: empty[which] for which in ("both", "prediction", "label")},
    }


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return fmean(numbers) if numbers else None
