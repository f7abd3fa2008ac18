"""Distillation from a guide's probabilities to the student's logits (docs/method.md, step 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP = 1e-4
"""Guides' probabilities are kept this far from 0 and 1: a soft mask stored in 8 bits holds exact zeros and ones (its
step is 4e-3), whose logits would be infinite."""


def probabilities(logits: Tensor) -> Tensor:
    """Sigmoid for one channel, softmax over the channels otherwise: (B, C, H, W) to (B, C, H, W) float in [0, 1]."""
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
    divergence and is not divided out again, so an image the teacher is unreliable on really loses weight.

    Args:
        logits_student: (B, C, H, W) float.
        probabilities_teacher: (B, C, H, W) float in [0, 1]; no gradient.
        temperature: ``T`` > 0.
        weight: (B, 1, H, W) float >= 0, normalised by its sum; ``None`` counts every pixel alike.
        scale: (B,) float in [0, 1], for instance the reliability ``g``; ``None`` is 1.

    Returns:
        a scalar >= 0; 0 where all weights are 0.
    """
    teacher = probabilities_teacher.detach().to(logits_student.dtype).clamp(CLIP, 1 - CLIP)
    if logits_student.shape[1] == 1:
        softened = torch.logit(teacher) / temperature
        target = softened.sigmoid()
        cross = F.binary_cross_entropy_with_logits(logits_student / temperature, target, reduction="none")
        entropy = F.binary_cross_entropy_with_logits(softened, target, reduction="none")
        divergence = cross - entropy
    else:
        log_target = (teacher.log() / temperature).log_softmax(dim=1)
        log_student = (logits_student / temperature).log_softmax(dim=1)
        divergence = F.kl_div(log_student, log_target, reduction="none", log_target=True).sum(dim=1, keepdim=True)
    if scale is not None:
        divergence = divergence * scale.detach().to(divergence.dtype).view(-1, 1, 1, 1)
    if weight is None:
        return temperature**2 * divergence.mean()
    weight = weight.detach().to(divergence.dtype)
    total = weight.sum()
    return temperature**2 * (weight * divergence).sum() / torch.where(total > 0, total, 1.0)
