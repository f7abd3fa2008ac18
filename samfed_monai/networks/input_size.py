"""Input sizes that a network supports, checked before it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, Refused

LEAST = 32
"""Minimum side of an image in pixels: below it the coarsest norm of most networks gets a single pixel."""


@dataclass(frozen=True)
class InputLimits:
    """Sizes of images that a network supports, and of batches that it can train on.

    Args:
        network: the network's name, for the message.
        multiple: divisor of height and width in pixels.
        least_batch: minimum batch size in training: a batch norm over one image of one pixel has no variance.
    """

    network: str
    multiple: int
    least_batch: int = 1

    def size_problems(self, **sides: int) -> Iterator[Problem]:
        """Yields the problems of an image with these sides, in pixels by name, with the nearest sizes that fit."""
        for side, pixels in sides.items():
            if pixels % self.multiple or pixels < LEAST:
                lower = max(LEAST, pixels // self.multiple * self.multiple)
                nearest = sorted({lower, max(LEAST, -(-pixels // self.multiple) * self.multiple)})
                multiple = f"a multiple of {self.multiple}, " if self.multiple > 1 else ""
                hint = f"set image_size to {' or '.join(map(str, nearest))}"
                expected = f"{multiple}at least {LEAST} pixels"
                yield Problem(f"{self.network} -> image {side}", f"{pixels} pixels", expected, hint)

    def batch_problems(self, **batches: int) -> Iterator[Problem]:
        """Yields the problems of training batches of these sizes, by the id of the setting."""
        for where, images in batches.items():
            if images < self.least_batch:
                expected = f"at least {self.least_batch}, as its batch norm sees only one pixel per image"
                hint = f"set {where} to {self.least_batch} or more"
                yield Problem(f"{self.network} -> {where}", found=repr(images), expected=expected, hint=hint)


def limit_inputs(network: nn.Module, *, multiple: int, least_batch: int = 1) -> nn.Module:
    """Gives ``network`` an :class:`InputLimits`, which each call checks; names in its state dict are unchanged.

    Exported models (TorchScript, ``torch.export``, ONNX) do not check: they cannot report the problem.
    """
    network.limits = InputLimits(type(network).__name__, multiple, least_batch)  # type: ignore[assignment]
    network.register_forward_pre_hook(_require_supported)
    return network


def _require_supported(network: nn.Module, inputs: tuple[Tensor]) -> None:
    """Forward pre-hook; ``torch.jit.script`` compiles it as well, and depends on its annotations and its branch."""
    if not torch.jit.is_scripting() and not torch.jit.is_tracing():
        batch, _, height, width = inputs[0].shape
        problems = size_problems(network, height=height, width=width)
        problems += batch_problems(network, batch_size=batch) if network.training else []
        if problems:
            raise Refused(problems)


def size_problems(network: nn.Module, **sides: int) -> list[Problem]:
    """Returns the problems of images with these sides; none for a network without an :class:`InputLimits`.

    Args:
        network: a network of the catalogue.
        sides: pixels by name, for instance ``height=96, width=128``.
    """
    limits = getattr(network, "limits", None)
    return list(limits.size_problems(**sides)) if isinstance(limits, InputLimits) else []


def batch_problems(network: nn.Module, **batches: int) -> list[Problem]:
    """Returns the problems of training batches of these sizes, by the id of the setting; see :func:`size_problems`."""
    limits = getattr(network, "limits", None)
    return list(limits.batch_problems(**batches)) if isinstance(limits, InputLimits) else []
