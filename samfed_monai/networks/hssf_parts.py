"""What HSSF's network is built of: convolution blocks, ASPP, the branch that predicts confidence (docs/method.md)."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

WIDTH = 256
LOW_WIDTH = 48
DILATIONS = (12, 24, 36)

Part = TypeVar("Part", bound=nn.Module)


class Aspp(nn.Module):
    """Five views of (B, in_channels, h, w), joined to (B, 256, h, w) by a 1x1 convolution with dropout 0.1."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.point = block(in_channels, WIDTH, 1)
        self.dilated = nn.ModuleList(block(in_channels, WIDTH, 3, dilation) for dilation in DILATIONS)
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), block(in_channels, WIDTH, 1))
        self.project = nn.Sequential(block((2 + len(DILATIONS)) * WIDTH, WIDTH, 1), nn.Dropout(0.1))

    def forward(self, features: Tensor) -> Tensor:
        views = [self.point(features), *(branch(features) for branch in self.dilated)]
        return self.project(torch.cat([*views, self.pooled(features).expand_as(views[0])], dim=1))


class ConfidenceBranch(nn.Module):
    """From features and logits, one logit a pixel: is the prediction right there.

    Four 3x3 convolutions of 256, each of which sees two maps side by side: features and logits; the first map and the
    features; the first and the second; the second and the third. The second and third are added to the map before
    them, and the channels of the first two are multiplied by one plus their mean over the image.

    Args:
        classes: channels of the logits.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = block(WIDTH + classes, WIDTH, 3)
        self.second = block(2 * WIDTH, WIDTH, 3)
        self.third = block(2 * WIDTH, WIDTH, 3)
        self.last = nn.Sequential(block(2 * WIDTH, WIDTH, 3), nn.Conv2d(WIDTH, 1, 1))

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Confidence of a prediction.

        Args:
            features: (B, 256, h, w), what the classifier sees.
            logits: (B, classes, h, w), what it says.

        Returns:
            (B, 1, h, w).
        """
        first = stressed(self.first(torch.cat([features, logits], dim=1)))
        second = stressed(first + self.second(torch.cat([first, features], dim=1)))
        third = second + self.third(torch.cat([first, second], dim=1))
        return self.last(torch.cat([third, second], dim=1))


def stressed(features: Tensor) -> Tensor:
    """``x (1 + mean(x))``, the mean of (B, C, h, w) over the pixels of each channel."""
    return features * (1 + features.mean(dim=(2, 3), keepdim=True))


def block(inputs: int, outputs: int, kernel: int, dilation: int = 1, *, bias: bool = False) -> nn.Sequential:
    """Convolution that keeps the size, batch norm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 * dilation, dilation=dilation, bias=bias)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def drawn_anew(part: Part) -> Part:
    """A part whose convolutions begin with He's normal numbers (arXiv 1502.01852), scaled by what comes in."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return part
