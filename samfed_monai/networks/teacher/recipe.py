"""The numbers of docs/method.md: loss, learning rate, defaults."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BETAS = (0.9, 0.999)
WEIGHT_DECAY = 0.1
_CE, _DICE = 0.2, 0.8
_WARM_UP_STEPS = 250  # SAMed's, for tens of thousands of steps; a short fit warms up for a tenth of its steps
_POLY = 0.9


LORA_LEARNING_RATE = 5e-3
"""Peak of the low-rank matrices: SAMed's default. They start at zero, and at a decoder's rate they hardly move."""


def default_learning_rate(base: str, adapt: str) -> float:
    """Peak of prompt encoder and mask decoder: SAMed's 5e-3 for SAM's ViT; for MobileSAM what was best of a few values
    on 66 skin images."""
    if base != "vit_t":
        return 5e-3
    return 5e-4 if adapt == "lora" else 3e-4


def default_epochs(adapt: str) -> int:
    """24 with LoRA, 12 for the decoder alone, which overfits a small public set when it is trained longer."""
    return 24 if adapt == "lora" else 12


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """``0.2 CE + 0.8 Dice`` (SAMed, section 3.3), Dice per image.

    Args:
        logits: ``(B, 1, h, w)``.
        target: ``(B, 1, h, w)`` float in [0, 1].
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target)
    probability = logits.sigmoid()
    overlap = 2 * (probability * target).sum(dim=(1, 2, 3)) + 1
    dice = overlap / ((probability**2).sum(dim=(1, 2, 3)) + (target**2).sum(dim=(1, 2, 3)) + 1)
    return _CE * cross_entropy + _DICE * (1 - dice.mean())


def learning_rate_at(step: int, total: int, peak: float) -> float:
    """Linear warm-up, then ``(1 - progress) ** 0.9``; ``step`` counts from 0 to ``total - 1``."""
    warm_up = min(_WARM_UP_STEPS, max(1, total // 10))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (1 - (step - warm_up) / max(1, total - warm_up)) ** _POLY


def quarter(mask: Tensor) -> Tensor:
    """A mask at the resolution of SAM's logits: the share of each 4 x 4 block that it covers."""
    return F.avg_pool2d(mask, 4)


Part = tuple[list[torch.nn.Parameter], float]
"""Parameters and the peak of their learning rate."""


def make_optimizer(parts: Sequence[Part]) -> torch.optim.Optimizer:
    """AdamW, a group for each part; the learning rate is set before every step, from the group's ``peak``."""
    groups = [{"params": parameters, "peak": peak} for parameters, peak in parts]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
