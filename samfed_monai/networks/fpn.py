"""A light feature pyramid on top of a pretrained encoder (Lin et al. 2017, arXiv 1612.03144)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from typing_extensions import Self

_GROUPS = 8


class PyramidEncoder(nn.Module):
    """An encoder whose batch norms keep the statistics that they came with: a few images a step would spoil them."""

    def train(self, mode: bool = True) -> Self:
        """Train mode for all but the batch norms."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class FPNDecoder(nn.Module):
    """Features of several strides to one map at the finest of them.

    Each level is brought to ``width`` channels and added to the coarser ones, enlarged; a 3 x 3 convolution smooths
    the sum. It normalises by groups (Wu and He 2018), not by batch: an image's prediction then depends on no other
    image, and a federation averages no running statistics of unlike hospitals.

    Args:
        channels: of the levels, from the finest to the coarsest.
        width: channels inside; a multiple of 8.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 96) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(each, width, 1) for each in channels)
        smooth = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.smooth = nn.Sequential(smooth, nn.GroupNorm(_GROUPS, width), nn.SiLU())

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features ``(B, channels[i], h_i, w_i)`` to ``(B, width, h_0, w_0)``."""
        *finer, coarse = (lateral(each) for lateral, each in zip(self.lateral, features, strict=True))
        for level in reversed(finer):
            coarse = level + F.interpolate(coarse, level.shape[-2:], mode="bilinear", align_corners=False)
        smoothed: Tensor = self.smooth(coarse)
        return smoothed
