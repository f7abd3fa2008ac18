"""Strong augmentation of one public image with its mask: geometry together, colour and blur on the image alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from samfed_monai.networks.sam.geometry import VIEWS, place

# Ranges of design/MEASURED.md's "strong augmentation"; without it the decoder overfits a small public set.
_ROTATION = math.pi / 6  # radians
_ZOOM = 0.25  # log of the largest scale
_SHIFT = 0.1  # of the side
_COLOUR = 0.3  # brightness, contrast, saturation: factor 1 +- this
_TINT = 0.1  # gain of each channel: 1 +- this
_BLUR = (0.3, 2.0)  # probability, largest standard deviation in pixels of the placed image


def augment(image: Tensor, mask: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flip, quarter turn, rotation, zoom and shift of both, then colour and blur of the image.

    Args:
        image: ``(1, 3, H, W)`` float in [0, 1].
        mask: ``(1, 1, H, W)`` float in [0, 1].
        size: side of SAM's square input in pixels; both come back at their place in it, before padding.
        generator: the only source of randomness.

    Returns:
        ``(1, 3, h, w)`` and ``(1, 1, h, w)``, float in [0, 1]; what lies outside the image is mirrored into it.
    """
    views = VIEWS[8]
    view = views[int(torch.randint(len(views), (1,), generator=generator))]
    image, mask = place(view.apply(image), size), place(view.apply(mask), size)
    grid = _random_grid(image, generator)
    image, mask = (
        F.grid_sample(tensor, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        for tensor in (image, mask)
    )
    return _blur(_colour(image, generator), generator), mask


def _uniform(generator: torch.Generator, low: float, high: float, count: int = 1) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _random_grid(image: Tensor, generator: torch.Generator) -> Tensor:
    height, width = image.shape[-2:]
    angle = float(_uniform(generator, -_ROTATION, _ROTATION))
    zoom = math.exp(float(_uniform(generator, -_ZOOM, _ZOOM)))
    shift = _uniform(generator, -2 * _SHIFT, 2 * _SHIFT, 2).tolist()
    cosine, sine = zoom * math.cos(angle), zoom * math.sin(angle)
    # grid_sample's coordinates run from -1 to 1 on either side: the aspect keeps a rotation a rotation
    rows = [[cosine, -sine * height / width, shift[0]], [sine * width / height, cosine, shift[1]]]
    return F.affine_grid(torch.tensor([rows]), list(image.shape), align_corners=False)


def _colour(image: Tensor, generator: torch.Generator) -> Tensor:
    brightness, contrast, saturation = (1 + _uniform(generator, -_COLOUR, _COLOUR, 3)).tolist()
    tint = 1 + _uniform(generator, -_TINT, _TINT, 3)
    image = image * tint.view(1, 3, 1, 1) * brightness
    grey = image.mean(dim=1, keepdim=True)
    image = grey + (image - grey) * saturation
    mean = image.mean()
    return (mean + (image - mean) * contrast).clamp(0, 1)


def _blur(image: Tensor, generator: torch.Generator) -> Tensor:
    chance, sigma = float(_uniform(generator, 0, 1)), float(_uniform(generator, 0.1, _BLUR[1]))
    if chance >= _BLUR[0]:
        return image
    radius = math.ceil(2 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    image = F.conv2d(F.pad(image, (radius, radius, 0, 0), mode="reflect"), kernel, groups=3)
    return F.conv2d(F.pad(image, (0, 0, radius, radius), mode="reflect"), kernel.transpose(-1, -2), groups=3)
