"""Public images and masks as tensors, and what identifies them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from samfed_monai.networks.sam.geometry import place

if TYPE_CHECKING:
    from samfed_monai.data import DataList

Records = Sequence[dict[str, Any]]


class Pair(NamedTuple):
    """An image and its mask, as small as they get in memory.

    Args:
        image: ``(1, 3, H, W)`` uint8.
        mask: ``(1, 1, H, W)`` uint8 in 0..``levels``.
        levels: 1 for a mask at its native size, 255 for one that was shrunk.
    """

    image: Tensor
    mask: Tensor
    levels: int = 1

    def floats(self) -> tuple[Tensor, Tensor]:
        """Both as float32 in [0, 1]."""
        return self.image.float() / 255, self.mask.float() / self.levels

    def shrunk(self, size: int) -> Pair:
        """The pair at its place in SAM's square input, where that makes it smaller; otherwise as it is.

        A photograph of 24 million pixels takes ten times as long to scale as a step of the fit takes at 224 px, and 72
        MB; this does it once. Rounding moves an intensity by 1/510 at most.

        Args:
            size: side of the input in pixels.
        """
        if max(self.image.shape[-2:]) <= size:
            return self
        image, mask = (place(tensor, size).mul(255).round().to(torch.uint8) for tensor in self.floats())
        return Pair(image, mask, 255)


def read_pair(record: dict[str, Any]) -> Pair:
    """Reads a labelled record of ``load_records``."""
    from samfed_monai.data import read_mask

    mask = torch.tensor(read_mask(record["label"], record.get("mask_threshold")))
    return Pair(read_image_tensor(record), mask[None, None])


def read_image_tensor(record: dict[str, Any]) -> Tensor:
    """The image of a record as ``(1, 3, H, W)`` uint8."""
    from samfed_monai.data import read_image

    return torch.tensor(read_image(record["image"])).permute(2, 0, 1)[None]


def public_hash(records: Records) -> str:
    """Hash of a public set: its images and masks, in whatever order or folder they lie."""
    from samfed_monai.data import public_hash as hash_of

    return hash_of(records, ordered=False)


def evaluation_records(
    datalist: str | Path | DataList, data_root: str | Path, split: str | None = "test", limit: int | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Labelled records of every site's ``split``; sites without labels are left out.

    Args:
        datalist, data_root: see ``samfed_monai.data.load_records``.
        split: ``"validation"`` or ``"test"``; ``None`` gives an empty dict.
        limit: at most so many images per site, chosen by hash.
    """
    if split is None:
        return {}
    from samfed_monai.data import DataList, load_records

    sites = {}
    datalist = datalist if isinstance(datalist, DataList) else DataList.load(datalist)
    for site in datalist.sites:
        records = load_records(datalist, data_root, split=split, site=site, with_labels=True, limit=limit)
        labelled = [record for record in records if "label" in record]
        if labelled:
            sites[site] = labelled
    return sites
