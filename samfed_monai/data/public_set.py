"""What identifies a public set: the bytes of its images and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samfed_monai.data.datalist import DataList
from samfed_monai.errors import Problem, Refused
from samfed_monai.io import canonical_hash, sha256_file


def public_hash(public: DataList | Sequence[Mapping[str, Any]], *, ordered: bool = True) -> str:
    """SHA-256 over the SHA-256 of each public image and mask; neither names nor folders enter it.

    Soft masks of the public set travel as rows of a stack, so server and sites must have the same images in the same
    order; they compare this hash before they start.

    Args:
        public: a data list (its recorded hashes count), or records of its public images
            (``load_records(..., split="public")``; the masks' bytes are then read and hashed).
        ordered: whether the order counts; an adapter of the teacher records the hash that does without.

    Returns:
        64 hexadecimal digits; the same for a list and for its records as long as no mask has changed.

    Raises:
        Refused: an image without a mask, or a mask that cannot be read.
    """
    pairs = [[image, label] for image, label in map(_hashes, _entries(public))]
    return canonical_hash(pairs if ordered else sorted(pairs))


def read_as(datalist: DataList) -> dict[str, int]:
    """What decides, beside the bytes that :func:`public_hash` covers, which pixels are foreground; mostly nothing.

    For keys of what was trained on the public set.
    """
    return {} if datalist.mask_threshold is None else {"mask_threshold": datalist.mask_threshold}


def _entries(public: DataList | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if not isinstance(public, DataList):
        return list(public)
    return [{"image": i.image, "image_sha256": i.sha256, "label_sha256": i.label_sha256} for i in public.public]


def _hashes(entry: Mapping[str, Any]) -> tuple[str, str]:
    if entry.get("label_sha256"):
        return entry["image_sha256"], entry["label_sha256"]
    if not entry.get("label"):
        mend = "every public image needs one; read the records with their labels"
        raise Refused([Problem(str(entry.get("image")), found="no mask", expected="the mask's file", mend=mend)])
    try:
        return entry["image_sha256"], sha256_file(entry["label"])
    except OSError as error:
        found = error.strerror or str(error)
        raise Refused([Problem(str(entry["label"]), found=found, expected="a readable mask")]) from None
