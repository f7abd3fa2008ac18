"""The pseudo-label loss: pixel cross entropy and soft Dice, both weighted by the agreement (docs/method.md, step 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from samfed_monai.losses.channels import channels


def weighted_pseudo_label_loss(logits: Tensor, label: Tensor, weight: Tensor, *, smoothing: float = 1.0) -> Tensor:
    """``sum(w CE) / sum(w)`` plus the weighted soft Dice loss of each image, averaged with the images' sums of weights.

    An image whose weights are all 0 has no say, and a batch of such images costs exactly 0. The Dice of one image is
    ``(2 sum(w p y) + s) / (sum(w p) + sum(w y) + s)``; with C > 1 it is the mean over the classes but the background.

    Args:
        logits: (B, C, H, W) float, the student's strong view.
        label: (B, 1, H, W) class indices (0 or 1 for C = 1); no gradient.
        weight: (B, 1, H, W) float in [0, 1]; no gradient.
        smoothing: ``s`` in pixels (1, as in the structure loss).

    Returns:
        a scalar >= 0.
    """
    weight = weight.detach().to(logits.dtype)
    truth, entropy, prediction = channels(logits, label)
    weighted = weight * prediction
    per_class = (2 * (weighted * truth).sum((2, 3)) + smoothing) / (
        weighted.sum((2, 3)) + (weight * truth).sum((2, 3)) + smoothing
    )
    per_image = (weight * entropy).sum((1, 2, 3)) + weight.sum((1, 2, 3)) * (1 - per_class.mean(dim=1))
    total = weight.sum()
    return per_image.sum() / torch.where(total > 0, total, 1.0)
