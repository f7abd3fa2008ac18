"""How far a teacher is to be trusted at a site and on each image, learned without a label of that site (ours).

The reference is what the student is sure of. A student that was warmed up on public labels is right about most pixels
of which it is sure, also where it is no good on the rest: that is why FixMatch learns from those alone (Sohn et al.
2020, arXiv 2001.07685). A teacher that contradicts it there is probably wrong; where the student is unsure, it has
nothing to object. No other opinion is asked: neither an averaged student nor a label.
"""

from __future__ import annotations

from torch import Tensor

from samfed_monai.losses.labels import dice_of_labels

LEAST_AGREEMENT = 0.7
"""A Dice above this is called a good overlap (Zijdenbos et al. 1994, as quoted by Zou et al. 2004)."""

WIDTH = 0.1
"""Trust is 0 this far below that Dice and 1 this far above it, so that no label changes sides with its full weight."""


def sure_agreement(teacher_label: Tensor, student_label: Tensor, sure: Tensor) -> Tensor:
    """Dice of teacher and student over the pixels that the student is sure of.

    Args:
        teacher_label, student_label: (B, 1, H, W) long, 0 is the background.
        sure: (B, 1, H, W) bool.

    Returns:
        (B,) float in [0, 1]; 1 where neither names any foreground among those pixels, also where there are none.
    """
    return dice_of_labels(teacher_label * sure, student_label * sure)


def trust_of_images(image: Tensor, site: Tensor, least: float = LEAST_AGREEMENT) -> Tensor:
    """Trust in the teacher on each image, from the agreement there and at the whole site, which count alike.

    ``t = clip((s - least) / (2 WIDTH) + 1/2)`` with ``s = (image + site) / 2``, so it grows with either. Where the site
    bears the teacher out, it takes a plain contradiction to doubt it on an image; where the site does not, no image
    alone makes up for that.

    Args:
        image: (B,) float in [0, 1], of :func:`sure_agreement`.
        site: scalar in [0, 1], its mean over the site's images.
        least: the ``s`` at which teacher and student have the same say, in [0, 1].

    Returns:
        (B,) float in [0, 1]: 1 is the rule ``teacher``, 0 the rule ``student``.
    """
    return (((image + site) / 2 - least) / (2 * WIDTH) + 0.5).clamp(0, 1)


class RunningMean:
    """Mean over all values seen so far, however they came in batches."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, values: Tensor) -> Tensor:
        """Takes in (B,) values and returns the mean of all so far, a scalar."""
        total = values.sum()
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(values)
        return self._sum / self._count
