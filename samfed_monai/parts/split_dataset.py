"""One split as MONAI's data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.data import CacheDataset

from samfed_monai.parts.site_images import SiteImages, SplitName


class SplitDataset(CacheDataset):
    """Images of one split; what is not random of their transform is done once, when an image is first asked for.

    All read images stay in memory: 4 bytes x 4 x image_size^2 each (1 MB at 256 px).

    Args:
        data: where images come from.
        split: as of :meth:`SiteImages.records`.
        transform: of one record.

    Raises:
        Refused: unknown site or split, missing files.

    Example::

        {"_target_": "samfed_monai.parts.SplitDataset", "data": "@images", "split": "validation",
         "transform": "@validate#preprocessing"}
    """

    def __init__(self, *, data: SiteImages, split: SplitName, transform: Callable[[Any], Any]) -> None:
        super().__init__(data.records(split), transform, runtime_cache="threads")
