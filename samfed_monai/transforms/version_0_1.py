"""Composed transforms that bundles of version 0.1 name in place of a list; removed in the next version."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monai.transforms import AsDiscreted, Compose

from samfed_monai.transforms.loading import (
    LoadRGBd,
    LoadSoftMaskd,
    LoadTargetd,
    PublicTargets,
    RenameItemsd,
    ResizeWithLabeld,
)


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
    resize = ResizeWithLabeld(["image", "label"], [image_size, image_size], ["area", label_resize])
    return [LoadRGBd(), resize, AsDiscreted("label", threshold=0.5, allow_missing_keys=True)]
