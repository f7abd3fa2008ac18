"""The weak view: one random affine map of image, label and soft mask."""

from __future__ import annotations

import math
from collections.abc import Container, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor
from torch.nn import functional

from samfed_monai.core.errors import Problems
from samfed_monai.core.text import grouped
from samfed_monai.core.validators import in_range, whole
from samfed_monai.transforms.loading import plain

# From this factor on bilinear sampling skips pixels, so the image is shrunk with anti-aliasing first.
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
    """Returns the matrix that maps pixels of a view to positions in the input.

    Args:
        size: (H, W) of the view in pixels; angles are correct for any aspect ratio.
        flip: whether to mirror left and right.
        quarter_turns: counter-clockwise turns by 90 degrees.
        degrees: further counter-clockwise turn.
        zoom: above 1 magnifies.
        shear: horizontal shear in degrees.
        shift: the image's (down, right) movement as a fraction of (H, W).

    Returns:
        (2, 3) float32, for ``torch.nn.functional.affine_grid`` with ``align_corners=False``.
    """
    height, width = size
    angle = math.radians(degrees)
    # quarter turns without rounding errors, so that pixels map exactly to pixels
    quarter = _rotation(*((1, 0), (0, 1), (-1, 0), (0, -1))[quarter_turns % 4])
    turn = _rotation(math.cos(angle), math.sin(angle)) @ quarter
    shearing = torch.tensor([[1.0, math.tan(math.radians(shear))], [0.0, 1.0]], dtype=torch.float64)
    mirror = torch.diag(torch.tensor([-1.0 if flip else 1.0, 1.0], dtype=torch.float64))
    pixels = torch.diag(torch.tensor([float(width), float(height)], dtype=torch.float64))
    linear = torch.linalg.inv(pixels) @ (mirror @ shearing @ turn / zoom) @ pixels
    translation = linear @ torch.tensor([[-2.0 * shift[1]], [-2.0 * shift[0]]], dtype=torch.float64)
    return torch.cat([linear, translation], dim=1).float()


def _rotation(cosine: float, sine: float) -> Tensor:
    return torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)


def warp(
    tensors: Mapping[Hashable, Tensor], matrix: Tensor, size: tuple[int, int], *, nearest: Container[Hashable] = ()
) -> dict[Hashable, Tensor]:
    """Samples one view of images and masks of the same extent, reflecting at the border.

    Tensors of one resolution are sampled together, which is faster and gives the same numbers.

    Args:
        tensors: keys to (C, H, W) float, of one type and on one device, at any resolution.
        matrix: (2, 3) from :func:`output_to_input`.
        size: (H, W) of the view.
        nearest: keys to sample at the nearest pixel (labels); others are interpolated bilinearly.

    Returns:
        The same keys to (C, *size) float, within the range of the input.
    """
    by_resolution = grouped(((key in nearest, tensor.shape[1:]), key) for key, tensor in tensors.items())
    grid, views = _grid(matrix, size)[None], dict(tensors)
    for (is_label, (height, width)), keys in by_resolution.items():
        batch = torch.cat([tensors[key] for key in keys])[None]
        if not is_label and min(height / size[0], width / size[1]) > _SHRINK:
            batch = functional.interpolate(batch, size=size, mode="bilinear", antialias=True, align_corners=False)
        mode, points = "nearest" if is_label else "bilinear", grid.to(batch)
        view = functional.grid_sample(batch, points, mode=mode, padding_mode="reflection", align_corners=False)[0]
        views.update(zip(keys, view.split([len(tensors[key]) for key in keys]), strict=True))
    return views


def _grid(matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """``affine_grid`` of one matrix, (H, W, 2), computed as two outer sums, which is several times faster."""
    down, right = ((torch.arange(length, dtype=torch.float32) * 2 + 1) / length - 1 for length in size)
    columns = matrix[:, :1] * right + matrix[:, 2:]  # (2, W)
    rows = matrix[:, 1:2] * down  # (2, H)
    return torch.stack([columns[0] + rows[0, :, None], columns[1] + rows[1, :, None]], dim=-1)


class WeakViewd(RandomizableTransform, MapTransform):
    """Random flip, quarter turn, rotation, zoom, shear and shift, the same for all keys.

    Keys may differ in resolution (a soft mask at a quarter of the image's size) but must show the same extent; all
    results have the same size.

    Args:
        keys: keys to transform, each (C, H, W).
        size: (H, W) of the views, one number for a square, or ``None`` for the size of the first key present.
        label_keys: keys whose values must be kept exactly (nearest pixel); all others are interpolated.
        allow_missing_keys: whether an item may lack a key, which is then skipped.
        flip: mirrors with probability 0.5.
        quarter_turns: turns by a random multiple of 90 degrees (of 180 if the view is not square).
        rotate: maximum further turn to either side, in degrees.
        zoom: minimum and maximum magnification; drawn uniformly on a logarithmic scale.
        shear: maximum shear to either side, in degrees.
        shift: maximum movement to either side, as a fraction of the side's length.
        prob: probability of rotation, zoom, shear and shift; flips and quarter turns have their own.

    Raises:
        Refused: arguments out of range, all at once.

    Example::

        {"_target_": "samfed_monai.transforms.WeakViewd", "keys": ["image", "label", "teacher"], "size": 128}
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label", "teacher", "target"),
        size: int | tuple[int, int] | list[int] | None = None,
        *,
        label_keys: KeysCollection = ("label",),
        allow_missing_keys: bool = True,
        flip: bool = True,
        quarter_turns: bool = True,
        rotate: float = 15.0,
        zoom: tuple[float, float] | list[float] = (0.8, 1.25),
        shear: float = 5.0,
        shift: float = 0.1,
        prob: float = 1.0,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.label_keys = {label_keys} if isinstance(label_keys, str) else set(label_keys)  # type: ignore[arg-type]
        self.size = (size, size) if isinstance(size, int) else size
        self.flip, self.quarter_turns = flip, quarter_turns
        self.rotate, self.zoom, self.shear, self.shift = rotate, tuple(zoom), shear, shift
        problems = Problems()
        fits = self.size is None or (len(self.size) == 2 and not any(whole("", side, least=1) for side in self.size))
        problems.unless(fits, "WeakViewd -> size", size, "one or two whole numbers from 1")
        fits = len(zoom) == 2 and not any(in_range("zoom", each, above=0) for each in zoom) and zoom[0] <= zoom[1]
        problems.unless(fits, "WeakViewd -> zoom", zoom, "two numbers, 0 < least <= greatest")
        for name, most in {"rotate": 180, "shear": 60, "shift": 1, "prob": 1}.items():
            problems.extend(in_range(f"WeakViewd -> {name}", getattr(self, name), least=0, most=most))
        problems.refuse_if_any()
        self._values: dict[str, Any] = {}

    def randomize(self, data: Any = None) -> None:
        """Draws one view, with a fixed number of draws, so that an option does not change the others' values."""
        super().randomize(None)
        flip, turns = bool(self.R.rand() < 0.5), int(self.R.randint(4))
        low, high = np.log(self.zoom)
        degrees, zoom, shear, down, right = self.R.uniform(
            [-self.rotate, low, -self.shear, -self.shift, -self.shift],
            [self.rotate, high, self.shear, self.shift, self.shift],
        ).tolist()
        self._values = {"flip": flip and self.flip, "quarter_turns": turns if self.quarter_turns else 0}
        if self._do_transform:
            self._values |= {"degrees": degrees, "zoom": float(np.exp(zoom)), "shear": shear, "shift": (down, right)}

    def matrix(self, size: tuple[int, int]) -> Tensor:
        """The drawn view's matrix for a view of ``size`` pixels; see :func:`output_to_input`."""
        parameters = dict(self._values)
        if size[0] != size[1]:
            parameters["quarter_turns"] = 2 * (parameters.get("quarter_turns", 0) % 2)
        return output_to_input(size, **parameters)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        tensors = {key: plain(data[key]) for key in self.key_iterator(data)}
        if not tensors:
            return dict(data)
        height, width = self.size or next(iter(tensors.values())).shape[1:]
        return {**data, **warp(tensors, self.matrix((height, width)), (height, width), nearest=self.label_keys)}
