"""Dice, IoU and HD95 of one predicted mask, with a stated convention for empty masks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from samfed_monai.metrics.hausdorff import hausdorff95

Empty = Literal["none", "both", "prediction", "label"]


@dataclass(frozen=True)
class Scores:
    """The scores of one image.

    Args:
        dice: in [0, 1].
        iou: intersection over union, in [0, 1].
        hd95: 95th percentile of the Hausdorff distance, pixels at the size that was compared.
        empty: which of the two masks held no pixel.
    """

    dice: float
    iou: float
    hd95: float
    empty: Empty = "none"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def segmentation_scores(prediction: np.ndarray, label: np.ndarray, *, pooled: bool = False) -> Scores:
    """Scores a predicted mask against its label.

    Empty masks (docs/method.md): both empty is a right answer, Dice 1, IoU 1 and HD95 0; one empty is a wholly wrong
    one, Dice 0, IoU 0 and HD95 the image's diagonal. ``empty`` says which, so that they can be counted apart.

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
        return Scores(1.0, 1.0, 0.0, "both")
    if not size_p or not size_l:
        return Scores(0.0, 0.0, math.hypot(*label.shape), "label" if size_p else "prediction")
    overlap = int(np.count_nonzero(prediction & label))
    return Scores(
        dice=2 * overlap / (size_p + size_l),
        iou=overlap / (size_p + size_l - overlap),
        hd95=hausdorff95(prediction, label, pooled=pooled),
    )
