"""The strong view of HSSF: the weak one with a little bounded noise."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import ensure_tuple
from torch import Tensor

from samfed_monai.core.errors import Problems
from samfed_monai.transforms.loading import plain


class NoiseViewd(RandomizableTransform, MapTransform):
    """Adds Gaussian noise of one fixed deviation, cut off at ``limit``; all else stays (HSSF; docs/method.md).

    It takes the place of :class:`StrongViewd`, whose noise has a deviation drawn anew for every image, in a bundle that
    follows HSSF's conventions.

    Args:
        keys: the image, (C, H, W) in [0, 1].
        output_key: where its noisy view goes.
        deviation: of the noise, in [0, 1] intensities (HSSF: 0.1 on images in [-1, 1], which is 0.05 here).
        limit: no pixel changes by more (HSSF: 0.2 on those, which is 0.1 here).
        allow_missing_keys: whether an item may lack the image.

    The view is (C, H, W) float32, a new tensor, kept in [0, 1] like every view here.

    Raises:
        Refused: a deviation or a limit outside [0, 1]; not one output for each key.

    Example::

        {"_target_": "samfed_monai.transforms.NoiseViewd", "deviation": 0.05, "limit": 0.1}
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        output_key: KeysCollection = "image_strong",
        *,
        deviation: float = 0.05,
        limit: float = 0.1,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        problems = Problems()
        for name, value in (("deviation", deviation), ("limit", limit)):
            if not 0 <= value <= 1:
                problems.add(f"NoiseViewd -> {name}", found=repr(value), expected="0 to 1")
        self.output_keys = ensure_tuple(output_key)
        if len(self.output_keys) != len(self.keys):
            found = f"{len(self.output_keys)} names for {len(self.keys)} keys"
            problems.add("NoiseViewd -> output_key", found=found, expected="one name for each key")
        problems.refuse_if_any()
        self.deviation, self.limit = deviation, limit

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds the noisy views to an item."""
        result = dict(data)
        for key, output_key in self.key_iterator(data, self.output_keys):
            result[output_key] = self._noisy(plain(data[key]))
        return result

    def _noisy(self, image: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31 - 1)))
        noise = torch.randn(image.shape, generator=generator).mul_(self.deviation).clamp_(-self.limit, self.limit)
        return noise.add_(image).clamp_(0, 1)
