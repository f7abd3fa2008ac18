"""Public images and masks as tensors, what identifies them, and how well a teacher does on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samfed_monai.io import canonical_hash, sha256_file
from samfed_monai.networks.sam.teacher import Teacher

Records = Sequence[dict[str, Any]]


class Pair(NamedTuple):
    """An image and its mask, at their native size and as small as they get in memory.

    Args:
        image: ``(1, 3, H, W)`` uint8.
        mask: ``(1, 1, H, W)`` uint8 in {0, 1}.
    """

    image: Tensor
    mask: Tensor

    def floats(self) -> tuple[Tensor, Tensor]:
        """Both as float32 in [0, 1]."""
        return self.image.float() / 255, self.mask.float()


def read_pair(record: dict[str, Any]) -> Pair:
    """Reads a labelled record of ``load_records``."""
    from samfed_monai.data import read_image, read_mask

    image = np.ascontiguousarray(read_image(record["image"]))
    mask = np.ascontiguousarray(read_mask(record["label"], record.get("mask_threshold")))
    return Pair(torch.from_numpy(image).permute(2, 0, 1)[None], torch.from_numpy(mask)[None, None])


def public_hash(records: Records) -> str:
    """Hash of a public set: its images and masks, in whatever order or folder they lie."""
    return canonical_hash(sorted([record["image_sha256"], sha256_file(record["label"])] for record in records))


def evaluation_records(
    datalist: str | Path, data_root: str | Path, split: str | None = "test", limit: int | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Labelled records of every site's ``split``; sites without labels are left out.

    Args:
        datalist, data_root: see ``samfed_monai.data.load_records``.
        split: ``"validation"`` or ``"test"``; ``None`` gives an empty dict.
        limit: at most so many images per site.
    """
    if split is None:
        return {}
    from samfed_monai.data import DataList, load_records

    sites = {}
    for site in DataList.load(datalist).sites:
        records = load_records(datalist, data_root, split=split, site=site, with_labels=True)  # type: ignore[arg-type]
        labelled = [record for record in records if "label" in record][:limit]
        if labelled:
            sites[site] = labelled
    return sites


def dice_of(teacher: Teacher, pairs: Sequence[Pair], probabilities: Sequence[Tensor] | None = None) -> float:
    """Mean Dice at the masks' native size, threshold 0.5; two empty masks count 1 (METHOD section 7).

    Args:
        teacher: gives the probabilities where they are not given.
        pairs: images and masks.
        probabilities: ``(1, 1, h, w)`` for each image, computed elsewhere.
    """
    scores = []
    for position, pair in enumerate(pairs):
        image, mask = pair.floats()
        soft = teacher.probabilities(image).cpu() if probabilities is None else probabilities[position]
        found = F.interpolate(soft, mask.shape[-2:], mode="bilinear", align_corners=False) > 0.5
        area = float(found.sum() + mask.sum())
        scores.append(2 * float((found * mask).sum()) / area if area else 1.0)
    return sum(scores) / len(scores)
