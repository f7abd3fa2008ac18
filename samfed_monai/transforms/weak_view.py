"""The weak view: image, label and soft mask moved together by one random affine map."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from samfed_monai.errors import Problems
from samfed_monai.transforms.geometry import output_to_input, warp, warp_together
from samfed_monai.transforms.plain import plain


class WeakView(RandomizableTransform):
    """Random flip, quarter turn, rotation, zoom, shear and shift of one image (array twin of :class:`WeakViewd`).

    Args:
        size: (H, W) of the view, one number for a square, or ``None`` for the input's own size.
        flip: mirrors every second image.
        quarter_turns: turns by a random multiple of 90 degrees (of 180 where the view is not square).
        rotate: greatest further turn to either side, in degrees.
        zoom: least and greatest magnification; drawn evenly on a logarithmic scale.
        shear: greatest shear to either side, in degrees.
        shift: greatest movement to either side, as a fraction of the side's length.
        prob: chance of rotation, zoom, shear and shift; flips and quarter turns have chances of their own.

    Raises:
        Refused: an argument is out of range; all of them are named at once.
    """

    def __init__(
        self,
        size: int | tuple[int, int] | list[int] | None = None,
        *,
        flip: bool = True,
        quarter_turns: bool = True,
        rotate: float = 15.0,
        zoom: tuple[float, float] | list[float] = (0.8, 1.25),
        shear: float = 5.0,
        shift: float = 0.1,
        prob: float = 1.0,
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        self.size = None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])
        self.flip, self.quarter_turns = flip, quarter_turns
        self.rotate, self.zoom, self.shear, self.shift = rotate, (zoom[0], zoom[1]), shear, shift
        problems = Problems()
        if self.size is not None and min(self.size) < 1:
            problems.add("WeakView -> size", found=str(size), expected="at least 1 pixel each way")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            problems.add("WeakView -> zoom", found=str(zoom), expected="0 < least <= greatest")
        for name, value, most in (
            ("rotate", rotate, 180),
            ("shear", shear, 60),
            ("shift", shift, 1),
            ("prob", prob, 1),
        ):
            if not 0 <= value <= most:
                problems.add(f"WeakView -> {name}", found=str(value), expected=f"0 to {most}")
        problems.refuse_if_any()
        self._drawn: dict[str, Any] = {}

    def randomize(self, data: Any = None) -> None:
        """Draws one view; always the same number of draws, so that one switch does not change the others' values."""
        super().randomize(None)
        flip, turns = bool(self.R.rand() < 0.5), int(self.R.randint(4))
        low, high = np.log(self.zoom)
        degrees, zoom, shear, down, right = self.R.uniform(
            [-self.rotate, low, -self.shear, -self.shift, -self.shift],
            [self.rotate, high, self.shear, self.shift, self.shift],
        ).tolist()
        self._drawn = {"flip": flip and self.flip, "quarter_turns": turns if self.quarter_turns else 0}
        if self._do_transform:
            self._drawn |= {"degrees": degrees, "zoom": float(np.exp(zoom)), "shear": shear, "shift": (down, right)}

    def matrix(self, size: tuple[int, int]) -> Tensor:
        """The drawn view's matrix for a view of ``size`` pixels; see :func:`output_to_input`."""
        drawn = dict(self._drawn)
        if size[0] != size[1]:
            drawn["quarter_turns"] = 2 * (drawn.get("quarter_turns", 0) % 2)
        return output_to_input(size, **drawn)

    def __call__(self, image: Any, *, nearest: bool = False, randomize: bool = True) -> Tensor:
        """Returns a (C, *size) float32 view of a (C, H, W) image; ``randomize=False`` repeats the last draw."""
        if randomize:
            self.randomize()
        image = plain(image)
        size = self.size or (image.shape[1], image.shape[2])
        return warp(image, self.matrix(size), size, nearest=nearest)


class WeakViewd(RandomizableTransform, MapTransform):
    """Dictionary version of :class:`WeakView`: all keys move together.

    Keys may differ in resolution (a soft mask at a quarter of the image's size) as long as they show the same extent;
    every one of them leaves with the same size.

    Args:
        keys: what to move, each (C, H, W); those that an item lacks are skipped.
        size: (H, W) of the views, one number for a square, or ``None`` for the size of the first key present.
        label_keys: keys whose values must survive exactly (nearest pixel); all others are interpolated.
        allow_missing_keys: whether an item may lack a key.
        arguments: those of :class:`WeakView`.

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
        RandomizableTransform.__init__(self, 1.0)
        self.label_keys = {label_keys} if isinstance(label_keys, str) else set(label_keys)  # type: ignore[arg-type]
        self.view = WeakView(
            size, flip=flip, quarter_turns=quarter_turns, rotate=rotate, zoom=zoom, shear=shear, shift=shift, prob=prob
        )

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> WeakViewd:
        super().set_random_state(seed, state)
        self.view.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.view.randomize()
        tensors = {key: plain(data[key]) for key in self.key_iterator(data)}
        if not tensors:
            return dict(data)
        height, width = self.view.size or next(iter(tensors.values())).shape[1:]
        matrix = self.view.matrix((height, width))
        return {**data, **warp_together(tensors, matrix, (height, width), nearest=self.label_keys)}
