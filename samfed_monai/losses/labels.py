"""Hard labels: what probabilities say of a pixel, and how far two label maps are the same."""

from __future__ import annotations

import torch
from torch import Tensor


def hard_label(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The class of each pixel and ``k``, the probability given to it.

    Args:
        probabilities: (B, C, H, W) float in [0, 1]; C = 1 is the foreground's, C > 1 sums to 1.

    Returns:
        (B, 1, H, W) long and (B, 1, H, W) float; for C = 1, ``y = 1[p > 0.5]`` and ``k = max(p, 1 - p)``.
    """
    if probabilities.shape[1] == 1:
        return (probabilities > 0.5).long(), torch.maximum(probabilities, 1 - probabilities)
    confidence, label = probabilities.max(dim=1, keepdim=True)
    return label, confidence


def dice_of_labels(first: Tensor, second: Tensor) -> Tensor:
    """Dice of two label maps per image, over all foreground classes together; 1 where both are empty.

    Args:
        first: (B, 1, H, W) long, 0 is the background.
        second: the same.

    Returns:
        (B,) float in [0, 1].
    """
    pixels = (1, 2, 3)
    overlap = ((first == second) & (first > 0)).sum(pixels)
    total = (first > 0).sum(pixels) + (second > 0).sum(pixels)
    return torch.where(total > 0, 2.0 * overlap / total.clamp(min=1), 1.0)
