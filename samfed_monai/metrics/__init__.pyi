"""Scores of predicted masks (Dice, IoU, HD95, conventions for empty masks), estimated quality, cost of an image."""

from .cost import cost_of
from .scores import (
    EXTRAS,
    NAMES,
    Scores,
    convention,
    hausdorff95,
    over_classes,
    pool,
    scores_by_class,
    segmentation_scores,
    summarise,
    surface,
    worst,
)

__all__ = [
    "EXTRAS",
    "NAMES",
    "Scores",
    "convention",
    "cost_of",
    "hausdorff95",
    "over_classes",
    "pool",
    "scores_by_class",
    "segmentation_scores",
    "summarise",
    "surface",
    "worst",
]
