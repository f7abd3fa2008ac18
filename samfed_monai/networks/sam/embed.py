"""Images of any size to SAM's embeddings."""

from __future__ import annotations

from torch import Tensor

from samfed_monai.networks.autocast import Switch, autocast, bf16_possible
from samfed_monai.networks.sam.geometry import pad, place
from samfed_monai.networks.sam.model import PromptFreeSam


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
