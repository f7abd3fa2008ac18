"""L-MoE: a localised mixture of low-rank experts in parallel to each MLP of an image encoder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samfed_monai.core.errors import Problem
from samfed_monai.core.validators import require, whole
from samfed_monai.networks.inferer import autocast


class Routing(NamedTuple):
    """How the tokens of one pass were routed, in one layer or in L of them, in the order of the layers.

    Args:
        share: (K,) or (L, K) float, part of the ``T top`` assignments that each expert got; no gradient.
        probability: of that shape, mean over tokens of the gate's softmax, with gradient.
        tokens: T, or of each layer.
    """

    share: Tensor
    probability: Tensor
    tokens: int | tuple[int, ...]


def route(logits: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over the experts, then the ``top`` likeliest with their probabilities scaled to the sum 1 (GShard).

    Args:
        logits: (T, K) float, of the gate.
        top: experts a token, in [1, K]; exactly so many, also among equals.

    Returns:
        gates (T, K) float, 0 for experts that a token is not sent to; probabilities (T, K) float32; chosen (T, top)
        long.
    """
    probability = logits.softmax(dim=-1, dtype=torch.float32)
    largest, chosen = probability.topk(top, dim=-1)
    kept = largest / largest.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probability).scatter(-1, chosen, kept), probability, chosen


def routed(probability: Tensor, chosen: Tensor) -> Routing:
    """What is kept of one layer's routing."""
    counts = torch.bincount(chosen.flatten(), minlength=probability.shape[-1])
    return Routing(counts.to(probability.dtype) / chosen.numel(), probability.mean(dim=0), len(probability))


class ExpertSwitch:
    """One for all layers of a network: whether the experts take part, and where a pass files its routing.

    It holds nothing between two passes, so a network that has it stays copyable.
    """

    def __init__(self) -> None:
        self.on = True
        self.records: list[Routing] | None = None

    @contextmanager
    def during(self, *, on: bool, measure: bool) -> Iterator[list[Routing]]:
        """Inside the block the experts take part or not, and the layers file how they routed, if asked to."""
        before, records = (self.on, self.records), list[Routing]()
        self.on, self.records = on, records if measure else None
        try:
            yield records
        finally:
            self.on, self.records = before


def joined(records: list[Routing]) -> Routing | None:
    """The layers of one pass together; ``None`` where nothing was filed."""
    if not records:
        return None
    share, probability, tokens = zip(*records, strict=True)
    return Routing(torch.stack(share), torch.stack(probability), tokens)


class LocalExperts(nn.Module):
    """``K`` low-rank experts, of which each token gets ``top``: ``y += sum_k g_k(x) U_k D_k x``.

    The gate is linear, its softmax is cut to the ``top`` likeliest experts and scaled to the sum 1. ``U`` starts at
    zero, so step 0 equals the network without experts exactly. No token is dropped and none waits for another: all
    experts together are one matrix of rank ``K r``, and what a token is not sent to is multiplied by 0. At r = 4 that
    is cheaper than to gather and scatter tokens. No noise is added to the gate.

    Args:
        width: channels of a token.
        switch: shared by all layers of the network; takes the routing of a pass that asks for it.
        experts: K.
        rank: r of each expert.
        top: experts a token.
    """

    def __init__(self, width: int, switch: ExpertSwitch, *, experts: int = 4, rank: int = 4, top: int = 2) -> None:
        super().__init__()
        self.switch, self.top = switch, top
        self.gate = nn.Parameter(torch.empty(experts, width))
        self.down = nn.Parameter(torch.empty(experts * rank, width))
        self.up = nn.Parameter(torch.zeros(experts * rank, width))
        nn.init.trunc_normal_(self.gate, std=0.02)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        """``base`` plus what the experts make of ``x``; both (..., C)."""
        tokens, experts = x.flatten(0, -2), len(self.gate)
        with autocast(x.device.type, False):  # Switch Transformers, section 2.4: the gate alone keeps float32
            logits = F.linear(tokens.float(), self.gate)
        hidden = F.linear(tokens, self.down)
        gates, probability, chosen = route(logits, self.top)
        if self.switch.records is not None:
            self.switch.records.append(routed(probability, chosen))
        weighted = hidden.unflatten(-1, (experts, -1)) * gates.to(hidden.dtype).unsqueeze(-1)
        return torch.addmm(base.flatten(0, -2), weighted.flatten(-2), self.up).view_as(base)


class MlpWithExperts(nn.Module):
    """A frozen MLP with experts beside it; both see the same normalised tokens.

    Args:
        mlp: SAM's ``MLPBlock``, or TinyViT's ``NormMlp``, whose norm is moved in front of both.
        experts: what is added to it.
    """

    def __init__(self, mlp: nn.Module, experts: LocalExperts) -> None:
        super().__init__()
        norm = getattr(mlp, "norm", None)
        if isinstance(norm, nn.Module):
            self.norm, mlp.norm = norm, nn.Identity()
        else:
            self.norm = nn.Identity()
        self.mlp, self.experts = mlp, experts

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C); without experts where the switch is off."""
        x = self.norm(x)
        y = self.mlp(x)
        return self.experts(x, y) if self.experts.switch.on else y


def apply_experts(encoder: nn.Module, experts: int = 4, rank: int = 4, top: int = 2) -> ExpertSwitch:
    """Puts experts beside the MLP of every attention block, in place; call it after ``apply_lora``, which freezes all.

    ViT-B: 12 blocks x (K + 2 K r) x 768 = 331,776 parameters at K = 4, r = 4.

    Args:
        encoder: SAM's ViT or TinyViT: blocks with ``attn`` and ``mlp``.
        experts: K >= 1.
        rank: r >= 1 of each expert.
        top: experts a token, in [1, K].

    Returns:
        The switch of all layers.

    Raises:
        Refused: numbers out of range, or an encoder without such a block; all at once.
    """
    blocks, numbers = attention_blocks(encoder), {"experts": experts, "expert_rank": rank, "top": top}
    many = type(top) is int and type(experts) is int and top > experts >= 1
    none = Problem("L-MoE", type(encoder).__name__, "an encoder whose blocks have attn and mlp")
    require(
        *(whole(f"network_def#{name}", number, least=1) for name, number in numbers.items()),
        [Problem("network_def#top", repr(top), f"at most {experts}, the number of experts")] if many else [],
        [] if blocks else [none],
    )
    switch = ExpertSwitch()
    for block in blocks:
        first = next(module for module in block.mlp.modules() if isinstance(module, nn.Linear))  # type: ignore[union-attr]
        beside = LocalExperts(first.in_features, switch, experts=experts, rank=rank, top=top)
        block.mlp = MlpWithExperts(block.mlp, beside.to(first.weight.device))  # type: ignore[arg-type]
    return switch


def attention_blocks(encoder: nn.Module) -> list[nn.Module]:
    """Blocks of an encoder that hold an ``attn`` and an ``mlp``, in the order of their depth."""
    return [block for block in encoder.modules() if hasattr(block, "attn") and hasattr(block, "mlp")]
