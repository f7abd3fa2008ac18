"""CutMix on a batch: a box of every image comes from its neighbour, and so does everything that belongs to it."""

from __future__ import annotations

import torch
from torch import Tensor


def cutmix(
    images: Tensor,
    *others: Tensor,
    generator: torch.Generator | None = None,
    prob: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
) -> tuple[Tensor, ...]:
    """Pastes a random box of each image's neighbour in the batch (Yun et al. 2019; UniMatch, arXiv 2208.09910).

    Everything that is compared pixel by pixel must come along: pseudo-labels, weights, guides' probabilities. Masks are
    mixed as they are, so binary ones stay binary. A batch of one has no neighbour and comes back unchanged.

    Args:
        images: (B, C, H, W) of any dtype.
        others: further (B, ..., H, W) tensors that get the same boxes.
        generator: source of randomness on the CPU; ``None`` uses torch's global one.
        prob: chance of a box, for each image on its own.
        area: least and greatest area of the box, as a fraction of the image.

    Returns:
        new tensors in the order given, always a tuple.

    Raises:
        ValueError: batch sizes or spatial sizes differ, or a range is out of order.
    """
    batch, (height, width) = images.shape[0], images.shape[-2:]
    for position, other in enumerate(others):
        if other.shape[0] != batch or other.shape[-2:] != (height, width):
            raise ValueError(
                f"cutmix: tensor {position + 2} has shape {tuple(other.shape)}, "
                f"expected ({batch}, ..., {height}, {width}) like the images; resize it first"
            )
    if not (0 <= prob <= 1 and 0 < area[0] <= area[1] <= 1):
        raise ValueError(f"cutmix: expected prob in [0, 1] and 0 < area[0] <= area[1] <= 1, found {prob} and {area}")
    # Five numbers an image, drawn even where unused, so that boxes do not depend on which images are mixed.
    draws = torch.rand(batch, 5, generator=generator).tolist()
    mixed = tuple(tensor.clone() for tensor in (images, *others))
    if batch < 2:
        return mixed
    for index, (chance, size, stretch, down, right) in enumerate(draws):
        if chance >= prob:
            continue
        side = ((area[0] + (area[1] - area[0]) * size) * height * width) ** 0.5
        ratio = 2.0 ** (stretch - 0.5)
        rows, columns = min(height, max(1, round(side * ratio))), min(width, max(1, round(side / ratio)))
        top, left = round(down * (height - rows)), round(right * (width - columns))
        box = (..., slice(top, top + rows), slice(left, left + columns))
        for target, source in zip(mixed, (images, *others), strict=True):
            target[index][box] = source[index - 1][box]
    return mixed
