"""The reliability of a teacher at a site and on each image, estimated without a label of that site.

*Trust*: the reference is what the student is sure of. A student that was warmed up on public labels is right about most
pixels of which it is sure, also where it is no good on the rest: that is why FixMatch learns from those alone (Sohn et
al. 2020, arXiv 2001.07685). A teacher that contradicts it there is probably wrong; where the student is unsure, it has
nothing to object. No other opinion is asked: neither an averaged student nor a label.

*Rates of raters*: the raters of a pixel are the teacher, the student and the averaged student. The model is Dawid and
Skene's (1979), known for masks as STAPLE (Warfield et al. 2004): each rater has a confusion matrix, and the true class
is hidden. Three things are ours: votes are soft (a rater's log-likelihood is averaged over its probabilities), the
student and its average share one vote, and the statistics are averaged over batches (online EM, Cappe and Moulines
2009).

*On labels*: where images have labels, as the public set's have, reliability is measured, not learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        least: the ``s`` at which teacher and student have the same say, in [0, 1].

    Returns:
        (B,) float in [0, 1]: 1 is the rule ``teacher``, 0 the rule ``student``.
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


FLOOR = 1e-3
"""Rates and prevalences are kept this far from 0: no single rater ever decides beyond appeal."""

FIRST_RATE = 0.9
"""What every rater is believed before anything was seen."""


@dataclass(frozen=True)
class RaterRates:
    """What is known of R raters and K classes.

    Args:
        confusion: (R, K, K) float, ``confusion[r, k, j]`` is how often rater r says j where the truth is k.
        prevalence: (K,) float, the share of pixels of each class.
    """

    confusion: Tensor
    prevalence: Tensor

    @classmethod
    def equal(cls, raters: int, classes: int) -> RaterRates:
        """All raters right in :data:`FIRST_RATE` of the cases, all classes alike."""
        return cls.of(first_statistics(raters, classes))

    @classmethod
    def of(cls, statistics: Tensor) -> RaterRates:
        """The rates that statistics amount to: the M-step.

        Args:
            statistics: (R, K, K) float, shares of pixels by truth and answer; the prevalence is the teacher's, which
                is the first (the student's are mixed with those of the public images).
        """
        statistics = statistics.clamp(min=FLOOR * FLOOR)
        totals = statistics.sum(2, keepdim=True)
        prevalence = totals[0, :, 0].clamp(min=FLOOR)
        return cls((statistics / totals).clamp(min=FLOOR), prevalence / prevalence.sum())

    def sensitivity(self, rater: int) -> Tensor:
        """How often the rater names the foreground where it is, a scalar in [0, 1]."""
        inside = self.confusion[rater, 1:, 1:].sum(1)
        return (inside * self.prevalence[1:]).sum() / self.prevalence[1:].sum()

    def specificity(self, rater: int) -> Tensor:
        """How often it names the background where that is, a scalar in [0, 1]."""
        return self.confusion[rater, 0, 0]


def first_statistics(raters: int, classes: int) -> Tensor:
    """Statistics of raters of whom nothing was seen: (R, K, K) float, each summing to 1."""
    wrong = (1 - FIRST_RATE) / (classes - 1)
    rates = torch.full((classes, classes), wrong).fill_diagonal_(FIRST_RATE)
    return (rates / classes).expand(raters, -1, -1).clone()


def consensus(raters: Sequence[Tensor], rates: RaterRates) -> Tensor:
    """The hidden truth's probabilities given what the raters say: the E-step.

    ``log q_k = log prevalence_k + sum_r v_r sum_j p_r(j) log confusion_r(k, j)`` up to a constant. The first rater has
    the vote ``v = 1``; the others share one, since a student and its average mostly err together and would outvote the
    teacher by agreeing with each other.

    Args:
        raters: probabilities, teacher first, each (B, C, H, W) float in [0, 1].
        rates: of these raters in this order.

    Returns:
        (B, K, H, W) float in [0, 1] with K = max(2, C), summing to 1 over the classes.
    """
    said = [_classes(rater) for rater in raters]
    prevalence = rates.prevalence.to(said[0]).log().view(1, -1, 1, 1)
    evidence = prevalence.expand_as(said[0])
    for index, (probabilities, confusion) in enumerate(zip(said, rates.confusion, strict=True)):
        vote = 1.0 if index == 0 else 1.0 / (len(said) - 1)
        evidence = evidence + vote * torch.einsum("kj,bjhw->bkhw", confusion.to(probabilities).log(), probabilities)
    return evidence.softmax(dim=1)


def joint(truth: Tensor, said: Tensor) -> Tensor:
    """Mean over all pixels of P(truth is k) P(rater says j): (K, K) float that sums to 1.

    Args:
        truth: (B, C, H, W) float in [0, 1]; a binary label map is one with C = 1.
        said: the same, of a rater.
    """
    truth, said = _classes(truth), _classes(said)
    return torch.einsum("bkhw,bjhw->kj", truth, said.to(truth)) / (truth.numel() / truth.shape[1])


def em_step(
    statistics: Tensor,
    raters: Sequence[Tensor],
    *,
    step: float = 0.1,
    public: Tensor | None = None,
    anchor: float = 0.5,
) -> Tensor:
    """One step of online EM: new statistics from one batch.

    Args:
        statistics: (R, K, K) float, those so far.
        raters: as in :func:`consensus`; the student is the second.
        step: how far the average moves to this batch.
        public: (K, K) float, :func:`joint` of labels and the student's answers on the public images, or ``None``.
        anchor: how much the student's statistics are those of the public images, in [0, 1].
    """
    truth = consensus(raters, RaterRates.of(statistics))
    batch = torch.stack([joint(truth, rater) for rater in raters]).to(statistics)
    if public is not None:
        batch[1] = (1 - anchor) * batch[1] + anchor * public.to(batch)
    return statistics + step * (batch - statistics)


def _classes(probabilities: Tensor) -> Tensor:
    if probabilities.shape[1] > 1:
        return probabilities
    return torch.cat([1 - probabilities, probabilities], dim=1)


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
