"""Gradient checkpointing of an encoder's blocks: less memory, one more forward pass of the encoder in a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from samfed_monai.networks.sam.experts import attention_blocks
from samfed_monai.networks.sam.routing import ExpertSwitch


class CheckpointedForward:
    """A block's forward that keeps its input alone and computes the rest again when the gradient asks for it.

    The second computation sees the experts as they were at the first one, whatever other passes ran in between, and
    does not move the running statistics of batch norms a second time.
    """

    def __init__(self, block: nn.Module, switch: ExpertSwitch) -> None:
        self.block, self.switch = block, switch

    def __call__(self, x: Tensor) -> Any:
        forward = partial(type(self.block).forward, self.block)
        if not torch.is_grad_enabled():
            return forward(x)
        on, measure = self.switch.on, self.switch.records is not None

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), self._again(on=on, measure=measure)

        # nothing in the blocks is random
        return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    @contextmanager
    def _again(self, *, on: bool, measure: bool) -> Iterator[None]:
        with self.switch.during(on=on, measure=measure), running_statistics_kept(self.block):
            yield


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside the block batch norms in train mode move copies of their running statistics, which are then dropped."""
    # copies: without track_running_stats a norm saves fewer tensors for the gradient, and checkpoint counts them
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.training]
    kept = [(norm, dict(norm.named_buffers(recurse=False))) for norm in norms]
    try:
        for norm, buffers in kept:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, buffers in kept:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def apply_checkpointing(encoder: nn.Module, switch: ExpertSwitch) -> None:
    """Checkpoints every attention block of ``encoder``, in place; names in its state dict stay as they are."""
    for block in attention_blocks(encoder):
        # on the instance: a wrapping module would change the names, and sites may differ in what memory they have
        block.forward = CheckpointedForward(block, switch)
