"""Targets for the public images that change from round to round: what another network thinks of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import Transform
from monai.transforms.traits import RandomizableTrait
from torch import Tensor

from samfed_monai.data.resizing import resize_probabilities

KEY, GATE = "target", "target_gate"


class PublicTargets:
    """A soft mask and a gate for each public image, in memory; empty outside the steps that use them.

    Example::

        "targets": {"_target_": "samfed_monai.transforms.PublicTargets"}
    """

    def __init__(self) -> None:
        self.masks: Tensor | None = None
        self.gate: Tensor | None = None

    def set(self, masks: Tensor, gate: Tensor) -> None:
        """Takes (N, C, h, w) uint8 masks, 255 for a probability of 1, and (N,) bool gates, in the list's order."""
        self.masks, self.gate = masks, gate

    def clear(self) -> None:
        """Forgets both; items then carry no target."""
        self.masks = self.gate = None


class LoadTargetd(Transform, RandomizableTrait):
    """Adds an item's target and gate, where there are any; leaves the item alone otherwise.

    Stands after the image is loaded and before the weak view, so that both move together. It counts as random, so that
    no cache keeps a target of an earlier round.

    Args:
        targets: the holder, shared with whoever fills it.

    Reads ``index``, the item's place in the public list, and ``image``, (C, h, w), to whose size the mask is brought
    (bilinearly). Adds ``target``, (C, h, w) float32 in [0, 1], and ``target_gate``, float32 0 or 1.

    Example::

        {"_target_": "samfed_monai.transforms.LoadTargetd", "targets": "@targets"}
    """

    def __init__(self, targets: PublicTargets) -> None:
        self.targets = targets

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.targets.masks is None or self.targets.gate is None:
            return item
        index = int(item["index"])
        mask = self.targets.masks[index][None].float() / 255
        item[KEY] = resize_probabilities(mask, item["image"].shape[-2:])[0]
        item[GATE] = self.targets.gate[index].to(torch.float32)
        return item
