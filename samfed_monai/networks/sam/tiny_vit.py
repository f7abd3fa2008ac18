"""MobileSAM's image encoder: timm's TinyViT with SAM's neck, and the map between the two spellings of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from samfed_monai.networks.torchvision_ops import declare_torchvision_operators

_RENAMES = (
    (r"\.c\.weight$", ".conv.weight"),
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"^layers\.(\d)\.blocks\.", r"stages.\1.blocks."),
)


def tiny_vit_trunk() -> Any:
    """timm's TinyViT-5M as MobileSAM has it, with random weights: no head, and the last stage stays at stride 16.

    Returns:
        a module with ``patch_embed`` (64 channels at stride 4) and ``stages`` (64, 128, 160 and 320 channels at strides
        4, 8, 16 and 16).
    """
    declare_torchvision_operators()
    from timm.models import create_model

    trunk: Any = create_model("tiny_vit_5m_224", pretrained=False, num_classes=0)
    trunk.head = nn.Identity()
    trunk.stages[3].downsample.conv2.conv.stride = (1, 1)  # MobileSAM: the embedding stays at stride 16
    for module in trunk.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return trunk


class TinyViTEncoder(nn.Module):
    """TinyViT-5M at output stride 16 with SAM's neck (Zhang et al. 2023, arXiv 2306.14289).

    Its windowed attention takes any size, so no position table depends on ``size``. It computes in channels-last order
    and with plain attention, which in bfloat16 on a CPU takes about two thirds of the time of timm's own
    (``benchmarks/encoder.py``): torch has no fused kernel for a bias of three dimensions and windows as small as these.

    Args:
        size: side of the square input in pixels; kept for callers that ask ``img_size``, as of SAM's own encoder.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.img_size, self.trunk = size, tiny_vit_trunk()
        from segment_anything.modeling.common import LayerNorm2d

        self.neck = nn.Sequential(
            nn.Conv2d(320, 256, 1, bias=False),
            LayerNorm2d(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            LayerNorm2d(256),
        )

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, size, size)`` normalised as SAM does to ``(B, 256, size / 16, size / 16)``."""
        features: Tensor = self.trunk.forward_features(images.contiguous(memory_format=torch.channels_last))
        return self.neck(features)


def fold_batch_norms(encoder: nn.Module) -> None:
    """Folds the batch norms of a :class:`TinyViTEncoder` into the convolutions before them, in place.

    The same function up to rounding, in less time (``benchmarks/teacher_fit.py``); for encoders whose convolutions are
    never trained. The names of the folded layers' tensors change: load weights before, and keep
    only those of LoRA and decoder afterwards. Other encoders have no batch norm and are left as they are.
    """
    from timm.models.tiny_vit import ConvNorm

    if not isinstance(encoder, TinyViTEncoder):
        return
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ConvNorm):
                setattr(parent, name, child.fuse().requires_grad_(False))


def from_mobile_sam(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MobileSAM's names (without ``image_encoder.``) to those of :class:`TinyViTEncoder`; its class head is dropped."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(("norm_head.", "head.")):
            continue
        if not name.startswith("neck."):
            for pattern, replacement in _RENAMES:
                name = re.sub(pattern, replacement, name)
            # what closes a stage in MobileSAM opens the next one in timm
            name = re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.", name)
            name = f"trunk.{name}"
        renamed[name] = tensor
    return renamed
