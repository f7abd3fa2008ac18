"""Logits and labels channel by channel: one class as a sigmoid, several as a softmax without the background."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Channels(NamedTuple):
    """What a loss of pixels and of overlaps looks at.

    Args:
        truth: (B, K, H, W), K = 1 for C = 1, otherwise C - 1: every class but the background.
        entropy: (B, 1, H, W) float >= 0, the cross entropy of each pixel over all C classes.
        prediction: (B, K, H, W) float in [0, 1].
    """

    truth: Tensor
    entropy: Tensor
    prediction: Tensor


def channels(logits: Tensor, target: Tensor) -> Channels:
    """Truth, prediction and cross entropy of a batch; it weighs and averages nothing.

    Args:
        logits: (B, C, H, W) float.
        target: (B, 1, H, W), in [0, 1] for C = 1 and class indices for C > 1; or (B, C, H, W) probabilities.
    """
    # entropy before prediction: where three gradients meet in the logits, the order decides on the last bit
    classes = logits.shape[1]
    if classes == 1:
        truth = target.to(logits.dtype)
        return Channels(truth, F.binary_cross_entropy_with_logits(logits, truth, reduction="none"), logits.sigmoid())
    if target.shape[1] == classes:
        truth = target.to(logits.dtype)
        entropy = F.cross_entropy(logits, truth, reduction="none").unsqueeze(1)
        return Channels(truth[:, 1:], entropy, logits.softmax(dim=1)[:, 1:])
    index = target.squeeze(1).long()
    truth = F.one_hot(index, classes).movedim(-1, 1).to(logits.dtype)[:, 1:]
    return Channels(truth, F.cross_entropy(logits, index, reduction="none").unsqueeze(1), logits.softmax(dim=1)[:, 1:])
