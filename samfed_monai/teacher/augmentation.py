"""Strong augmentation of one public image with its mask: geometry together, colour and blur on the image alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from samfed_monai.core.errors import Problems
from samfed_monai.networks.sam.geometry import VIEWS, place


@dataclass(frozen=True)
class Augmentation:
    """How far a public image may be changed; the defaults are those that suit 66 skin images.

    A public set that shows its lesions smaller, or in other colours, than the hospitals' images do needs wider ranges:
    what the teacher never saw in training it will not find there.

    Args:
        rotation: largest angle, degrees, either way; quarter turns and mirrors come on top.
        zoom_in: largest magnification, >= 1.
        zoom_out: largest reduction, >= 1; what lies outside the image is mirrored into it.
        shift: largest displacement, part of the side.
        colour: brightness, contrast and saturation are multiplied by 1 +- this.
        tint: gain of each channel, 1 +- this.
        gamma: largest exponent of the intensities, >= 1 (its inverse is the smallest).
        blur: probability of a blur.
        blur_sigma: its largest standard deviation, pixels of SAM's input.

    Raises:
        Refused: a number out of its range; all of them at once.

    Example::

        "augmentation": {"_target_": "samfed_monai.teacher.Augmentation", "zoom_in": 2.0, "tint": 0.25}
    """

    rotation: float = 30.0
    zoom_in: float = math.exp(0.25)
    zoom_out: float = math.exp(0.25)
    shift: float = 0.1
    colour: float = 0.3
    tint: float = 0.1
    gamma: float = 1.0
    blur: float = 0.3
    blur_sigma: float = 2.0

    def __post_init__(self) -> None:
        problems = Problems()
        ranges: dict[str, tuple[float, float]] = {
            "rotation": (0, 180),
            "shift": (0, 0.5),
            "colour": (0, 0.9),
            "tint": (0, 0.9),
            "blur": (0, 1),
        }
        ranges |= {"zoom_in": (1, 8), "zoom_out": (1, 8), "gamma": (1, 4), "blur_sigma": (0.1, 20)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value <= high:
                problems.add(f"augmentation#{name}", found=repr(value), expected=f"a number from {low} to {high}")
        problems.refuse_if_any()


def augment(
    image: Tensor, mask: Tensor, size: int, generator: torch.Generator, ranges: Augmentation | None = None
) -> tuple[Tensor, Tensor]:
    """Flip, quarter turn, rotation, zoom and shift of both, then colour and blur of the image.

    Args:
        image: ``(1, 3, H, W)`` float in [0, 1].
        mask: ``(1, 1, H, W)`` float in [0, 1].
        size: side of SAM's square input in pixels; both come back at their place in it, before padding.
        generator: the only source of randomness.
        ranges: how far each change may go; ``None`` is the defaults.

    Returns:
        ``(1, 3, h, w)`` and ``(1, 1, h, w)``, float in [0, 1]; what lies outside the image is mirrored into it.
    """
    ranges = ranges or Augmentation()
    views = VIEWS[8]
    view = views[int(torch.randint(len(views), (1,), generator=generator))]
    image, mask = place(view.apply(image), size), place(view.apply(mask), size)
    grid = _random_grid(image, generator, ranges)
    image, mask = (
        F.grid_sample(tensor, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        for tensor in (image, mask)
    )
    return _blur(_colour(image, generator, ranges), generator, ranges), mask


def _uniform(generator: torch.Generator, low: float, high: float, count: int = 1) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _random_grid(image: Tensor, generator: torch.Generator, ranges: Augmentation) -> Tensor:
    height, width = image.shape[-2:]
    largest = math.radians(ranges.rotation)
    angle = float(_uniform(generator, -largest, largest))
    zoom = math.exp(float(_uniform(generator, -math.log(ranges.zoom_in), math.log(ranges.zoom_out))))
    shift = _uniform(generator, -2 * ranges.shift, 2 * ranges.shift, 2).tolist()
    cosine, sine = zoom * math.cos(angle), zoom * math.sin(angle)
    # grid_sample's coordinates run from -1 to 1 on either side: the aspect keeps a rotation a rotation
    rows = [[cosine, -sine * height / width, shift[0]], [sine * width / height, cosine, shift[1]]]
    return F.affine_grid(torch.tensor([rows]), list(image.shape), align_corners=False)


def _colour(image: Tensor, generator: torch.Generator, ranges: Augmentation) -> Tensor:
    brightness, contrast, saturation = (1 + _uniform(generator, -ranges.colour, ranges.colour, 3)).tolist()
    tint = 1 + _uniform(generator, -ranges.tint, ranges.tint, 3)
    image = image * tint.view(1, 3, 1, 1) * brightness
    grey = image.mean(dim=1, keepdim=True)
    image = grey + (image - grey) * saturation
    mean = image.mean()
    image = (mean + (image - mean) * contrast).clamp(0, 1)
    if ranges.gamma == 1:
        return image
    return image ** math.exp(float(_uniform(generator, -math.log(ranges.gamma), math.log(ranges.gamma))))


def _blur(image: Tensor, generator: torch.Generator, ranges: Augmentation) -> Tensor:
    chance, sigma = float(_uniform(generator, 0, 1)), float(_uniform(generator, 0.1, ranges.blur_sigma))
    if chance >= ranges.blur:
        return image
    radius = math.ceil(2 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    image = F.conv2d(F.pad(image, (radius, radius, 0, 0), mode="reflect"), kernel, groups=3)
    return F.conv2d(F.pad(image, (0, 0, radius, radius), mode="reflect"), kernel.transpose(-1, -2), groups=3)
