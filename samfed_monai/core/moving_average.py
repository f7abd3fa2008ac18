"""The exponential moving average of weights: of a student (guides), of a teacher's fit, of a server's rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    from torch import Tensor, nn


@torch.no_grad()
def move_average(average: Sequence[Tensor], current: Sequence[Tensor], decay: float) -> None:
    """``average = decay average + (1 - decay) current``, in place; integers (BatchNorm's counters) are copied.

    Args:
        average: what is kept; tensors of any shapes and dtypes.
        current: as many, of the same shapes and dtypes.
        decay: part of the old average that is kept, in [0, 1]; 0 is a copy of ``current``, to the bit.
    """
    floats = [i for i, tensor in enumerate(average) if tensor.is_floating_point()]
    if floats:
        get_ema_multi_avg_fn(decay)([average[i] for i in floats], [current[i] for i in floats], 0)
    for old, new in zip(average, current, strict=True):
        if not old.is_floating_point():
            old.copy_(new)


class WeightAverage:
    """Averages tensors over optimiser steps; a module can use the average for a while.

    With few held-out images the Dice of single epochs is mostly noise (it jumped by 0.1 between epochs on 7 images);
    the average moves slowly, so that a lucky epoch cannot be picked.

    Args:
        tensors: what to average, by name; the average starts as a copy of it.
        decay: of the average; it starts lower, ``(1 + step) / (10 + step)``, to forget the beginning.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float = 0.98) -> None:
        self.decay, self.step = decay, 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Moves the average towards ``tensors``; call it after every optimiser step."""
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        self.step += 1
        move_average(list(self.tensors.values()), [tensors[name] for name in self.tensors], decay)

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
