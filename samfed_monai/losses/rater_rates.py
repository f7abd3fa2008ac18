"""How often each rater is right at a site, learned without a label of that site: online EM over several raters.

The raters of a pixel are the teacher, the student and the averaged student. The model is Dawid and Skene's (1979),
known for masks as STAPLE (Warfield et al. 2004): each rater has a confusion matrix, and the true class is hidden. Three
things are ours: votes are soft (a rater's log-likelihood is averaged over its probabilities), the student and its
average share one vote, and the statistics are averaged over batches (online EM, Cappe and Moulines 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
