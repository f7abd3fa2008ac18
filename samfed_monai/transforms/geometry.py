"""Affine geometry of views as pure tensor functions: one matrix, any number of images and masks."""

from __future__ import annotations

import math
from collections.abc import Container, Hashable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

# From here on a bilinear sample skips pixels, so the image is shrunk with anti-aliasing first.
_SHRINK = 1.5


def output_to_input(
    size: tuple[int, int],
    *,
    flip: bool = False,
    quarter_turns: int = 0,
    degrees: float = 0.0,
    zoom: float = 1.0,
    shear: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """The matrix that says where in the input each pixel of a view comes from.

    Args:
        size: (H, W) of the view in pixels; angles are true in it, whatever its aspect.
        flip: mirrors left and right.
        quarter_turns: counter-clockwise turns by 90 degrees.
        degrees: further counter-clockwise turn.
        zoom: above 1 magnifies.
        shear: horizontal shear in degrees.
        shift: the picture's (down, right) movement as a fraction of (H, W).

    Returns:
        (2, 3) float32, as ``torch.nn.functional.affine_grid`` takes it with ``align_corners=False``.
    """
    height, width = size
    angle = math.radians(degrees)
    turn = _rotation(angle) @ _quarter(quarter_turns % 4)
    lean = torch.tensor([[1.0, math.tan(math.radians(shear))], [0.0, 1.0]], dtype=torch.float64)
    mirror = torch.diag(torch.tensor([-1.0 if flip else 1.0, 1.0], dtype=torch.float64))
    pixels = torch.diag(torch.tensor([float(width), float(height)], dtype=torch.float64))
    linear = torch.linalg.inv(pixels) @ (mirror @ lean @ turn / zoom) @ pixels
    moved = linear @ torch.tensor([[-2.0 * shift[1]], [-2.0 * shift[0]]], dtype=torch.float64)
    return torch.cat([linear, moved], dim=1).float()


def _rotation(angle: float) -> Tensor:
    cosine, sine = math.cos(angle), math.sin(angle)
    return torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)


def _quarter(turns: int) -> Tensor:
    """Rotation by whole quarter turns, without rounding, so that pixels land exactly on pixels."""
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns]
    return torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)


def warp(tensor: Tensor, matrix: Tensor, size: tuple[int, int], *, nearest: bool = False) -> Tensor:
    """Samples one view of an image or mask; beyond the border the picture is reflected.

    Args:
        tensor: (C, H, W) float.
        matrix: (2, 3) from :func:`output_to_input`.
        size: (H, W) of the view.
        nearest: takes the nearest pixel (labels) rather than interpolating bilinearly (images, probabilities).

    Returns:
        (C, *size) float; with ``nearest`` only values that were there before, else within their range.
    """
    return warp_together({"": tensor}, matrix, size, nearest=("",) if nearest else ())[""]


def warp_together(
    tensors: Mapping[Hashable, Tensor], matrix: Tensor, size: tuple[int, int], *, nearest: Container[Hashable] = ()
) -> dict[Hashable, Tensor]:
    """:func:`warp` of several tensors of the same extent, whatever their resolution, under one matrix.

    Those of one resolution are sampled at once, for that is where the time goes; the numbers are the same.

    Args:
        tensors: keys to (C, H, W) float, of one type and on one device.
        matrix, size: as in :func:`warp`.
        nearest: keys whose values are the nearest pixel's.

    Returns:
        The same keys to (C, *size) float.
    """
    alike: dict[tuple[bool, torch.Size], list[Hashable]] = {}
    for key, tensor in tensors.items():
        alike.setdefault((key in nearest, tensor.shape[1:]), []).append(key)
    grid, views = _grid(matrix, size)[None], dict(tensors)
    for (exact, (height, width)), keys in alike.items():
        batch = torch.cat([tensors[key] for key in keys])[None]
        if not exact and min(height / size[0], width / size[1]) > _SHRINK:
            batch = functional.interpolate(batch, size=size, mode="bilinear", antialias=True, align_corners=False)
        mode, places = "nearest" if exact else "bilinear", grid.to(batch)
        view = functional.grid_sample(batch, places, mode=mode, padding_mode="reflection", align_corners=False)[0]
        views.update(zip(keys, view.split([len(tensors[key]) for key in keys]), strict=True))
    return views


def _grid(matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """``affine_grid`` of one matrix, (H, W, 2), written as two outer sums because that is several times faster."""
    down, right = ((torch.arange(length, dtype=torch.float32) * 2 + 1) / length - 1 for length in size)
    columns = matrix[:, :1] * right + matrix[:, 2:]  # (2, W)
    rows = matrix[:, 1:2] * down  # (2, H)
    return torch.stack([columns[0] + rows[0, :, None], columns[1] + rows[1, :, None]], dim=-1)
