"""A clear refusal for image sizes that a network cannot take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from samfed_monai.errors import Problems


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
        for side, pixels in (("height", height), ("width", width)):
            if pixels % self.multiple or pixels < self.least:
                lower = max(self.least, pixels // self.multiple * self.multiple)
                nearest = sorted({lower, max(self.least, -(-pixels // self.multiple) * self.multiple)})
                least = f"at least {self.least} pixels"
                problems.add(
                    f"{self.network} -> image {side}",
                    found=f"{pixels} pixels",
                    expected=least if self.multiple == 1 else f"a multiple of {self.multiple}, {least}",
                    mend=f"set image_size to {' or '.join(map(str, nearest))}",
                )
        problems.refuse_if_any()


def require_image_size(network: nn.Module, *, multiple: int, least: int) -> nn.Module:
    """Hooks an :class:`ImageSizeCheck` onto ``network``; names in its state dict stay as they are."""
    network.register_forward_pre_hook(ImageSizeCheck(type(network).__name__, multiple, least))
    return network
