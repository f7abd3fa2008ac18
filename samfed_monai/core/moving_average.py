"""The exponential moving average of weights: of a student (guides), of a teacher's fit, of a server's rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    from torch import Tensor


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
