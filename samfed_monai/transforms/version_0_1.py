"""What bundles of version 0.1 name in place of a list of transforms; goes with the next version."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monai.transforms import AsDiscreted, Compose, Resized

from samfed_monai.core.errors import Problem, Refused, did_you_mean
from samfed_monai.transforms.loading import LoadRGBd, LoadSoftMaskd, LoadTargetd, PublicTargets, RenameItemsd

LABEL_RESIZE = ("area", "nearest")


class EvaluationImages(Compose):
    """The list ``validate#preprocessing#transforms`` of today's ``train.json``, as one object."""

    def __init__(self, *, image_size: int, label_resize: str = "area") -> None:
        super().__init__(_read(image_size, label_resize))


class LabelledViews(Compose):
    """The list ``train#preprocessing#transforms`` of today's ``train.json``, as one object."""

    def __init__(
        self,
        *,
        image_size: int,
        weak: Callable[[Any], Any],
        strong: Callable[[Any], Any],
        targets: PublicTargets | None = None,
        label_resize: str = "area",
    ) -> None:
        alone = RenameItemsd("image_strong", "image")
        views: list[Callable[[Any], Any]] = [copy.deepcopy(weak), copy.deepcopy(strong), alone]
        super().__init__([*_read(image_size, label_resize), LoadTargetd(targets or PublicTargets()), *views])


class UnlabelledViews(Compose):
    """The list ``unlabelled#preprocessing#transforms`` of today's ``train.json``, as one object."""

    def __init__(
        self,
        *,
        image_size: int,
        weak: Callable[[Any], Any],
        strong: Callable[[Any], Any],
        store_dir: str | Path | None = None,
        teacher_sha256: str | None = None,
        masks_for: Any = "the guides of the bundle",
        label_resize: str = "area",
    ) -> None:
        soft_mask = LoadSoftMaskd(store_dir, teacher_sha256, masks_for=masks_for)
        super().__init__([*_read(image_size, label_resize), soft_mask, copy.deepcopy(weak), copy.deepcopy(strong)])


def _read(image_size: int, label_resize: str) -> list[Callable[[Any], Any]]:
    if label_resize not in LABEL_RESIZE:
        expected, mend = f"one of {list(LABEL_RESIZE)}", did_you_mean(str(label_resize), LABEL_RESIZE)
        raise Refused([Problem("train.json -> label_resize", found=repr(label_resize), expected=expected, mend=mend)])
    size, keys, modes = [image_size, image_size], ["image", "label"], ["area", label_resize]
    resized = Resized(keys, size, mode=modes, allow_missing_keys=True)
    return [LoadRGBd(), resized, AsDiscreted("label", threshold=0.5, allow_missing_keys=True)]
