"""Class prototypes: the mean feature of each class, and how far a batch's are from given ones."""

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
        labels: (B, 1, H, W) class indices; brought to the features' size by nearest pixel.
        weights: (B, 1, H, W) float >= 0, likewise; ``None`` counts every pixel.
        classes: K, the background included.
    """
    size = features.shape[-2:]
    index = functional.interpolate(labels.float(), size, mode="nearest").long()[:, 0]
    hot = functional.one_hot(index, classes).movedim(-1, 1).to(features.dtype)
    if weights is not None:
        hot = hot * functional.interpolate(weights.to(features.dtype), size, mode="nearest")
    return ClassSums(torch.einsum("bkhw,bdhw->kd", hot, features), hot.sum(dim=(0, 2, 3)))


def prototype_loss(batch: ClassSums, prototypes: Tensor, known: Tensor) -> Tensor:
    """Mean squared distance of the batch's prototypes to the given ones, over classes that both have.

    FedProto (Tan et al., arXiv 2105.00243, equation 7) with squared L2 divided by the number of channels, so that its
    weight does not depend on a network's width.

    Args:
        batch: of this batch, with gradient.
        prototypes: (K, D) float.
        known: (K,) bool, which classes of ``prototypes`` are meant.

    Returns:
        a scalar >= 0; 0 where no class is in both.
    """
    both = known & (batch.counts > 0)
    distance = (batch.means() - prototypes.detach()).pow(2).mean(dim=1)
    return (distance * both).sum() / both.sum().clamp(min=1)
