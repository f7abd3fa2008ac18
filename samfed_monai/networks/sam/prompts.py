"""Boxes around the parts of a mask, as prompts of SAM."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from samfed_monai.networks.sam.geometry import inner_size

LEAST_SHARE = 5e-4
"""Parts smaller than this share of the image are specks: 6 pixels of a quarter-resolution mask at 512 px."""
MOST = 8
"""Of more parts only the largest are boxed: an image with more lesions than that is a mask in pieces."""
MARGIN = 0.05
"""A box is wider than its part by this share of its side, at either end."""


class Components(NamedTuple):
    """Connected parts of a mask.

    Args:
        labels: ``(h, w)`` int64: 0 outside, else the number of the part, specks included.
        numbers: numbers of the parts that have a box, largest part first.
        boxes: ``(N, 4)`` float32: left, top, right, bottom of each, as shares of width and height in [0, 1].
    """

    labels: Tensor
    numbers: list[int]
    boxes: Tensor


def connected_components(mask: Tensor) -> Components:
    """Parts of a ``(h, w)`` bool mask that touch at sides or corners, with the boxes of the largest ones."""
    import numpy as np
    from scipy import ndimage

    height, width = mask.shape
    labels, count = ndimage.label(mask.cpu().numpy(), structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-areas, kind="stable")[:MOST] + 1
    numbers = [int(number) for number in order if areas[number - 1] >= LEAST_SHARE * height * width]
    slices = ndimage.find_objects(labels)
    boxes = [_box(slices[number - 1], mask.shape) for number in numbers]
    return Components(torch.from_numpy(labels).long(), numbers, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))


def _box(part: tuple[slice, slice], shape: torch.Size) -> list[float]:
    (top, bottom), (left, right) = (_side(found, length) for found, length in zip(part, shape, strict=True))
    return [left, top, right, bottom]


def _side(part: slice, length: int) -> tuple[float, float]:
    margin = MARGIN * (part.stop - part.start)
    return max(0.0, part.start - margin) / length, min(float(length), part.stop + margin) / length


def prompts(boxes: Tensor, height: int, width: int, size: int) -> Tensor:
    """Boxes as shares of an image to SAM's prompts: pixel indices in its input, ``(N, 4)``.

    SAM adds half a pixel to an index to get a position, so half a pixel is taken off a position to get an index.
    """
    inner = inner_size(height, width, size)
    return boxes * boxes.new_tensor([inner[1], inner[0], inner[1], inner[0]]) - 0.5
