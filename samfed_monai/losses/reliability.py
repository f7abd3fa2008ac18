"""The reliability of a teacher at a site and on each image, estimated without a label of that site.

*Trust*: the reference is what the student is sure of. A student that was warmed up on public labels is right about most
pixels of which it is sure, also where it is no good on the rest: that is why FixMatch learns from those alone (Sohn et
al. 2020, arXiv 2001.07685). A teacher that contradicts it there is probably wrong; where the student is unsure, it has
nothing to object. No other opinion is asked: neither an averaged student nor a label.

*On labels*: where images have labels, as the public set's have, reliability is measured, not learned.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from samfed_monai.losses.channels import dice_of_labels, hard_label

LEAST_AGREEMENT = 0.7
"""A Dice above this is called a good overlap (Zijdenbos et al. 1994, as quoted by Zou et al. 2004)."""

WIDTH = 0.1
"""Trust is 0 this far below that Dice and 1 this far above it, so that no label changes sides with its full weight."""


def sure_agreement(teacher_label: Tensor, student_label: Tensor, sure: Tensor) -> tuple[Tensor, Tensor]:
    """Dice of teacher and student over the pixels that the student is sure of, and on which images that says anything.

    It does where the student is sure of some foreground. An image on which it is sure of background alone speaks
    neither for a teacher that finds nothing nor against one that finds what the student missed.

    Args:
        teacher_label, student_label: (B, 1, H, W) long, 0 is the background.
        sure: (B, 1, H, W) bool.

    Returns:
        (B,) float in [0, 1], and (B,) bool.
    """
    vouched = student_label * sure
    return dice_of_labels(teacher_label * sure, vouched), (vouched > 0).flatten(1).any(dim=1)


def trust_of_images(image: Tensor, site: Tensor, least: float = LEAST_AGREEMENT) -> Tensor:
    """Trust in the teacher on each image, from the agreement there and at the whole site, which count alike.

    ``t = clip((s - least) / (2 WIDTH) + 1/2)`` with ``s = (image + site) / 2``, so it grows with either. Where the site
    bears the teacher out, it takes a plain contradiction to doubt it on an image; where the site does not, no image
    alone makes up for that.

    Args:
        image: (B,) float in [0, 1], of :func:`sure_agreement`; the site's where that says nothing.
        site: scalar in [0, 1], its mean over the site's images.
        least: the ``s`` at which trust is one half, in [0, 1].

    Returns:
        (B,) float in [0, 1]: at 1 the teacher counts as much as the student, at 0 not at all.
    """
    return (((image + site) / 2 - least) / (2 * WIDTH) + 0.5).clamp(0, 1)


class SiteAgreement:
    """Mean of :func:`sure_agreement` over all images so far on which it says anything, however they came in batches."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count: Tensor | None = None

    def add(self, dice: Tensor, says: Tensor) -> Tensor:
        """Takes in (B,) Dice and (B,) bool and returns the mean, a scalar; 1 as long as nothing speaks against it."""
        total, count = (dice * says).sum(), says.sum()
        self._sum = total if self._sum is None else self._sum + total
        self._count = count if self._count is None else self._count + count
        return torch.where(self._count > 0, self._sum / self._count.clamp(min=1), 1.0)


class Reliability(str, Enum):
    """How well soft masks of labelled images match their labels."""

    DICE = "dice"
    PIXEL_ACCURACY = "pixel_accuracy"


def image_reliability(probabilities: Tensor, labels: Tensor, measure: str = "dice") -> Tensor:
    """How far each image's prediction can be trusted, measured on its label.

    ``dice`` is ours: accuracy, which HSSF's code takes (Ma et al., TMI 2024), rewards an empty mask on an image whose
    lesion is small.

    Args:
        probabilities: (N, C, H, W) float in [0, 1].
        labels: (N, 1, H, W), class indices (0 or 1 for C = 1).
        measure: ``dice`` or ``pixel_accuracy``.

    Returns:
        (N,) float in [0, 1].

    Raises:
        ValueError: an unknown measure.
    """
    predicted = hard_label(probabilities)[0]
    if Reliability(measure) is Reliability.PIXEL_ACCURACY:
        return (predicted == labels.long()).float().mean(dim=(1, 2, 3))
    return dice_of_labels(predicted, labels.long())
