"""Scores of predicted masks: Dice, IoU, HD95 and what is done about empty masks; what an image costs.

A leaf: it imports nothing else of the package.
"""

from samfed_monai.lazy import attach

__all__ = [
    "Scores",
    "convention",
    "cost_of",
    "hausdorff95",
    "pool",
    "segmentation_scores",
    "summarise",
    "surface",
    "worst",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Scores": "scores",
        "segmentation_scores": "scores",
        "convention": "summary",
        "cost_of": "cost",
        "pool": "summary",
        "summarise": "summary",
        "worst": "summary",
        "hausdorff95": "hausdorff",
        "surface": "surfaces",
    },
)
