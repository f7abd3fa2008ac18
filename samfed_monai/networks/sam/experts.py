"""L-MoE: a localised mixture of low-rank experts in parallel to each MLP of an image encoder (docs/pfedsam.md)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samfed_monai.errors import Problems
from samfed_monai.networks.autocast import autocast
from samfed_monai.networks.sam.routing import ExpertSwitch, route, routed


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
        experts: what stands beside it.
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
    problems = Problems()
    for name, value in (("experts", experts), ("expert_rank", rank), ("top", top)):
        if type(value) is not int or value < 1:
            problems.add(f"network_def#{name}", found=repr(value), expected="an integer >= 1")
    if type(top) is int and type(experts) is int and top > experts >= 1:
        problems.add("network_def#top", found=repr(top), expected=f"at most {experts}, the number of experts")
    blocks = attention_blocks(encoder)
    if not blocks:
        problems.add("L-MoE", found=type(encoder).__name__, expected="an encoder whose blocks have attn and mlp")
    problems.refuse_if_any()
    switch = ExpertSwitch()
    for block in blocks:
        first = next(module for module in block.mlp.modules() if isinstance(module, nn.Linear))  # type: ignore[union-attr]
        beside = LocalExperts(first.in_features, switch, experts=experts, rank=rank, top=top)
        block.mlp = MlpWithExperts(block.mlp, beside.to(first.weight.device))  # type: ignore[arg-type]
    return switch


def attention_blocks(encoder: nn.Module) -> list[nn.Module]:
    """Blocks of an encoder that hold an ``attn`` and an ``mlp``, in the order of their depth."""
    return [block for block in encoder.modules() if hasattr(block, "attn") and hasattr(block, "mlp")]
