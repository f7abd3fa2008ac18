"""Reading an item's image and label from disk into plain tensors."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform


class LoadRGBd(MapTransform):
    """Loads what a record of ``samfed_monai.data.load_records`` points at.

    The image becomes (3, H, W) float32 in [0, 1], the label (1, H, W) float32 in {0, 1}, both upright. The item also
    receives ``"native_size": (H, W)``, to bring a predicted mask back to the image's own size. A label that the item
    does not have is skipped; nothing is resized.

    Args:
        keys: the image's key, then the label's if any; values are paths.

    Raises:
        Refused: at call time, if a file cannot be read or a mask is not binary (``"mask_threshold"`` in the item
            declares a threshold).

    Example::

        {"_target_": "samfed_monai.transforms.LoadRGBd", "keys": ["image", "label"]}
    """

    def __init__(self, keys: KeysCollection = ("image", "label"), *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key, *self.label_keys = self.keys

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        from samfed_monai.data.reading import read_image, read_mask

        result = dict(data)
        if self.image_key not in data:
            if self.allow_missing_keys:
                return result
            raise KeyError(f"LoadRGBd: the item has no {self.image_key!r}, only {sorted(map(str, data))}")
        image = read_image(data[self.image_key])
        result[self.image_key] = torch.from_numpy(image).permute(2, 0, 1).float().div_(255)
        result["native_size"] = (image.shape[0], image.shape[1])
        for key in self.label_keys:
            if data.get(key) is not None:
                mask = read_mask(data[key], data.get("mask_threshold"))
                result[key] = torch.from_numpy(mask)[None].float()
        return result
