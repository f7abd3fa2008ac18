"""The losses of HSSF's code where they differ from ours (Ma et al., IEEE TMI 2024; docs/method.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from samfed_monai.losses.channels import hard_label
from samfed_monai.losses.unlabelled import distillation_kl, probabilities

CONFIDENCE_WEIGHT = 4.0
"""Factor of :func:`confidence_loss` in HSSF's sum."""


@dataclass(frozen=True)
class LsslLabels:
    """What two views of an unlabelled batch agree to be taught.

    Args:
        label: (B, 1, H, W) long, 0 or 1.
        gate: (B,) bool, images that count.
        flipped: (B, 1, H, W) bool, where the label is the opposite of what was predicted.
    """

    label: Tensor
    gate: Tensor
    flipped: Tensor


def confidence_loss(confidence: Tensor, logits: Tensor, label: Tensor) -> Tensor:
    """Cross entropy of "the prediction is right here", wrong pixels counting ``right / wrong`` times as much.

    Both kinds of pixel so have the same sum of weights; the mean is over all pixels of the batch. Where no pixel is
    right the weight of the wrong ones is 0, by the same formula. The gradient reaches the confidence alone, and through
    its features the network; the prediction that is judged is a label.

    Args:
        confidence: (B, 1, H, W) float, logit of being right.
        logits: (B, C, H, W) float, the prediction that is judged.
        label: (B, 1, H, W), class indices (0 or 1 for C = 1).

    Returns:
        a scalar >= 0, without HSSF's factor :data:`CONFIDENCE_WEIGHT`.
    """
    predicted = hard_label(probabilities(logits.detach()))[0]
    right = (predicted == label.long()).to(confidence.dtype)
    rights, wrongs = right.sum(), (1 - right).sum()
    weight = torch.where(right > 0, 1.0, rights / wrongs.clamp(min=1))
    return (weight * F.binary_cross_entropy_with_logits(confidence, right, reduction="none")).mean()


def hssf_kl(
    logits: Tensor, target_probabilities: Tensor, gate: Tensor | None = None, *, temperature: float = 2.0
) -> Tensor:
    """``KL(p_target || p)`` softened by ``T``, without ``T^2``, averaged over images, pixels and channels.

    One logit counts as the two channels that HSSF's networks have, so this is ``distillation_kl / (2 T^2)``. An image
    whose gate is closed counts as 0 and stays in the mean.

    Args:
        logits: (B, C, H, W) float.
        target_probabilities: (B, C, H, W) float in [0, 1]; no gradient.
        gate: (B,) bool, or float in [0, 1]; ``None`` opens every image.
        temperature: ``T`` > 0.

    Returns:
        a scalar >= 0, without HSSF's factor 10.
    """
    channels = max(2, logits.shape[1])
    divergence = distillation_kl(logits, target_probabilities, temperature, scale=gate)
    return divergence / (channels * temperature**2)


def lssl_labels(
    weak: Tensor,
    weak_confidence: Tensor,
    strong: Tensor,
    strong_confidence: Tensor,
    *,
    flip_below: float = 0.3,
    least_mean: float = 0.75,
) -> LsslLabels:
    """The pseudo-label of HSSF's local step: each pixel from the view that is surer of itself there.

    A pixel that even the surer view thinks wrong (confidence below ``flip_below``) gets the opposite label; an image
    counts only if the mean of its surer views' confidences is above ``least_mean``. Equal views: the weak one's.

    Args:
        weak, strong: (B, 1, H, W) float logits of two views with the same geometry.
        weak_confidence, strong_confidence: (B, 1, H, W) float, their logits of being right.
        flip_below: confidence in [0, 1].
        least_mean: confidence in [0, 1].

    Raises:
        ValueError: more than one channel, which has no opposite.
    """
    if weak.shape[1] != 1:
        raise ValueError(
            f"lssl_labels: expected one channel, found {weak.shape[1]}; a class has no opposite to flip to"
        )
    sure, other = weak_confidence.detach().sigmoid(), strong_confidence.detach().sigmoid()
    best = torch.maximum(sure, other)
    foreground = torch.where(sure >= other, weak.detach(), strong.detach()) > 0
    flipped = best < flip_below
    return LsslLabels((foreground ^ flipped).long(), best.mean(dim=(1, 2, 3)) > least_mean, flipped)


def dropout_consistency(logits: Tensor, dropped: Tensor) -> Tensor:
    """Squared difference of the logits of two passes, channels weighted by how much of the image they hold.

    ``mean_{b, c} w_bc mean_pixels (z - d)^2`` with ``w_bc`` the mean over the pixels of ``softmax(d)``. The gradient
    reaches both passes, and the weight.

    Args:
        logits: (B, C, H, W) float, C > 1.
        dropped: the same of the pass with features left out.
    """
    weight = dropped.softmax(dim=1).mean(dim=(2, 3))
    return (weight * ((logits - dropped) ** 2).mean(dim=(2, 3))).mean()


def gated_loss(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, label: Tensor, gate: Tensor) -> Tensor:
    """The mean over all images of a loss that is 0 for images with a closed gate.

    Args:
        loss: of logits and labels, a mean over images.
        logits: (B, C, H, W) float.
        label: (B, 1, H, W), what ``loss`` takes.
        gate: (B,) bool.
    """
    if not bool(gate.any()):
        return logits.sum() * 0.0
    return loss(logits[gate], label[gate]) * gate.to(logits.dtype).mean()
