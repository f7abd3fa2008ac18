"""How far two views of an image are apart."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from samfed_monai.losses.distillation import distillation_kl, probabilities
from samfed_monai.registry import Registry

CONSISTENCY_MEASURES: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry("consistency measure")
"""Measures by name: from logits (B, C, H, W) and a guide's probabilities (B, C, H, W) to a scalar >= 0."""


@CONSISTENCY_MEASURES.register("mse")
def consistency_mse(logits: Tensor, guide: Tensor) -> Tensor:
    """Mean squared difference of probabilities (Tarvainen and Valpola, arXiv 1703.01780, equation 1).

    Args:
        logits: (B, C, H, W) float, of the student.
        guide: (B, C, H, W) float in [0, 1], without gradient.
    """
    return functional.mse_loss(probabilities(logits), guide.detach().to(logits.dtype))


@CONSISTENCY_MEASURES.register("kl")
def consistency_kl(logits: Tensor, guide: Tensor) -> Tensor:
    """``KL(guide || student)`` without a temperature; its gradient does not fade where the student is sure."""
    return distillation_kl(logits, guide, temperature=1.0)
