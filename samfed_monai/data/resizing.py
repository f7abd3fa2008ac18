"""Resizing soft masks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def resize_probabilities(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes soft masks bilinearly, antialiased where that shrinks them, corners not aligned.

    Args:
        masks: ``(B, C, H, W)`` float in [0, 1].
        size: height and width in pixels.

    Returns:
        ``(B, C, *size)`` in [0, 1]: the weights of a resize may add up to a little more than 1, the result does not.
        ``masks`` itself where it has that size.
    """
    height, width = masks.shape[-2:]
    if (height, width) == tuple(size):
        return masks
    shrinks = height > size[0] or width > size[1]
    resized = functional.interpolate(masks, tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)
    return resized.clamp_(0, 1)
