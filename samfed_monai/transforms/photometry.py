"""Photometric changes as pure tensor functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def colour_matrix(*, brightness: float = 1.0, saturation: float = 1.0, hue: float = 0.0) -> Tensor:
    """Brightness, saturation and hue as one linear map of RGB, which costs one small matrix product.

    Args:
        brightness: factor of all channels.
        saturation: 0 is grey, 1 leaves as is.
        hue: turn of the colours about the grey axis, in fractions of a full turn.

    Returns:
        (3, 3) float32; grey pixels stay grey, whatever the hue and saturation.
    """
    angle = 2 * math.pi * hue
    third, root = (1 - math.cos(angle)) / 3, math.sin(angle) / math.sqrt(3)
    main = math.cos(angle) + third
    turn = torch.tensor(
        [[main, third - root, third + root], [third + root, main, third - root], [third - root, third + root, main]]
    )
    grey = torch.tensor(_LUMA).expand(3, 3)
    return brightness * (saturation * torch.eye(3) + (1 - saturation) * grey) @ turn


def recolour(image: Tensor, matrix: Tensor, contrast: float = 1.0) -> Tensor:
    """Applies a colour matrix, then contrast about the image's mean luminance; not clamped.

    Args:
        image: (3, H, W) float in [0, 1].
        matrix: (3, 3) from :func:`colour_matrix`.
        contrast: factor of each pixel's distance from the mean luminance.
    """
    mean = float((matrix @ image.mean(dim=(1, 2))) @ torch.tensor(_LUMA))
    flat = torch.addmm(torch.full((1, 1), (1 - contrast) * mean), contrast * matrix, image.reshape(3, -1))
    return flat.view_as(image)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blurs with a Gaussian, reflecting at the border.

    Args:
        image: (C, H, W) float.
        sigma: deviation in pixels; below 0.1 the image is returned as it is. The kernel ends at 2.5 deviations.
    """
    if sigma < 0.1:
        return image
    radius = min(math.ceil(2.5 * sigma), min(image.shape[1:]) - 1)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float32) / sigma) ** 2)
    weights = weights / weights.sum()
    channels = image.shape[0]
    padded = functional.pad(image[None], (radius,) * 4, mode="reflect")
    across = functional.conv2d(padded, weights.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return functional.conv2d(across, weights.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)[0]


def box_fill(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Cutout: fills a box with the image's mean colour; the input is left as it is.

    Args:
        image: (C, H, W) float.
        top, left, height, width: the box in pixels; what lies outside the image is ignored.
    """
    filled = image.clone()
    box = filled[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    box.copy_(image.mean(dim=(1, 2))[:, None, None].expand_as(box))
    return filled
