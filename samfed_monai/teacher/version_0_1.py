"""The augmentation that ``teacher.json`` of version 0.1 names in place of transforms; removed in the next version."""

from __future__ import annotations

import math
from dataclasses import dataclass

from monai.transforms import Compose, RandRotate90d

from samfed_monai.core.errors import Problems
from samfed_monai.teacher.views import KEYS, without_views
from samfed_monai.transforms import StrongViewd, WeakViewd


@dataclass(frozen=True)
class Augmentation:
    """The numbers of today's ``weak_view`` and ``strong_view`` of ``teacher.json``, in the names of version 0.1.

    Raises:
        Refused: a number out of its range; all of them at once.
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
            "colour": (0, 0.5),
            "tint": (0, 0.5),
            "blur": (0, 1),
        }
        ranges |= {"zoom_in": (1, 8), "zoom_out": (1, 8), "gamma": (1, 4), "blur_sigma": (0.1, 20)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value <= high:
                problems.add(f"augmentation#{name}", found=repr(value), expected=f"a number from {low} to {high}")
        problems.refuse_if_any()

    def transform(self, size: int) -> Compose:
        """The list ``preprocessing#transforms`` of today's ``teacher.json`` with these numbers."""
        weak = WeakViewd(
            KEYS,
            label_keys=(),
            quarter_turns=False,
            rotate=self.rotation,
            zoom=(1 / self.zoom_out, self.zoom_in),
            shear=0.0,
            shift=self.shift,
        )
        strong = StrongViewd(
            output_key="image",
            brightness=self.colour,
            contrast=self.colour,
            saturation=self.colour,
            hue=0.0,
            tint=self.tint,
            gamma=self.gamma,
            blur=self.blur_sigma * 256 / size,
            noise=0.0,
            cutout=0.0,
            jitter_prob=1.0,
            grey_prob=0.0,
            blur_prob=self.blur,
        )
        read, place, *rest = without_views(size).transforms
        return Compose([read, place, RandRotate90d(KEYS, prob=0.75), weak, strong, *rest])
