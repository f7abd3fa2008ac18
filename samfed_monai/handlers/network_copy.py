"""One copy of a network, allocated once and refreshed in place."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class NetworkCopy:
    """A frozen copy in eval mode of another network, parameters and buffers.

    The copy is allocated at the first :meth:`sync`; later ones write into it, so a round costs no allocation.
    """

    def __init__(self) -> None:
        self._network: nn.Module | None = None

    @property
    def network(self) -> nn.Module:
        """The copy."""
        if self._network is None:
            raise RuntimeError("NetworkCopy: nothing was copied yet; attach the guide to a trainer and run it")
        return self._network

    @torch.no_grad()
    def sync(self, source: nn.Module) -> None:
        """Makes the copy equal to ``source``."""
        if self._network is None:
            self._network = deepcopy(source).requires_grad_(False).eval()
            return
        for mine, theirs in zip(_tensors(self._network), _tensors(source), strict=True):
            mine.copy_(theirs)

    @torch.no_grad()
    def average(self, source: nn.Module, decay: float) -> None:
        """``copy = decay copy + (1 - decay) source``; integer buffers (BatchNorm's counters) are copied."""
        mine, theirs = _tensors(self.network), _tensors(source)
        floats = [i for i, tensor in enumerate(mine) if tensor.is_floating_point()]
        get_ema_multi_avg_fn(decay)([mine[i] for i in floats], [theirs[i] for i in floats], 0)
        for old, new in zip(mine, theirs, strict=True):
            if not old.is_floating_point():
                old.copy_(new)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
