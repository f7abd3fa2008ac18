"""Input sizes that a network supports, checked before it runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, Problems, Refused

LEAST = 32
"""Minimum side of an image in pixels: below it the coarsest norm of most networks gets a single pixel."""


@dataclass(frozen=True)
class InputLimits:
    """Sizes of images that a network supports, and of batches that it can train on.

    Args:
        multiple: divisor of height and width in pixels.
        least_batch: minimum batch size in training: a batch norm over one image of one pixel has no variance.
    """

    multiple: int
    least_batch: int = 1


def limit_inputs(network: nn.Module, *, multiple: int, least_batch: int = 1) -> nn.Module:
    """Gives ``network`` an :class:`InputLimits`, which each call checks; names in its state dict are unchanged.

    Exported models (TorchScript, ``torch.export``, ONNX) do not check: they cannot report the problem.
    """
    network.limits = InputLimits(multiple, least_batch)  # type: ignore[assignment]
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
    """Returns the problems of an image with these sides, with the nearest sizes that fit.

    Args:
        network: a network; one without :class:`InputLimits` has no problems.
        sides: pixels by name, for instance ``height=96, width=128``.
    """
    limits, problems = getattr(network, "limits", None), Problems()
    if not isinstance(limits, InputLimits):
        return []
    for side, pixels in sides.items():
        if pixels % limits.multiple or pixels < LEAST:
            lower = max(LEAST, pixels // limits.multiple * limits.multiple)
            nearest = sorted({lower, max(LEAST, -(-pixels // limits.multiple) * limits.multiple)})
            multiple = f"a multiple of {limits.multiple}, " if limits.multiple > 1 else ""
            expected = f"{multiple}at least {LEAST} pixels"
            hint = f"set image_size to {' or '.join(map(str, nearest))}"
            problems.add(f"{type(network).__name__} -> image {side}", f"{pixels} pixels", expected, hint)
    return problems


def batch_problems(network: nn.Module, **batches: int) -> list[Problem]:
    """Returns the problems of training batches of these sizes, by the id of the setting; see :func:`size_problems`."""
    limits, problems = getattr(network, "limits", None), Problems()
    if not isinstance(limits, InputLimits):
        return []
    for where, images in batches.items():
        if images < limits.least_batch:
            least, why = limits.least_batch, ", as its batch norm sees only one pixel per image"
            expected, hint = f"at least {least}{why if least > 1 else ''}", f"set {where} to {least} or more"
            problems.add(f"{type(network).__name__} -> {where}", repr(images), expected, hint)
    return problems
