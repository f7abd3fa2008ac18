"""A fitted teacher in use: it fills a site's soft-mask store, and replaces the network in an evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from samfed_monai.core.run_log import progress_bar
from samfed_monai.data.soft_masks import resize_probabilities
from samfed_monai.networks.inferer import logits_of
from samfed_monai.networks.sam.teacher import Teacher
from samfed_monai.teacher.exam import read_image_tensor


class Store(Protocol):
    """What :func:`fill_store` needs of a ``samfed_monai.data.SoftMaskStore``."""

    def missing(self, image_sha256s: Sequence[str]) -> list[str]: ...

    def put(self, image_sha256: str, probabilities: Tensor) -> None: ...


class MaskMaker(Protocol):
    """What :func:`fill_store` needs of a teacher."""

    def probabilities(self, images: Tensor) -> Tensor: ...


def fill_store(
    teacher: MaskMaker,
    records: Sequence[dict[str, Any]],
    store: Store,
    *,
    progress: bool = True,
    whose: str = "",
) -> int:
    """Computes the soft masks that ``store`` lacks; repeating it, also after a kill, computes only what is missing.

    The stored mask covers exactly the image: its longer side has ``teacher.size / 4`` pixels and its aspect is the
    image's, so that a bilinear resize to the image's size puts it in register (see ``Teacher.probabilities``).

    Args:
        teacher: gives the probabilities; ``store`` must have been opened with its ``sha256``.
        records: dicts with ``image`` (path) and ``image_sha256``; labels are not read.
        store: where to put ``(C, h, w)`` float in [0, 1].
        progress: show a bar with the time left.
        whose: images these are, behind the bar's name.

    Returns:
        How many masks were computed.
    """
    by_hash = {record["image_sha256"]: record for record in records}
    missing = store.missing(list(by_hash))
    what = f"soft masks, {whose}" if whose else "soft masks"
    with progress_bar(total=len(missing), desc=what, unit="image", show=progress and bool(missing)) as bar:
        for sha256 in missing:
            image = read_image_tensor(by_hash[sha256]).float() / 255
            store.put(sha256, teacher.probabilities(image).cpu()[0])
            bar.update()
    return len(missing)


class TeacherNetwork(nn.Module):
    """Gives a teacher's probabilities as logits, as evaluators, :class:`ScoreHandler` and ``MaskWriter`` take them.

    It takes images at their own size, not at the size of a student's input, and does not train.

    Args:
        teacher: whose probabilities, views included.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Logits of images.

        Args:
            images: ``(B, 3, H, W)`` float in [0, 1], RGB.
            size: height and width of the logits in pixels; the probabilities are resized to it, as the soft masks of
                the store are before a site scores them. ``None`` leaves them as they come (``Teacher.probabilities``).

        Returns:
            ``(B, 1, h, w)`` float32, above 0 exactly where the probability is above 0.5; of K classes
            ``(B, K + 1, h, w)``.
        """
        probabilities = self.teacher.probabilities(images)
        found = probabilities if size is None else resize_probabilities(probabilities, size)
        return torch.logit(found, eps=1e-6) if found.shape[1] == 1 else logits_of(found)
