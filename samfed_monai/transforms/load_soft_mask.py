"""Reading the teacher's opinion of an image from the soft-mask store."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.transforms import Transform

from samfed_monai.data.resizing import resize_probabilities
from samfed_monai.data.soft_masks import SoftMaskStore
from samfed_monai.errors import Problem, Refused


class LoadSoftMaskd(Transform):
    """Adds the teacher's probabilities to an item that carries its image's hash.

    Stands after the image is loaded and before the views, so that both move together. It reads ``image_sha256``, the
    hash of the image file. A stored mask covers the whole image, whatever its resolution; here it is resized bilinearly
    to the current size of ``image``, (C, h, w).

    Args:
        store: the store's folder, or a :class:`~samfed_monai.data.SoftMaskStore`.
        teacher_sha256: the teacher's identity; not needed with a store object.
        output_key: receives (1, h, w) float32 in [0, 1].

    Raises:
        Refused: the store has no readable mask of the image (at call time), or no teacher is named.

    Example::

        {"_target_": "samfed_monai.transforms.LoadSoftMaskd", "store": "@store_dir",
         "teacher_sha256": "@teacher_sha256"}
    """

    def __init__(
        self,
        store: str | Path | SoftMaskStore,
        teacher_sha256: str | None = None,
        *,
        output_key: str = "teacher",
    ) -> None:
        if not isinstance(store, SoftMaskStore):
            if not store or not teacher_sha256:
                found = f"store {store!r}, teacher_sha256 {teacher_sha256!r}"
                mend = "set the knobs store_dir and teacher_sha256, or disable this transform"
                expected = "a folder and a teacher's hash"
                raise Refused([Problem("LoadSoftMaskd", found=found, expected=expected, mend=mend)])
            store = SoftMaskStore(store, teacher_sha256=teacher_sha256)
        self.store, self.output_key = store, output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        mask = self.store.get(data["image_sha256"])
        result[self.output_key] = resize_probabilities(mask[None], data["image"].shape[-2:])[0]
        return result
