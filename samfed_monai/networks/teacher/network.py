"""A fitted teacher where an evaluator expects a network: one image in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from samfed_monai.data.resizing import resize_probabilities
from samfed_monai.networks.sam.teacher import Teacher


class TeacherNetwork(nn.Module):
    """Gives a teacher's probabilities as logits, as evaluators, :class:`ScoreHandler` and ``MaskWriter`` take them.

    It takes images at their own size, not at the size of a student's input, and does not train.

    Args:
        teacher: whose probabilities, views and refinement included.
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
            ``(B, 1, h, w)`` float32, above 0 exactly where the probability is above 0.5.
        """
        probabilities = self.teacher.probabilities(images)
        return torch.logit(probabilities if size is None else resize_probabilities(probabilities, size), eps=1e-6)
