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
    """The routing of one pass's tokens, in one layer or in L layers in their order.

    Args:
        share: (K,) or (L, K) float, each expert's share of the ``T top`` assignments; no gradient.
        probability: the same shape, mean over tokens of the gate's softmax, with gradient.
        tokens: T, or T of each layer.
    """

    share: Tensor
    probability: Tensor
    tokens: int | tuple[int, ...]


def route(logits: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Routes each token to the ``top`` most likely experts, with probabilities normalised to the sum 1 (GShard).

    Args:
        logits: (T, K) float, the gate's output.
        top: number of experts per token, in [1, K]; exact even with ties.

    Returns:
        gates (T, K) float, 0 for experts that a token is not routed to; probabilities (T, K) float32; chosen (T, top)
        long.
    """
    probability = logits.softmax(dim=-1, dtype=torch.float32)
    largest, chosen = probability.topk(top, dim=-1)
    gates = largest / largest.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probability).scatter(-1, chosen, gates), probability, chosen


def routing_statistics(probability: Tensor, chosen: Tensor) -> Routing:
    """Returns the statistics of one layer's routing."""
    counts = torch.bincount(chosen.flatten(), minlength=probability.shape[-1])
    return Routing(counts.to(probability.dtype) / chosen.numel(), probability.mean(dim=0), len(probability))


class ExpertSwitch:
    """The switch of all layers of a network: turns the experts on or off, and collects the routing of a pass.

    It holds no tensors between two passes, so the network stays copyable.
    """

    def __init__(self) -> None:
        self.on = True
        self.records: list[Routing] | None = None

    @contextmanager
    def during(self, *, on: bool, measure: bool) -> Iterator[list[Routing]]:
        """Inside the block, turns the experts on or off, and collects the layers' routing if ``measure``."""
        previous, records = (self.on, self.records), list[Routing]()
        self.on, self.records = on, records if measure else None
        try:
            yield records
        finally:
            self.on, self.records = previous


def join_layers(records: list[Routing]) -> Routing | None:
    """Joins the layers of one pass; ``None`` if nothing was collected."""
    if not records:
        return None
    share, probability, tokens = zip(*records, strict=True)
    return Routing(torch.stack(share), torch.stack(probability), tokens)


class LocalExperts(nn.Module):
    """``K`` low-rank experts, ``top`` of them for each token: ``y += sum_k g_k(x) U_k D_k x``.

    The gate is linear; its softmax is restricted to the ``top`` most likely experts and normalised to the sum 1. ``U``
    starts at zero, so step 0 equals the network without experts exactly. No token is dropped: all experts are computed
    together as one matrix of rank ``K r``, with a factor of 0 for experts that a token is not routed to. At r = 4 that
    is cheaper than gathering and scattering tokens. No noise is added to the gate.

    Args:
        width: channels of a token.
        switch: shared by all layers of the network; collects the routing of a pass if enabled.
        experts: K.
        rank: rank r of each expert.
        top: number of experts per token.
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
        """Returns ``base`` plus the experts' output for ``x``; both (..., C)."""
        tokens, experts = x.flatten(0, -2), len(self.gate)
        with autocast(x.device.type, False):  # Switch Transformers, section 2.4: only the gate keeps float32
            logits = F.linear(tokens.float(), self.gate)
        hidden = F.linear(tokens, self.down)
        gates, probability, chosen = route(logits, self.top)
        if self.switch.records is not None:
            self.switch.records.append(routing_statistics(probability, chosen))
        weighted = hidden.unflatten(-1, (experts, -1)) * gates.to(hidden.dtype).unsqueeze(-1)
        return torch.addmm(base.flatten(0, -2), weighted.flatten(-2), self.up).view_as(base)


class MlpWithExperts(nn.Module):
    """A frozen MLP with parallel experts; both get the same normalised tokens.

    Args:
        mlp: SAM's ``MLPBlock``, or TinyViT's ``NormMlp``, whose norm is moved in front of both.
        experts: the experts, whose output is added.
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
        """Maps (..., C) to (..., C), without experts if the switch is off."""
        x = self.norm(x)
        output = self.mlp(x)
        return self.experts(x, output) if self.experts.switch.on else output


def apply_experts(encoder: nn.Module, experts: int = 4, rank: int = 4, top: int = 2) -> ExpertSwitch:
    """Adds experts to the MLP of every attention block, in place; call it after ``apply_lora``, which freezes all.

    ViT-B: 12 blocks x (K + 2 K r) x 768 = 331,776 parameters at K = 4, r = 4.

    Args:
        encoder: SAM's ViT or TinyViT: blocks with ``attn`` and ``mlp``.
        experts: K, from 1 to the number of input features of the narrowest MLP.
        rank: rank r of each expert, in the same range.
        top: number of experts per token, in [1, K].

    Returns:
        The switch of all layers.

    Raises:
        Refused: numbers out of range, or an encoder without such a block; all together.
    """
    blocks, counts = attention_blocks(encoder), {"experts": experts, "expert_rank": rank, "top": top}
    layers = [next(m for m in block.mlp.modules() if isinstance(m, nn.Linear)) for block in blocks]  # type: ignore[union-attr]
    narrowest = min((layer.in_features for layer in layers), default=None)
    too_many = type(top) is int and type(experts) is int and top > experts >= 1
    no_block = Problem("L-MoE", type(encoder).__name__, "an encoder whose blocks have attn and mlp")
    require(
        *(whole(f"network_def#{name}", number, least=1, most=narrowest) for name, number in counts.items()),
        [Problem("network_def#top", repr(top), f"at most {experts}, the number of experts")] if too_many else [],
        [] if blocks else [no_block],
    )
    switch = ExpertSwitch()
    for block, first_layer in zip(blocks, layers, strict=True):
        local_experts = LocalExperts(first_layer.in_features, switch, experts=experts, rank=rank, top=top)
        block.mlp = MlpWithExperts(block.mlp, local_experts.to(first_layer.weight.device))  # type: ignore[arg-type]
    return switch


def attention_blocks(encoder: nn.Module) -> list[nn.Module]:
    """Returns the blocks of an encoder with an ``attn`` and an ``mlp``, in the order of their depth."""
    return [block for block in encoder.modules() if hasattr(block, "attn") and hasattr(block, "mlp")]
