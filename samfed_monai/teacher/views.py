"""The public images for the teacher's fit: scaled into SAM's input, with new augmentation in every epoch."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform, NormalizeIntensityd, SpatialPadd
from monai.transforms.traits import RandomizableTrait
from torch import Tensor, nn

from samfed_monai.core.seeds import derive_seed
from samfed_monai.networks.sam.build import PIXEL_MEAN, PIXEL_STD, place
from samfed_monai.transforms.loading import LoadRGBd, plain

KEYS = ("image", "label")


class PlaceInInputd(MapTransform):
    """Scales images and masks into SAM's square input without padding: the longer side becomes ``size``.

    The shorter side is rounded to a multiple of 4, the stride of SAM's masks; downscaling is antialiased. A binary mask
    becomes the share of each pixel that it covers.

    Args:
        keys: keys of the images and masks, each (C, H, W) float.
        size: side of SAM's input in pixels.
        allow_missing_keys: whether an item may lack a key.

    Example::

        {"_target_": "samfed_monai.teacher.PlaceInInputd", "keys": ["image", "label"], "size": "@size"}
    """

    def __init__(self, keys: KeysCollection = KEYS, *, size: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.size = size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(data):
            result[key] = place(plain(data[key])[None], self.size)[0]
        return result


def without_views(size: int) -> Compose:
    """Returns the transform without augmentation: load, scale into ``size`` pixels, normalise as SAM does, and pad."""
    mean, std = (np.array(channels) / 255 for channels in (PIXEL_MEAN, PIXEL_STD))
    normalize = NormalizeIntensityd("image", subtrahend=mean, divisor=std, channel_wise=True)
    return Compose([LoadRGBd(KEYS), PlaceInInputd(size=size), normalize, SpatialPadd(KEYS, [size, size], method="end")])


class ViewedImages:
    """Labelled images in the views of a transform; each view is a function of (seed, part, image).

    The steps before the transform's first random one run once per image; their result is cached in (3 + 1) x S^2 bytes,
    which changes an intensity by at most 1/510.

    Args:
        items: inputs of the transform.
        transform: returns ``image``, (3, S, S) float, and ``label``, (1, S, S) float in [0, 1].
        seed: seed of all randomness.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], transform: Compose, *, seed: int = 0) -> None:
        self.items, self.transform, self.seed = items, transform.flatten(), seed
        steps = self.transform.transforms
        self._fixed = Compose([step for step in steps if not isinstance(step, RandomizableTrait)])
        # not `len(self.transform)`: in MONAI 1.6 it seeds the transforms of a Compose again
        first = self.transform.get_index_of_first(lambda step: isinstance(step, RandomizableTrait))
        self._first_random = len(steps) if first is None else first
        self._cache: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.items)

    def view(self, index: int, part: Any) -> tuple[Tensor, Tensor]:
        """Returns image and label in the view of ``part`` (an epoch, for instance)."""
        start = self._start(index)
        self.transform.set_random_state(seed=derive_seed(self.seed, "teacher", part, index))
        return _pair(self.transform(start, start=self._first_random))

    def still(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns image and label without the random steps."""
        return _pair(self._fixed(self._start(index), start=self._first_random))

    def _start(self, index: int) -> dict[str, Tensor]:
        loaded = self._cache.get(index)
        if loaded is None:
            item: Any = self.transform(self.items[index], end=self._first_random)
            loaded = {key: plain(item[key]) for key in KEYS}
            if self._first_random < len(self.transform.transforms):  # normalised values do not fit bytes
                loaded = {key: value.mul(255).round().to(torch.uint8) for key, value in loaded.items()}
            self._cache[index] = loaded
        return {key: value.float() / 255 if value.dtype == torch.uint8 else value for key, value in loaded.items()}


def _pair(item: Any) -> tuple[Tensor, Tensor]:
    image, label = (plain(item[key]) for key in KEYS)
    return image, label


def content_of(part: Any) -> Any:
    """Describes a component (a list of transforms, for instance) and its numbers as JSON content, for its hash."""
    if part is None or isinstance(part, (str, bool, int, float)):
        return part
    if isinstance(part, (np.ndarray, np.generic)):
        return part.tolist()
    if isinstance(part, Mapping):
        return {str(name): content_of(value) for name, value in part.items()}
    if isinstance(part, (set, frozenset)):
        return sorted(map(str, part))
    if isinstance(part, Sequence):
        return [content_of(value) for value in part]
    if isinstance(part, partial):
        return {"of": content_of(part.func), **content_of(part.keywords)}
    if isinstance(part, logging.Logger):  # of a handler
        return part.name
    if hasattr(part, "__qualname__") or not hasattr(part, "__dict__"):  # a class, a function, an object without state
        return getattr(part, "__qualname__", str(part))
    kind = type(part)
    public = {name: value for name, value in vars(part).items() if not name.startswith("_") and name != "R"}
    public |= dict(part.named_children()) if isinstance(part, nn.Module) else {}  # the parts of a loss
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **content_of(public)}
