"""A clear refusal for image sizes that a network cannot take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from samfed_monai.errors import Problem, Problems


@dataclass(frozen=True)
class ImageSizeCheck:
    """Forward pre-hook that refuses images whose height or width the network cannot take.

    Args:
        network: the network's name, for the message.
        multiple: what height and width in pixels must be divisible by.
        least: the smallest height and width in pixels.
    """

    network: str
    multiple: int
    least: int

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        problems = Problems()
        problems.extend(self.problems(height=height, width=width))
        problems.refuse_if_any()

    def problems(self, **sides: int) -> Iterator[Problem]:
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
                    mend=f"set image_size to {' or '.join(map(str, nearest))}",
                )


def require_image_size(network: nn.Module, *, multiple: int, least: int) -> nn.Module:
    """Hooks an :class:`ImageSizeCheck` onto ``network``; names in its state dict stay as they are."""
    network.register_forward_pre_hook(ImageSizeCheck(type(network).__name__, multiple, least))
    return network


def size_problems(network: nn.Module, **sides: int) -> list[Problem]:
    """What ``network`` would refuse of images of these sides, in pixels, before it has seen one."""
    checks = [hook for hook in network._forward_pre_hooks.values() if isinstance(hook, ImageSizeCheck)]
    return [problem for check in checks for problem in check.problems(**sides)]
