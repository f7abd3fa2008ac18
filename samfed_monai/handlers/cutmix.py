"""CutMix over a batch: boxes of one image pasted into another (Yun et al. 2019, as in UniMatch 2208.09910)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def draw_boxes(images: Tensor, probability: float) -> Tensor | None:
    """Where each image shows its neighbour instead of itself.

    A box covers 2 to 40 % of the image, with an aspect between 0.3 and 1 / 0.3 (UniMatch's ranges). Drawn from torch's
    global generator, which :class:`SeedHandler` seeds.

    Args:
        images: (B, K, H, W).
        probability: how likely an image gets a box.

    Returns:
        (B, 1, H, W) bool, or ``None`` when there is nothing to mix.
    """
    batch, height, width = images.shape[0], *images.shape[2:]
    if probability <= 0 or batch < 2:
        return None
    draws = torch.rand(batch, 5).tolist()
    mask = torch.zeros(batch, 1, height, width, dtype=torch.bool)
    for index, (chance, size, aspect, top, left) in enumerate(draws):
        if chance >= probability:
            continue
        area = (0.02 + 0.38 * size) * height * width
        ratio = math.exp((2 * aspect - 1) * math.log(1 / 0.3))
        rows = min(height, round(math.sqrt(area * ratio)))
        columns = min(width, round(math.sqrt(area / ratio)))
        y, x = int(top * (height - rows + 1)), int(left * (width - columns + 1))
        mask[index, :, y : y + rows, x : x + columns] = True
    return mask.to(images.device)


def mix(values: Tensor, boxes: Tensor | None) -> Tensor:
    """Shows the batch's next image inside the boxes.

    Args:
        values: (B, K, H, W), images or probabilities.
        boxes: (B, 1, H, W) bool of :func:`draw_boxes`; ``None`` changes nothing.
    """
    return values if boxes is None else torch.where(boxes, values.roll(1, dims=0), values)
