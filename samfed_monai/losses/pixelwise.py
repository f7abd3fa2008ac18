"""Logits and labels pixel by pixel: one class as a sigmoid, several as a softmax; losses without human labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from samfed_monai.data.weak_labels import IGNORE


class Channels(NamedTuple):
    """Inputs of pixelwise and overlap losses.

    Args:
        truth: (B, K, H, W), K = 1 for C = 1, otherwise C - 1: all classes except the background.
        entropy: (B, 1, H, W) float >= 0, the cross entropy of each pixel over all C classes.
        prediction: (B, K, H, W) float in [0, 1].
    """

    truth: Tensor
    entropy: Tensor
    prediction: Tensor


def channels(logits: Tensor, target: Tensor) -> Channels:
    """Truth, prediction and cross entropy of a batch, without weights and averages.

    Args:
        logits: (B, C, H, W) float.
        target: (B, 1, H, W), in [0, 1] for C = 1 and class indices for C > 1; or (B, C, H, W) probabilities.
    """
    # entropy before prediction: the order in which three gradients are added in the logits affects the last bit
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
    """The class of each pixel and ``k``, its probability.

    Args:
        probabilities: (B, C, H, W) float in [0, 1]; C = 1 is the foreground's, C > 1 sums to 1.

    Returns:
        (B, 1, H, W) long and (B, 1, H, W) float; for C = 1, ``y = 1[p > 0.5]`` and ``k = max(p, 1 - p)``.
    """
    if probabilities.shape[1] == 1:
        return (probabilities > 0.5).long(), torch.maximum(probabilities, 1 - probabilities)
    confidence, label = probabilities.max(dim=1, keepdim=True)
    return label, confidence


def sure_label(probabilities: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """The class of each pixel (:func:`hard_label`), and 1 where its probability is above ``tau``, else 0."""
    label, confidence = hard_label(probabilities)
    return label, (confidence > tau).to(confidence.dtype)


def dice_of_labels(first: Tensor, second: Tensor) -> Tensor:
    """Dice of two label maps per image, over all foreground classes together; 1 if both are empty.

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
    """Pixels without a label: those with 255, or with several classes those that are 0 in all planes.

    Args:
        label: (..., 1, H, W) in {0, 1, 255}; with K classes (..., K + 1, H, W) in {0, 1}, a plane for the background
            and for each class.

    Returns:
        (..., 1, H, W) bool.
    """
    return label == IGNORE if label.shape[-3] == 1 else ~label.bool().any(dim=-3, keepdim=True)


def weighted_pseudo_label_loss(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """``sum(w CE) / sum(w)`` plus the weighted soft Dice loss of each image, averaged with the images' sums of weights.

    An image whose weights are all 0 is ignored, and the loss of a batch of such images is exactly 0. The Dice of one
    image is ``(2 sum(w p y) + 1) / (sum(w p) + sum(w y) + 1)``; with C > 1 it is the mean over the foreground classes.

    Args:
        logits: (B, C, H, W) float, the student's strong view.
        label: (B, 1, H, W) class indices (0 or 1 for C = 1); no gradient.
        weight: (B, 1, H, W) float in [0, 1]; no gradient.

    Returns:
        a scalar >= 0.
    """
    weight = weight.detach().to(logits.dtype)
    truth, entropy, prediction = channels(logits, label)
    weighted = weight * prediction
    overlap, both = (weighted * truth).sum((2, 3)), weighted.sum((2, 3)) + (weight * truth).sum((2, 3))
    per_class = (2 * overlap + 1) / (both + 1)  # one pixel of smoothing, as in the structure loss
    per_image = (weight * entropy).sum((1, 2, 3)) + weight.sum((1, 2, 3)) * (1 - per_class.mean(dim=1))
    total = weight.sum()
    return per_image.sum() / torch.where(total > 0, total, 1.0)


CLIP = 1e-4
"""Minimum distance of guides' probabilities from 0 and 1: a soft mask stored in 8 bits has exact zeros and ones (its
step is 4e-3), whose logits would be infinite."""


def probabilities(logits: Tensor) -> Tensor:
    """Sigmoid for one channel, else softmax over the channels: (B, C, H, W) to (B, C, H, W) float in [0, 1]."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def distillation_kl(
    logits_student: Tensor,
    probabilities_teacher: Tensor,
    temperature: float = 2.0,
    weight: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """``T^2 KL(p_T || p_s)`` with both sides softened by ``T``, averaged over pixels with ``weight``.

    Bernoulli distributions for C = 1, categorical ones over the channels for C > 1. ``scale`` multiplies an image's
    divergence and is not normalised, so that images with an unreliable teacher have less weight.

    Args:
        logits_student: (B, C, H, W) float.
        probabilities_teacher: (B, C, H, W) float in [0, 1]; no gradient.
        temperature: ``T`` > 0.
        weight: (B, 1, H, W) float >= 0, normalised by its sum; ``None`` weights all pixels equally.
        scale: (B,) float in [0, 1], for instance the reliability ``g``; ``None`` is 1.

    Returns:
        a scalar >= 0; 0 if all weights are 0.
    """
    # half precision has no number between 1 - CLIP and 1
    logits_student = logits_student.to(torch.promote_types(logits_student.dtype, torch.float32))
    teacher = probabilities_teacher.detach().to(logits_student.dtype).clamp(CLIP, 1 - CLIP)
    softened = (torch.logit(teacher) if logits_student.shape[1] == 1 else teacher.log()) / temperature
    divergence = _divergence(logits_student / temperature, softened)
    if scale is not None:
        divergence = divergence * scale.detach().to(divergence.dtype).view(-1, 1, 1, 1)
    if weight is None:
        return temperature**2 * divergence.mean()
    weight = weight.detach().to(divergence.dtype)
    total = weight.sum()
    return temperature**2 * (weight * divergence).sum() / torch.where(total > 0, total, 1.0)


def logits_kl(logits_student: Tensor, logits_teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """:func:`distillation_kl` for known logits of the teacher, which are not clipped.

    Args:
        logits_student: (B, C, H, W) float.
        logits_teacher: (B, C, H, W) float; no gradient.
        temperature: ``T`` > 0.

    Returns:
        a scalar >= 0, the mean over pixels; exactly 0, without gradient, for C = 1 and equal logits.
    """
    softened = logits_teacher.detach().to(logits_student.dtype) / temperature
    return temperature**2 * _divergence(logits_student / temperature, softened).mean()


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    # KL(teacher || student) of softened logits, (B, C, H, W) to (B, 1, H, W)
    if student.shape[1] == 1:
        target = teacher.sigmoid()
        cross = F.binary_cross_entropy_with_logits(student, target, reduction="none")
        return cross - F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
    log_target, log_student = teacher.log_softmax(dim=1), student.log_softmax(dim=1)
    return F.kl_div(log_student, log_target, reduction="none", log_target=True).sum(dim=1, keepdim=True)


def hssf_kl(
    logits: Tensor, target_probabilities: Tensor, gate: Tensor | None = None, *, temperature: float = 2.0
) -> Tensor:
    """``KL(p_target || p)`` softened by ``T``, without ``T^2``, averaged over images, pixels and channels.

    One logit counts as the two channels of HSSF's networks, so this is ``distillation_kl / (2 T^2)``. An image with a
    closed gate contributes 0 to the mean.

    Args:
        logits: (B, C, H, W) float.
        target_probabilities: (B, C, H, W) float in [0, 1]; no gradient.
        gate: (B,) bool, or float in [0, 1]; ``None`` is open for all images.
        temperature: ``T`` > 0.

    Returns:
        a scalar >= 0, without HSSF's factor 10.
    """
    channels = max(2, logits.shape[1])
    return distillation_kl(logits, target_probabilities, temperature, scale=gate) / (channels * temperature**2)
