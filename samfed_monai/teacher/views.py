"""The public images as the teacher's fit sees them: scaled into SAM's input, augmented anew in every epoch."""

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
    """Scales images and masks to their place in SAM's square input: the longer side is ``size``, nothing is padded.

    The shorter side is rounded to a multiple of 4, the stride of SAM's masks; what shrinks is antialiased. A binary
    mask becomes the share of each pixel that it covers.

    Args:
        keys: what to scale, each (C, H, W) float.
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
    """Images as they are: read, placed in an input of ``size`` pixels, normalised as SAM's, and padded."""
    mean, std = (np.array(channels) / 255 for channels in (PIXEL_MEAN, PIXEL_STD))
    normalize = NormalizeIntensityd("image", subtrahend=mean, divisor=std, channel_wise=True)
    return Compose([LoadRGBd(KEYS), PlaceInInputd(size=size), normalize, SpatialPadd(KEYS, [size, size], method="end")])


class ViewedImages:
    """Labelled images in the views of a transform; each view is a function of (seed, part, image).

    What a transform does before its first random step is done once an image, and kept in (3 + 1) x S^2 bytes: an
    intensity moves by 1/510 at most.

    Args:
        items: what the transform takes.
        transform: gives ``image``, (3, S, S) float, and ``label``, (1, S, S) float in [0, 1].
        seed: decides everything random.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], transform: Compose, *, seed: int = 0) -> None:
        self.items, self.transform, self.seed = items, transform.flatten(), seed
        self._still = Compose([step for step in self.transform.transforms if not isinstance(step, RandomizableTrait)])
        first = self.transform.get_index_of_first(lambda step: isinstance(step, RandomizableTrait))
        # not `len(self.transform)`: of a Compose that seeds its transforms anew (MONAI 1.6)
        self._first = len(self.transform.transforms) if first is None else first
        self._kept: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.items)

    def view(self, index: int, part: Any) -> tuple[Tensor, Tensor]:
        """Image and label in the view that ``part`` (an epoch, for instance) has of them."""
        start = self._start(index)
        self.transform.set_random_state(seed=derive_seed(self.seed, "teacher", part, index))
        return _pair(self.transform(start, start=self._first))

    def still(self, index: int) -> tuple[Tensor, Tensor]:
        """Both with every random step left out."""
        return _pair(self._still(self._start(index), start=self._first))

    def _start(self, index: int) -> dict[str, Tensor]:
        kept = self._kept.get(index)
        if kept is None:
            item: Any = self.transform(self.items[index], end=self._first)
            if self._first == len(self.transform.transforms):  # nothing is random, and what is normalised fits no bytes
                kept = {key: plain(item[key]) for key in KEYS}
            else:
                kept = {key: plain(item[key]).mul(255).round().to(torch.uint8) for key in KEYS}
            self._kept[index] = kept
        return {key: value.float() / 255 if value.dtype == torch.uint8 else value for key, value in kept.items()}


def _pair(item: Any) -> tuple[Tensor, Tensor]:
    image, label = (plain(item[key]) for key in KEYS)
    return image, label


def content_of(part: Any) -> Any:
    """A component and its numbers as JSON content, so that another one, a list of transforms say, has another hash."""
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
    if isinstance(part, logging.Logger):  # a handler's
        return part.name
    if hasattr(part, "__qualname__") or not hasattr(part, "__dict__"):  # a class or a function; what holds nothing
        return getattr(part, "__qualname__", str(part))
    kind = type(part)
    public = {name: value for name, value in vars(part).items() if not name.startswith("_") and name != "R"}
    public |= dict(part.named_children()) if isinstance(part, nn.Module) else {}  # where a loss has its parts
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **content_of(public)}
