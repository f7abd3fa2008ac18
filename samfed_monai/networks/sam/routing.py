"""Which experts a token is sent to, and what a pass through a mixture leaves to be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Routed(NamedTuple):
    """How one layer routed the tokens of one pass.

    Args:
        share: (K,) float, part of the ``T top`` assignments that each expert got; no gradient.
        probability: (K,) float, mean over tokens of the gate's softmax, with gradient.
        tokens: T.
    """

    share: Tensor
    probability: Tensor
    tokens: int


@dataclass(frozen=True)
class Routing:
    """How all layers of one pass routed, in the order of the layers.

    Args:
        share: (L, K) float, see :class:`Routed`.
        probability: (L, K) float, with gradient.
        tokens: (L,) tokens of each layer.
    """

    share: Tensor
    probability: Tensor
    tokens: tuple[int, ...]


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


def routed(probability: Tensor, chosen: Tensor) -> Routed:
    """What is kept of one layer's routing."""
    counts = torch.bincount(chosen.flatten(), minlength=probability.shape[-1])
    return Routed(counts.to(probability.dtype) / chosen.numel(), probability.mean(dim=0), len(probability))


class ExpertSwitch:
    """One for all layers of a network: whether the experts take part, and where a pass files its routing.

    It holds nothing between two passes, so a network that has it stays copyable.
    """

    def __init__(self) -> None:
        self.on = True
        self.records: list[Routed] | None = None

    @contextmanager
    def during(self, *, on: bool, measure: bool) -> Iterator[list[Routed]]:
        """Inside the block the experts take part or not, and the layers file how they routed, if asked to."""
        before, records = (self.on, self.records), list[Routed]()
        self.on, self.records = on, records if measure else None
        try:
            yield records
        finally:
            self.on, self.records = before


def joined(records: list[Routed]) -> Routing | None:
    """The layers of one pass together; ``None`` where nothing was filed."""
    if not records:
        return None
    share, probability, tokens = zip(*records, strict=True)
    return Routing(torch.stack(share), torch.stack(probability), tokens)
