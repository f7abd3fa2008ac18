"""Images of any size into SAM's square input, and masks back out of the square output."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from samfed_monai.networks.autocast import Switch, autocast, bf16_possible
from samfed_monai.networks.sam.build import PromptFreeSam

MASK_STRIDE = 4
"""SAM's mask logits have a quarter of the input's side."""


def inner_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width in pixels of an image scaled into a ``size`` x ``size`` input.

    The longer side becomes ``size``. The shorter one is rounded to a multiple of 4 (SAM itself rounds to 1), so that
    the image ends on a pixel border of the quarter-resolution mask and the mask can be cropped to cover it exactly.
    """
    scale = size / max(height, width)

    def fit(side: int) -> int:
        return max(MASK_STRIDE, round(side * scale / MASK_STRIDE) * MASK_STRIDE)

    return fit(height), fit(width)


def place(images: Tensor, size: int) -> Tensor:
    """Scales ``(B, C, H, W)`` to its :func:`inner_size`; antialiased where that shrinks it."""
    height, width = images.shape[-2:]
    inner = inner_size(height, width, size)
    if (height, width) == inner:
        return images
    shrinks = inner[0] < height or inner[1] < width
    return F.interpolate(images, inner, mode="bilinear", align_corners=False, antialias=shrinks)


def pad(images: Tensor, size: int) -> Tensor:
    """Zeros at the right and at the bottom, up to ``(B, C, size, size)``."""
    return F.pad(images, (0, size - images.shape[-1], 0, size - images.shape[-2]))


def crop(masks: Tensor, height: int, width: int, size: int) -> Tensor:
    """The part of ``(B, 1, size / 4, size / 4)`` that covers exactly an image of ``height`` x ``width`` pixels."""
    inner = inner_size(height, width, size)
    return masks[..., : inner[0] // MASK_STRIDE, : inner[1] // MASK_STRIDE]


def embed(sam: PromptFreeSam, images: Tensor, size: int, bf16: Switch) -> Tensor:
    """Scales, normalises, pads and encodes.

    Args:
        sam: whose encoder.
        images: ``(B, 3, H, W)`` in [0, 1], RGB.
        size: side of its square input in pixels.
        bf16: bfloat16 for the encoder; float32 where the processor does not have it (``bf16_possible``).

    Returns:
        ``(B, 256, size / 16, size / 16)`` float32.
    """
    inputs = pad(sam.normalise(place(images.float(), size)), size)
    with autocast(inputs.device.type, bf16_possible(bf16, inputs.device.type)):
        return sam.encode(inputs).float()
