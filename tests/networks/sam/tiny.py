"""A SAM with an encoder of two blocks of width 16: it has every layer, and a step takes milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from samfed_monai.networks.sam.build import PromptFreeSam, assemble, vit_encoder
from samfed_monai.networks.sam.network import SamNetwork

SIZE = 64


def tiny_sam(seed: int = 0) -> PromptFreeSam:
    """A SAM of two blocks at 64 px; the same random weights for a seed, which cost its caller no random number."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return assemble(vit_encoder(SIZE, width=16, depth=2, heads=2, global_blocks=(1,)), SIZE)


def tiny_network(seed: int = 0, **given: Any) -> SamNetwork:
    """A :class:`SamNetwork` on a ViT of two blocks at 64 px."""
    torch.manual_seed(seed)
    return SamNetwork(assemble(vit_encoder(SIZE, width=16, depth=2, heads=2, global_blocks=(1,)), SIZE), SIZE, **given)


def wake(network: nn.Module, seed: int = 1, scale: float = 0.5) -> None:
    """Moves LoRA and experts away from their zero start."""
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        if name.endswith(("query_b", "value_b", "experts.up")):
            nn.init.normal_(parameter, std=scale)
