"""Low-rank adaptation of an image encoder: query and value (SAMed: Zhang & Liu 2023, arXiv 2304.13785)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from samfed_monai.core.errors import Problem
from samfed_monai.core.validators import require, whole
from samfed_monai.networks.sam.experts import ExpertSwitch, attention_blocks


class CheckpointedForward:
    """A block's forward with gradient checkpointing: it keeps only its input and recomputes the rest for the gradient.

    The recomputation uses the experts' switch of the first computation, whatever passes ran in between, and does not
    update the running statistics of batch norms again.
    """

    def __init__(self, block: nn.Module, switch: ExpertSwitch) -> None:
        self.block, self.switch = block, switch

    def __call__(self, x: Tensor) -> Any:
        forward = partial(type(self.block).forward, self.block)
        if not torch.is_grad_enabled():
            return forward(x)
        on, measure = self.switch.on, self.switch.records is not None

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), self._recomputation(on=on, measure=measure)

        # the blocks have no randomness
        return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    @contextmanager
    def _recomputation(self, *, on: bool, measure: bool) -> Iterator[None]:
        with self.switch.during(on=on, measure=measure), preserved_running_statistics(self.block):
            yield


@contextmanager
def preserved_running_statistics(module: nn.Module) -> Iterator[None]:
    """Inside the block, batch norms in train mode update copies of their running statistics, which are then dropped."""
    # copies: without track_running_stats a norm saves fewer tensors for the gradient, and checkpoint counts them
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.training]
    saved = [(norm, dict(norm.named_buffers(recurse=False))) for norm in norms]
    try:
        for norm, buffers in saved:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, buffers in saved:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def apply_checkpointing(encoder: nn.Module, switch: ExpertSwitch) -> None:
    """Checkpoints every attention block of ``encoder``, in place; names in its state dict are unchanged."""
    for block in attention_blocks(encoder):
        # on the instance: a wrapping module would change the names, and sites with more memory may not checkpoint
        block.forward = CheckpointedForward(block, switch)


class QKVLayout(NamedTuple):
    """Order of the rows of a joint ``qkv`` projection: ``groups`` times (q, k, v) rows.

    SAM's ViT keeps all queries together (one group); TinyViT interleaves q, k and v of each head (a group per head).
    """

    groups: int
    query: int
    key: int
    value: int


class LoRAQueryValue(nn.Module):
    """A frozen ``qkv`` linear layer plus a trainable low-rank update of q and v; k is unchanged.

    ``q += B_q A_q x`` and ``v += B_v A_v x``; A is initialised as in ``nn.Linear``, B with zeros, so step 0 equals the
    frozen layer exactly.

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
        """Maps ``(..., in)`` to ``(..., groups * (q + k + v))``."""
        frozen = self.linear(x)
        low_rank = F.linear(x, torch.cat([self.query_a, self.value_a]))
        # one product added to the frozen layer's: two concatenated products would write the whole output twice more
        return torch.addmm(frozen.flatten(0, -2), low_rank.flatten(0, -2), self._rows().T).view_as(frozen)

    def _rows(self) -> Tensor:
        """Returns B of q and v in the joint projection's row order, ``(groups * (q + k + v), 2 r)``; 0 for k."""
        groups, rank = self.layout.groups, len(self.query_a)
        query = F.pad(self.query_b.unflatten(0, (groups, -1)), (0, rank))
        value = F.pad(self.value_b.unflatten(0, (groups, -1)), (rank, 0))
        key = query.new_zeros(groups, self.layout.key, 2 * rank)
        return torch.cat([query, key, value], dim=1).flatten(0, 1)

    def merged(self) -> nn.Linear:
        """Returns an equivalent linear layer: its weight is the frozen one plus the update."""
        merged = deepcopy(self.linear).requires_grad_(True)
        merged.weight.data.add_(self._rows() @ torch.cat([self.query_a, self.value_a]))
        return merged


def apply_lora(encoder: nn.Module, rank: int = 4, where: str = "teacher -> rank") -> list[nn.Parameter]:
    """Freezes ``encoder`` and wraps the ``qkv`` layer of every attention block, in place.

    ViT-B: 12 blocks x (q, v) x r x (768 + 768) = 147,456 parameters at r = 4.

    Args:
        encoder: SAM's ViT or TinyViT: modules named ``attn`` with a linear ``qkv`` and ``num_heads``.
        rank: rank r of each update, at most the number of input features of the narrowest layer.
        where: the rank's place, for messages.

    Returns:
        The new parameters, the only ones of the encoder that require gradients.

    Raises:
        Refused: a rank that is no positive integer or too large, or an encoder without such a block.
    """
    blocks = [module for name, module in encoder.named_modules() if name.endswith("attn") and hasattr(module, "qkv")]
    no_block = Problem("LoRA", type(encoder).__name__, "an encoder whose attention blocks have a joint qkv")
    narrowest = min((block.qkv.in_features for block in blocks), default=None)
    require(whole(where, rank, least=1, most=narrowest), [] if blocks else [no_block])
    encoder.requires_grad_(False)
    for block in blocks:
        block.qkv = LoRAQueryValue(block.qkv, _layout(block), rank).to(block.qkv.weight.device)
    return [parameter for parameter in encoder.parameters() if parameter.requires_grad]


@torch.no_grad()
def merge_lora(encoder: nn.Module) -> nn.Module:
    """Merges every low-rank update of ``encoder`` into its weight, in place.

    The result has the names and the speed of the encoder before :func:`apply_lora`, and the same output as with the
    updates, up to rounding.
    """
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRAQueryValue):
                setattr(parent, name, child.merged())
    return encoder


def _layout(block: nn.Module) -> QKVLayout:
    heads = int(block.num_heads)  # type: ignore[arg-type]
    if hasattr(block, "val_dim"):  # timm's TinyViT: qkv.view(..., heads, q + k + v)
        return QKVLayout(heads, int(block.key_dim), int(block.key_dim), int(block.val_dim))  # type: ignore[arg-type]
    width = block.qkv.in_features  # type: ignore[union-attr]
    return QKVLayout(1, width, width, width)  # type: ignore[arg-type]
