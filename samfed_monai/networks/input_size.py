"""Input sizes that a network can take, checked before it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, Refused

LEAST = 32
"""Pixels of a side of the smallest image: below it the coarsest norm of most networks sees a single pixel."""


@dataclass(frozen=True)
class Intake:
    """Sizes of images that a network can take, and of batches that it can train on.

    Args:
        network: the network's name, for the message.
        multiple: what height and width in pixels must be divisible by.
        least_batch: the fewest images of a batch in training: a batch norm over one image of one pixel has no variance.
    """

    network: str
    multiple: int
    least_batch: int = 1

    def of_sides(self, **sides: int) -> Iterator[Problem]:
        """What is wrong with an image of these sides, in pixels by name; the message has the nearest sizes that fit."""
        for side, pixels in sides.items():
            if pixels % self.multiple or pixels < LEAST:
                lower = max(LEAST, pixels // self.multiple * self.multiple)
                nearest = sorted({lower, max(LEAST, -(-pixels // self.multiple) * self.multiple)})
                least = f"at least {LEAST} pixels"
                yield Problem(
                    f"{self.network} -> image {side}",
                    found=f"{pixels} pixels",
                    expected=least if self.multiple == 1 else f"a multiple of {self.multiple}, {least}",
                    hint=f"set image_size to {' or '.join(map(str, nearest))}",
                )

    def of_batches(self, **batches: int) -> Iterator[Problem]:
        """What is wrong with training batches of so many images, by the id that says so."""
        for where, images in batches.items():
            if images < self.least_batch:
                expected = f"at least {self.least_batch}: its batch norm sees one pixel an image"
                hint = f"set {where} to {self.least_batch} or more"
                yield Problem(f"{self.network} -> {where}", found=repr(images), expected=expected, hint=hint)


def require_intake(network: nn.Module, *, multiple: int, least_batch: int = 1) -> nn.Module:
    """Gives ``network`` an :class:`Intake`, which each call of it checks; names in its state dict stay as they are.

    What is exported from it (TorchScript, ``torch.export``, ONNX) does not check: it has no words to refuse with.
    """
    network.intake = Intake(type(network).__name__, multiple, least_batch)  # type: ignore[assignment]
    network.register_forward_pre_hook(_refuse_unfit)
    return network


def _refuse_unfit(network: nn.Module, inputs: tuple[Tensor]) -> None:
    """Forward pre-hook: ``torch.jit.script`` compiles it, too, and takes its annotations and its branch literally."""
    if not torch.jit.is_scripting() and not torch.jit.is_tracing():
        batch, _, height, width = inputs[0].shape
        problems = size_problems(network, height=height, width=width)
        problems += batch_problems(network, batch_size=batch) if network.training else []
        if problems:
            raise Refused(problems)


def size_problems(network: nn.Module, **sides: int) -> list[Problem]:
    """What is wrong with images of these sides, in pixels by name; empty where nothing is, or the network does not say.

    Args:
        network: as the catalogue returns it.
        sides: name to pixels, for instance ``height=96, width=128``.
    """
    intake = getattr(network, "intake", None)
    return list(intake.of_sides(**sides)) if isinstance(intake, Intake) else []


def batch_problems(network: nn.Module, **batches: int) -> list[Problem]:
    """What is wrong with training batches of these sizes, by the id that says them, as in :func:`size_problems`."""
    intake = getattr(network, "intake", None)
    return list(intake.of_batches(**batches)) if isinstance(intake, Intake) else []
