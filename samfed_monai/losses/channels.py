"""Logits and labels channel by channel: one class as a sigmoid, several as a softmax; hard labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from samfed_monai.data.weak_labels import IGNORE


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


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy of each pixel in nats, (B, 1, H, W): of Bernoulli for one channel, categorical over more."""
    p = probabilities.float().clamp(1e-8, 1 - 1e-7)
    if p.shape[1] == 1:
        return -(p * p.log() + (1 - p) * (1 - p).log())
    return -(p * p.log()).sum(dim=1, keepdim=True)


def without_label(label: Tensor) -> Tensor:
    """Pixels without a label: those of 255, and of several classes those that no plane has.

    Args:
        label: (..., 1, H, W) in {0, 1, 255}; of K classes (..., K + 1, H, W) in {0, 1}, a plane for the background and
            for each of them.

    Returns:
        (..., 1, H, W) bool.
    """
    return label == IGNORE if label.shape[-3] == 1 else ~label.bool().any(dim=-3, keepdim=True)
