"""An exponential average of the weights that are being fitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages tensors over optimiser steps; what is averaged can stand in for a module's own for a while.

    With few held-out images the Dice of single epochs is mostly noise (it jumped by 0.1 between epochs on 7 images);
    the average moves slowly, so that a lucky epoch cannot be picked.

    Args:
        tensors: what to average, by name; the average starts as a copy of it.
        decay: of the average; it starts lower, ``(1 + step) / (10 + step)``, to forget the beginning.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float = 0.98) -> None:
        self.decay, self.step = decay, 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Moves the average towards ``tensors``; call it after every optimiser step."""
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        self.step += 1
        for name, average in self.tensors.items():
            average.lerp_(tensors[name], 1 - decay)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Inside the block ``module`` has the averaged weights, afterwards its own again."""
        state = module.state_dict()
        own = {name: state[name].clone() for name in self.tensors}
        module.load_state_dict(self.tensors, strict=False)
        try:
            yield
        finally:
            module.load_state_dict(own, strict=False)
