"""Low-rank adaptation of the query and value projections of an image encoder (SAMed: Zhang & Liu 2023, 2304.13785)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samfed_monai.errors import Problem, Refused


class QKVLayout(NamedTuple):
    """How the rows of a joint ``qkv`` projection are ordered: ``groups`` times (q, k, v) rows.

    SAM's ViT keeps all queries together (one group); TinyViT interleaves q, k and v of each head (a group per head).
    """

    groups: int
    query: int
    key: int
    value: int


class LoRAQueryValue(nn.Module):
    """A frozen ``qkv`` linear layer plus a trainable low-rank update of q and v; k is passed on untouched.

    ``q += B_q A_q x`` and ``v += B_v A_v x``; A starts as ``nn.Linear`` does, B at zero, so step 0 equals the frozen
    layer exactly.

    Args:
        linear: the layer to adapt.
        layout: order of its output rows.
        rank: rank r of the update, in [1, number of input features].
    """

    def __init__(self, linear: nn.Linear, layout: QKVLayout, rank: int) -> None:
        super().__init__()
        self.linear, self.layout = linear.requires_grad_(False), layout
        self.query_a = nn.Parameter(torch.empty(rank, linear.in_features))
        self.query_b = nn.Parameter(torch.zeros(layout.groups * layout.query, rank))
        self.value_a = nn.Parameter(torch.empty(rank, linear.in_features))
        self.value_b = nn.Parameter(torch.zeros(layout.groups * layout.value, rank))
        for matrix in (self.query_a, self.value_a):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., groups * (q + k + v))``."""
        groups = self.layout.groups
        query = F.linear(F.linear(x, self.query_a), self.query_b).unflatten(-1, (groups, -1))
        value = F.linear(F.linear(x, self.value_a), self.value_b).unflatten(-1, (groups, -1))
        key = query.new_zeros(*query.shape[:-1], self.layout.key)
        return self.linear(x) + torch.cat([query, key, value], dim=-1).flatten(-2)


def apply_lora(encoder: nn.Module, rank: int = 4) -> list[nn.Parameter]:
    """Freezes ``encoder`` and wraps the ``qkv`` of every attention block, in place.

    ViT-B: 12 blocks x (q, v) x r x (768 + 768) = 147,456 parameters at r = 4.

    Args:
        encoder: SAM's ViT or TinyViT: modules named ``attn`` with a linear ``qkv`` and ``num_heads``.
        rank: rank r of each update.

    Returns:
        The new parameters, the only ones of the encoder that require gradients.

    Raises:
        Refused: a rank that is no positive integer, or an encoder without such a block.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise Refused([Problem("teacher -> rank", found=repr(rank), expected="an integer >= 1")])
    blocks = [module for name, module in encoder.named_modules() if name.endswith("attn") and hasattr(module, "qkv")]
    if not blocks:
        found = type(encoder).__name__
        raise Refused([Problem("LoRA", found=found, expected="an encoder whose attention blocks have a joint qkv")])
    encoder.requires_grad_(False)
    for block in blocks:
        block.qkv = LoRAQueryValue(block.qkv, _layout(block), rank).to(block.qkv.weight.device)
    return [parameter for parameter in encoder.parameters() if parameter.requires_grad]


def _layout(block: nn.Module) -> QKVLayout:
    heads = int(block.num_heads)  # type: ignore[arg-type]
    if hasattr(block, "val_dim"):  # timm's TinyViT: qkv.view(..., heads, q + k + v)
        return QKVLayout(heads, int(block.key_dim), int(block.key_dim), int(block.val_dim))  # type: ignore[arg-type]
    width = block.qkv.in_features  # type: ignore[union-attr]
    return QKVLayout(1, width, width, width)  # type: ignore[arg-type]
