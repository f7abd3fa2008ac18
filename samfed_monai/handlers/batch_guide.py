"""The guide that travels with the image: SAM's stored soft mask, or the oracle's label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from samfed_monai.errors import Problem, Refused
from samfed_monai.handlers.guide import Guide

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor


class BatchGuide(Guide):
    """Reads a guide's probabilities out of the unlabelled batch; what more there is to compute is a subclass's.

    Args:
        name: what terms call this guide.
        key: the batch's key, (B, C, H, W) float in [0, 1]; spatial transforms must have moved it with the image.

    Raises:
        Refused: at the first batch, when the key is missing or its size is not the image's.

    Example::

        {"_target_": "samfed_monai.handlers.BatchGuide", "name": "sam", "key": "teacher"}
    """

    def __init__(self, *, name: str = "sam", key: str = "teacher") -> None:
        super().__init__(name)
        self.key = key

    def __call__(self, batch: Mapping[str, Any], engine: Engine) -> Tensor:
        """The batch's own entry; see :class:`Guide`."""
        where = f"guides#{self.name} ({type(self).__name__}) -> key"
        if self.key not in batch:
            mend = (
                "fill the soft-mask store and give store_dir and teacher_sha256 (LoadSoftMaskd writes 'teacher'), "
                f"or disable guides#{self.name} and the terms that use it"
            )
            found = f"an unlabelled batch with {sorted(batch)}"
            raise Refused([Problem(where, found=found, expected=f"the key {self.key!r}", mend=mend)])
        probabilities: Tensor = batch[self.key]
        size, expected = tuple(probabilities.shape[2:]), tuple(batch["image"].shape[2:])
        if size != expected:
            mend = f"list {self.key!r} among the keys of WeakViewd, which moves image and guide together"
            raise Refused([Problem(where, found=f"{size} pixels", expected=f"the image's {expected}", mend=mend)])
        return probabilities
