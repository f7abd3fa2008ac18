"""Gradient checkpointing of an encoder's blocks: less memory, one more forward pass of the encoder in a step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samfed_monai.networks.sam.experts import attention_blocks
from samfed_monai.networks.sam.routing import ExpertSwitch


class CheckpointedForward:
    """A block's forward that keeps its input alone and computes the rest again when the gradient asks for it.

    The second computation sees the experts as they were at the first one, whatever other passes ran in between.
    """

    def __init__(self, block: nn.Module, switch: ExpertSwitch) -> None:
        self.block, self.switch = block, switch

    def __call__(self, x: Tensor) -> Any:
        forward = partial(type(self.block).forward, self.block)
        if not torch.is_grad_enabled():
            return forward(x)
        on, measure = self.switch.on, self.switch.records is not None

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), self.switch.during(on=on, measure=measure)

        # nothing in the blocks is random
        return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def apply_checkpointing(encoder: nn.Module, switch: ExpertSwitch) -> None:
    """Checkpoints every attention block of ``encoder``, in place; names in its state dict stay as they are."""
    for block in attention_blocks(encoder):
        # on the instance: a wrapping module would change the names, and sites may differ in what memory they have
        block.forward = CheckpointedForward(block, switch)
