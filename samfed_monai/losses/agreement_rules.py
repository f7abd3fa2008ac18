"""The rules of adaptive agreement: from two opinions of a pixel to a label and a weight (docs/method.md, step 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samfed_monai.losses.labels import hard_label
from samfed_monai.losses.rater_rates import RaterRates, consensus
from samfed_monai.registry import Registry


@dataclass(frozen=True)
class Opinions:
    """What a rule decides from.

    Args:
        teacher_label, student_label: (B, 1, H, W) long.
        teacher_confidence, student_confidence: (B, 1, H, W) float in [0, 1].
        tau, delta: the thresholds.
        raters: probabilities of teacher, student and, where there is one, the averaged student, each (B, C, H, W).
        rates: what was learned of these raters at this site; ``None`` when nothing was.
        trust: (B,) float in [0, 1], how far the teacher is to be trusted on each image; ``None`` is fully.
    """

    teacher_label: Tensor
    teacher_confidence: Tensor
    student_label: Tensor
    student_confidence: Tensor
    tau: float
    delta: float
    raters: tuple[Tensor, ...] = ()
    rates: RaterRates | None = None
    trust: Tensor | None = None


AGREEMENT_RULES: Registry[Callable[[Opinions], tuple[Tensor, ...]]] = Registry("agreement rule")
"""Rules by name: from :class:`Opinions` to ``(label, weight)``, both (B, 1, H, W).

A rule whose soft label is not that of the side which names the label returns it as a third, (B, C, H, W) in [0, 1].
"""


WITHOUT_AVERAGE = frozenset({"adaptive", "average", "confidence", "intersection", "label", "student", "teacher"})
"""Rules that look at teacher and student alone; any other may look at the averaged student, too."""


@AGREEMENT_RULES.register("confidence")
def _confidence(o: Opinions) -> tuple[Tensor, Tensor]:
    """Agreed: that label, mean confidence. Otherwise the surer side's, if sure (tau) and surer (delta), else 0."""
    k_t, k_c = o.teacher_confidence, o.student_confidence
    agreed = o.teacher_label == o.student_label
    surer = torch.maximum(k_t, k_c)
    decided = (surer > o.tau) & ((k_t - k_c).abs() > o.delta)
    label = torch.where(agreed | (k_t > k_c), o.teacher_label, o.student_label)
    return label, torch.where(agreed, (k_t + k_c) / 2, surer * decided)


@AGREEMENT_RULES.register("intersection")
def _intersection(o: Opinions) -> tuple[Tensor, Tensor]:
    """Only pixels on which both agree, with their mean confidence."""
    mean = (o.teacher_confidence + o.student_confidence) / 2
    return o.teacher_label, mean * (o.teacher_label == o.student_label)


@AGREEMENT_RULES.register("average")
def _average(o: Opinions) -> tuple[Tensor, ...]:
    """The class of the mean of both sides' probabilities, weighted by the probability that the mean gives to it."""
    mean = (o.raters[0] + o.raters[1]) / 2
    return (*hard_label(mean), mean)


@AGREEMENT_RULES.register("reliability")
def _reliability(o: Opinions) -> tuple[Tensor, Tensor]:
    """The class that the raters' rates at this site make most likely; undecided pixels count 0, certain ones 1 (ours).

    See :mod:`samfed_monai.losses.rater_rates`.
    """
    classes = max(2, o.raters[0].shape[1])
    confidence, label = consensus(o.raters, o.rates or RaterRates.equal(len(o.raters), classes)).max(1, keepdim=True)
    return label, (classes * confidence - 1).clamp(min=0) / (classes - 1)


@AGREEMENT_RULES.register("adaptive")
def _adaptive(o: Opinions) -> tuple[Tensor, Tensor]:
    """A vote (ours): the teacher has ``t``, the student ``1 - t`` where it is sure (tau); the margin is the weight.

    ``t = 1`` is the rule ``teacher``, ``t = 0`` the rule ``student``. See :mod:`samfed_monai.losses.trust`.
    """
    sure = (o.student_confidence > o.tau).to(o.student_confidence.dtype)
    teacher = torch.ones_like(sure) if o.trust is None else o.trust.to(sure.dtype).view(-1, 1, 1, 1).expand_as(sure)
    student = (1 - teacher) * sure
    label = torch.where(teacher > student, o.teacher_label, o.student_label)
    return label, torch.where(o.teacher_label == o.student_label, teacher + student, (teacher - student).abs())


@AGREEMENT_RULES.register("teacher")
def _teacher(o: Opinions) -> tuple[Tensor, Tensor]:
    """The teacher's label everywhere, weight 1; how far it is believed is decided per image alone."""
    return o.teacher_label, torch.ones_like(o.teacher_confidence)


@AGREEMENT_RULES.register("student")
def _student(o: Opinions) -> tuple[Tensor, Tensor]:
    """The student's own label where it is sure (tau), as FixMatch does (Sohn et al. 2020); no teacher."""
    return o.student_label, (o.student_confidence > o.tau).to(o.student_confidence.dtype)


@AGREEMENT_RULES.register("label")
def _label(o: Opinions) -> tuple[Tensor, Tensor]:
    """The true label, given in the teacher's place, weight 1: the oracle."""
    return o.teacher_label, torch.ones_like(o.teacher_confidence)
