"""Class prototypes: sums of the features of each class's pixels (FedProto, arXiv 2105.00243)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class ClassSums(NamedTuple):
    """Sums of features and of weights per class.

    Args:
        sums: (K, D) float.
        counts: (K,) float, in pixels of the feature map.
    """

    sums: Tensor
    counts: Tensor

    def means(self) -> Tensor:
        """(K, D); 0 where a class has no pixel."""
        return self.sums / self.counts.clamp(min=1e-6)[:, None]


def class_sums(features: Tensor, labels: Tensor, weights: Tensor | None = None, *, classes: int = 2) -> ClassSums:
    """Adds up the features of each class's pixels.

    Args:
        features: (B, D, h, w) float.
        labels: (B, 1, H, W) class indices; brought to the features' size by the pixel nearest to the middle of each.
        weights: (B, 1, H, W) float >= 0, likewise; ``None`` counts every pixel.
        classes: K, the background included.
    """
    size = features.shape[-2:]
    index = functional.interpolate(labels.float(), size, mode="nearest-exact").long()[:, 0]
    hot = functional.one_hot(index, classes).movedim(-1, 1).to(features.dtype)
    if weights is not None:
        hot = hot * functional.interpolate(weights.to(features.dtype), size, mode="nearest-exact")
    return ClassSums(torch.einsum("bkhw,bdhw->kd", hot, features), hot.sum(dim=(0, 2, 3)))
