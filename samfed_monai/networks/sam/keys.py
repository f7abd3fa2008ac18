"""Names in the state dict of a :class:`SamNetwork`: low-rank updates, experts, and the part of the decoder in use."""

from __future__ import annotations

from enum import Enum

from samfed_monai.networks.key_patterns import KeyPatterns

LORA_KEYS = {
    "qv": ("*.qkv.query_[ab]", "*.qkv.value_[ab]"),
    "qkv": ("*.qkv.update_[ab]",),
    "all_linear": ("*.update_[ab]",),
}
"""Patterns of LoRA's matrices, by ``lora_targets``."""
EXPERT_KEYS = ("*.mlp.experts.gate", "*.mlp.experts.down", "*.mlp.experts.up")
"""Patterns of L-MoE: never in an update."""
DECODER_KEYS = tuple(
    f"sam.mask_decoder.{part}.*"
    for part in ("transformer", "iou_token", "mask_tokens", "output_upscaling", "output_hypernetworks_mlps.0")
)
"""Patterns of what the single mask of the mask decoder is made with; its other heads are never run and stay frozen."""


class Decoder(str, Enum):
    """What becomes of the mask decoder."""

    PERSONAL = "personal"
    """Trained with the experts, never sent."""
    SHARED = "shared"
    """Trained with LoRA and aggregated."""
    FROZEN = "frozen"
    """As it comes."""


def sam_key_patterns(*, decoder: str = "personal", lora_targets: str = "qv", experts: bool = True) -> KeyPatterns:
    """What is shared and what is personal of a SAM with LoRA.

    Args:
        decoder: see :class:`Decoder`.
        lora_targets: see ``LoRATargets``.
        experts: whether it has L-MoE.
    """
    local = EXPERT_KEYS if experts else ()
    return KeyPatterns(
        shared=LORA_KEYS[lora_targets] + (DECODER_KEYS if decoder == Decoder.SHARED else ()),
        personal=local + (DECODER_KEYS if decoder == Decoder.PERSONAL else ()),
    )
