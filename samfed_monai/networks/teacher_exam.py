"""How well a teacher does: Dice on labelled records."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from samfed_monai.networks.sam.teacher import Teacher
from samfed_monai.networks.teacher_data import Pair, Records, read_pair


class Exam:
    """Mean Dice at the masks' native size, threshold 0.5; two empty masks count 1 (METHOD section 7).

    Args:
        teacher: who is examined; it may change between two calls.
        keep_embeddings: remember each image's embedding (float16, ``size ** 2 * 2`` bytes) for the next call. Only for
            a frozen encoder. It serves one view; more test-time views are computed each time.
    """

    def __init__(self, teacher: Teacher, *, keep_embeddings: bool = False) -> None:
        self.teacher, self.keep_embeddings = teacher, keep_embeddings
        self._embeddings: dict[str, Tensor] = {}

    def __call__(
        self, sets: Mapping[str, Records], *, views: int = 1, done: Callable[[], object] | None = None
    ) -> dict[str, float]:
        """Mean Dice of each named set.

        Args:
            sets: name to labelled records.
            views: test-time views.
            done: called after every image (a progress bar).
        """
        dice = {}
        for name, records in sets.items():
            scores = []
            for record in records:
                pair = read_pair(record)
                scores.append(dice_score(self._probabilities(record["image_sha256"], pair, views), pair.mask))
                if done is not None:
                    done()
            dice[name] = sum(scores) / len(scores)
        return dice

    @torch.no_grad()
    def _probabilities(self, key: str, pair: Pair, views: int) -> Tensor:
        image, _ = pair.floats()
        teacher = self.teacher
        image = image.to(teacher.sam.pixel_mean.device)
        if not self.keep_embeddings or views != 1:
            before, teacher.views = teacher.views, views
            try:
                return teacher.probabilities(image).cpu()
            finally:
                teacher.views = before
        if key not in self._embeddings:
            self._embeddings[key] = teacher.embed(image).half()
        return teacher.decode(self._embeddings[key].float(), *image.shape[-2:]).sigmoid().cpu()


def dice_score(probabilities: Tensor, mask: Tensor) -> float:
    """Dice of ``(1, 1, h, w)`` probabilities, resized bilinearly to a binary ``(1, 1, H, W)`` mask."""
    found = F.interpolate(probabilities, mask.shape[-2:], mode="bilinear", align_corners=False) > 0.5
    area = float(found.sum() + mask.sum())
    return 2 * float((found * mask).sum()) / area if area else 1.0
