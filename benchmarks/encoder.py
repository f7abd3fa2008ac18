"""MobileSAM's image encoder as the teacher runs it, against timm's forward pass with the same weights.

timm's version uses torch's fused attention and keeps the memory format of the images. Both run in bfloat16 if that is
faster on the processor.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch
from common import Figure, record, side_by_side
from teacher_precision import checkpoint
from torch import Tensor

from samfed_monai.networks.inferer import autocast
from samfed_monai.networks.sam.adapter import Adapt, prepare
from samfed_monai.networks.sam.build import PromptFreeSam, build_sam


def with_timm_forward(sam: PromptFreeSam) -> PromptFreeSam:
    """Replaces the encoder's forward pass by timm's."""
    for module in sam.image_encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    encoder = sam.image_encoder
    encoder.forward = lambda images: encoder.neck(encoder.trunk.forward_features(images))  # type: ignore[method-assign]
    return sam


def mask(sam: PromptFreeSam, image: Tensor) -> Tensor:
    with autocast(image.device.type, "auto"):
        embedding = sam.encode(image).float()
    return sam.decode(embedding)


def infer(sam: PromptFreeSam, image: Tensor) -> None:
    with torch.no_grad():
        mask(sam, image)


def backward(sam: PromptFreeSam, image: Tensor) -> None:
    mask(sam, image).mean().backward()
    sam.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    figures = []
    for size in options.sizes:
        package, timm = (build_sam("vit_t", checkpoint(), size) for _ in range(2))
        for sam in (package, with_timm_forward(timm)):
            prepare(sam, Adapt.LORA, 4)
        image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        for what, do in (("soft mask", infer), ("gradient of LoRA and decoder", backward)):
            times = side_by_side(
                partial(do, package, image), partial(do, timm, image), repeats=options.repeats, clock=time.process_time
            )
            figures.append(
                Figure(f"MobileSAM, {size} px, {what}: timm's time against ours", times["ratio"], details=times)
            )
    record(__file__, figures)


if __name__ == "__main__":
    main()
