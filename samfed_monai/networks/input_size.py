"""Input sizes that a network can take, checked before it runs; and where its last features are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, Refused


@dataclass(frozen=True)
class Intake:
    """Sizes of images that a network can take, and of batches that it can train on.

    Args:
        network: the network's name, for the message.
        multiple: what height and width in pixels must be divisible by.
        least: the smallest height and width in pixels.
        least_batch: the fewest images of a batch in training: a batch norm over one image of one pixel has no variance.
        best: what height and width had better be divisible by; other sizes work and are padded inside.
    """

    network: str
    multiple: int
    least: int
    least_batch: int = 1
    best: int = 1

    def of_sides(self, **sides: int) -> Iterator[Problem]:
        """What is wrong with an image of these sides, in pixels by name; the message has the nearest sizes that fit."""
        for side, pixels in sides.items():
            if pixels % self.multiple or pixels < self.least:
                lower = max(self.least, pixels // self.multiple * self.multiple)
                nearest = sorted({lower, max(self.least, -(-pixels // self.multiple) * self.multiple)})
                least = f"at least {self.least} pixels"
                yield Problem(
                    f"{self.network} -> image {side}",
                    found=f"{pixels} pixels",
                    expected=least if self.multiple == 1 else f"a multiple of {self.multiple}, {least}",
                    hint=f"set image_size to {' or '.join(map(str, nearest))}",
                )

    def advice(self, pixels: int) -> str:
        """What to know of images of this side, in pixels; empty where there is nothing to say."""
        if pixels % self.best == 0:
            return ""
        fitting = sorted({max(1, pixels // self.best) * self.best, -(-pixels // self.best) * self.best})
        fit = " or ".join(map(str, fitting))
        return f"image_size {pixels} pads the windows of {self.network}, which costs time; {fit} px fit exactly"

    def of_batches(self, **batches: int) -> Iterator[Problem]:
        """What is wrong with training batches of so many images, by the id that says so."""
        for where, images in batches.items():
            if images < self.least_batch:
                expected = f"at least {self.least_batch}: its batch norm sees one pixel an image"
                hint = f"set {where} to {self.least_batch} or more"
                yield Problem(f"{self.network} -> {where}", found=repr(images), expected=expected, hint=hint)


def require_intake(network: nn.Module, *, multiple: int, least: int, least_batch: int = 1, best: int = 1) -> nn.Module:
    """Gives ``network`` an :class:`Intake`, which each call of it checks; names in its state dict stay as they are.

    What is exported from it (TorchScript, ``torch.export``, ONNX) does not check: it has no words to refuse with.
    """
    network.intake = Intake(type(network).__name__, multiple, least, least_batch, best)  # type: ignore[assignment]
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


def size_advice(network: nn.Module, pixels: int) -> list[str]:
    """Advice on images of this side for ``network``, which takes them all the same."""
    return [text for intake in _intakes(network) if (text := intake.advice(pixels))]


def size_problems(network: nn.Module, **sides: int) -> list[Problem]:
    """What ``network`` would refuse of images of these sides, in pixels, before it has seen one."""
    return [problem for intake in _intakes(network) for problem in intake.of_sides(**sides)]


def batch_problems(network: nn.Module, **batches: int) -> list[Problem]:
    """What ``network`` would refuse of training batches of so many images, before it has seen one."""
    return [problem for intake in _intakes(network) for problem in intake.of_batches(**batches)]


def _intakes(network: nn.Module) -> list[Intake]:
    intake = getattr(network, "intake", None)
    return [intake] if isinstance(intake, Intake) else []


#: Names of the last module before the logits, by kind of network; its input are the features.
HEADS = ("segmentation_head", "final_conv", "head")


def head_of(network: nn.Module) -> nn.Module:
    """The module that makes logits of features.

    Raises:
        Refused: a network without one of :data:`HEADS`.
    """
    for name in HEADS:
        head = getattr(network, name, None)
        if isinstance(head, nn.Module):
            return head
    expected = f"a network with one of {list(HEADS)}"
    hint = "use a network of the catalogue, or name its head like one of these"
    raise Refused([Problem("network", found=type(network).__name__, expected=expected, hint=hint)])


def feature_width(network: nn.Module) -> int:
    """Channels of the features: inputs of the head's first convolution."""
    for module in head_of(network).modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            return int(module.in_channels)
    raise Refused([Problem("network", found="a head without a convolution", expected="one")])
