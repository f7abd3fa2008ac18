"""Scores of predicted masks: Dice, IoU, HD95 and what is done about empty masks. A leaf: imports nothing else here."""

from samfed_monai.lazy import attach

__all__ = ["Scores", "convention", "hausdorff95", "pool", "segmentation_scores", "summarise", "surface", "worst"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Scores": "scores",
        "segmentation_scores": "scores",
        "convention": "summary",
        "pool": "summary",
        "summarise": "summary",
        "worst": "summary",
        "hausdorff95": "hausdorff",
        "surface": "surfaces",
    },
)
