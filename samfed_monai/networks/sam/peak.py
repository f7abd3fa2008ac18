"""Foreground relative to the image's highest probability: for images that are known to show a lesion."""

from __future__ import annotations

import torch
from torch import Tensor

from samfed_monai.errors import Problem, Refused

_LEAST = 1e-6  # keeps logits finite


def check_peak(peak: float | None) -> None:
    """Refuses anything but ``None`` and a number above 0 and at most 0.5."""
    if peak is not None and (type(peak) not in (int, float) or not 0 < peak <= 0.5):
        expected = "a number above 0 and at most 0.5, or null"
        raise Refused([Problem("teacher -> peak", found=repr(peak), expected=expected)])


def relative_to_peak(probabilities: Tensor, peak: float) -> Tensor:
    """Shifts every image's logits so that ``peak`` times its highest probability becomes 0.5.

    Where a teacher is unsure of a whole image (other colours than it was adapted to) its mask is too small or empty at
    a threshold of 0.5, while its order of the pixels is still good. The order stays as it is. On an image without a
    lesion this finds one: it is for sets whose images all show one. Ours, not from a paper.

    Args:
        probabilities: ``(B, 1, H, W)`` float in [0, 1].
        peak: part of the highest probability, in (0, 0.5].

    Returns:
        ``(B, 1, H, W)`` float in [0, 1].
    """
    highest = probabilities.amax(dim=(1, 2, 3), keepdim=True)
    threshold = (peak * highest).clamp(_LEAST, 0.5)
    return torch.sigmoid(probabilities.clamp(_LEAST, 1 - _LEAST).logit() - threshold.logit())
