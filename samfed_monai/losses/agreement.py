"""Adaptive agreement: which pixels of an unlabelled image get which label, and how much they count (METHOD 3.3).

SAM-Fed (arXiv 2511.14302) names an "adaptive agreement mechanism" without its formula: the agreement rule is our
reading of the paper (``confidence`` is the default, the others are compared with it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from samfed_monai.errors import Problems, Refused
from samfed_monai.losses.rater_rates import RaterRates, consensus
from samfed_monai.registry import Registry


@dataclass(frozen=True)
class Agreement:
    """What a rule decided for a batch.

    Args:
        label: (B, 1, H, W) long, class indices (0 or 1 when there is one foreground class).
        weight: (B, 1, H, W) float in [0, 1]; 0 leaves a pixel out.
        reliability: (B,) float in [0, 1], how far the teacher can be believed on each image.
        agreed: (B, 1, H, W) bool, where teacher and student name the same class.
    """

    label: Tensor
    weight: Tensor
    reliability: Tensor
    agreed: Tensor


@dataclass(frozen=True)
class AgreementSettings:
    """Whom to compare, and how: one object, so that terms of equal settings share one agreement.

    Args:
        teacher: guide that plays the teacher; ``weak`` when a rule needs none.
        student: guide that plays the student: its own ``weak`` view, ``ema``, or another guide.
        rule: a name in :data:`AGREEMENT_RULES`.
        tau: how sure the surer side must be where the two disagree, in [0, 1].
        delta: how much surer than the other it must be there, in [0, 1].
        where: the place that a refusal names.

    Raises:
        Refused: an unknown rule, a threshold outside [0, 1]; all at once.
    """

    teacher: str = "sam"
    student: str = "weak"
    rule: str = "confidence"
    tau: float = 0.9
    delta: float = 0.1
    where: str = field(default="agreement", compare=False)

    def __post_init__(self) -> None:
        problems = Problems()
        try:
            AGREEMENT_RULES[self.rule]
        except Refused as refused:
            problems.extend(refused.problems)
        for name, value in (("tau", self.tau), ("delta", self.delta)):
            if not 0 <= value <= 1:
                problems.add(f"{self.where}#{name}", found=repr(value), expected="a number in [0, 1]")
        problems.refuse_if_any()


@dataclass(frozen=True)
class Opinions:
    """What a rule decides from.

    Args:
        teacher_label, student_label: (B, 1, H, W) long.
        teacher_confidence, student_confidence: (B, 1, H, W) float in [0, 1].
        tau, delta: the thresholds.
        raters: probabilities of teacher, student and, where there is one, the averaged student, each (B, C, H, W).
        rates: what was learned of these raters at this site; ``None`` when nothing was.
    """

    teacher_label: Tensor
    teacher_confidence: Tensor
    student_label: Tensor
    student_confidence: Tensor
    tau: float
    delta: float
    raters: tuple[Tensor, ...] = ()
    rates: RaterRates | None = None


AGREEMENT_RULES: Registry[Callable[[Opinions], tuple[Tensor, Tensor]]] = Registry("agreement rule")
"""Rules by name: from :class:`Opinions` to ``(label, weight)``, both (B, 1, H, W)."""


def hard_label(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The class of each pixel and ``k``, the probability given to it.

    Args:
        probabilities: (B, C, H, W) float in [0, 1]; C = 1 is the foreground's, C > 1 sums to 1.

    Returns:
        (B, 1, H, W) long and (B, 1, H, W) float; for C = 1, ``y = 1[p > 0.5]`` and ``k = max(p, 1 - p)``.
    """
    if probabilities.shape[1] == 1:
        return (probabilities > 0.5).long(), torch.maximum(probabilities, 1 - probabilities)
    confidence, label = probabilities.max(dim=1, keepdim=True)
    return label, confidence


def dice_of_labels(first: Tensor, second: Tensor) -> Tensor:
    """Dice of two label maps per image, over all foreground classes together; 1 where both are empty.

    Args:
        first: (B, 1, H, W) long, 0 is the background.
        second: the same.

    Returns:
        (B,) float in [0, 1].
    """
    pixels = (1, 2, 3)
    overlap = ((first == second) & (first > 0)).sum(pixels)
    total = (first > 0).sum(pixels) + (second > 0).sum(pixels)
    return torch.where(total > 0, 2.0 * overlap / total.clamp(min=1), 1.0)


def agree(
    teacher: Tensor,
    student: Tensor,
    ema: Tensor | None = None,
    *,
    tau: float = 0.9,
    delta: float = 0.1,
    rule: str = "confidence",
    rates: RaterRates | None = None,
) -> Agreement:
    """Compares teacher and student pixel by pixel.

    The reliability of an image is ``g = Dice(y_T, y_c) x Dice(y_c, y_ema)`` (METHOD 3.3), whatever the rule; without
    an EMA its factor is 1. It does not enter ``label`` or ``weight``: the distillation term multiplies by it.

    Args:
        teacher: (B, C, H, W) float in [0, 1], the guide's probabilities (for the rule ``label``: the true label).
        student: (B, C, H, W) float in [0, 1], the student's own weak view.
        ema: (B, C, H, W) float in [0, 1], the weak view through the averaged student.
        tau: how sure the surer side must be where the two disagree.
        delta: how much surer than the other it must be there.
        rule: a name in :data:`AGREEMENT_RULES`.
        rates: what was learned of teacher, student and EMA at this site, for the rule ``reliability``; ``None`` takes
            all of them for equally good.

    Raises:
        Refused: an unknown rule.
        ValueError: shapes that differ.
    """
    decide = AGREEMENT_RULES[rule]
    if teacher.shape != student.shape or (ema is not None and ema.shape != student.shape):
        shapes = [tuple(each.shape) for each in (teacher, student, ema) if each is not None]
        raise ValueError(f"agree: expected probabilities of one shape, found {shapes}")
    y_t, k_t = hard_label(teacher)
    y_c, k_c = hard_label(student)
    raters = (teacher, student) if ema is None else (teacher, student, ema)
    label, weight = decide(Opinions(y_t, k_t, y_c, k_c, tau, delta, raters, rates))
    reliability = dice_of_labels(y_t, y_c)
    if ema is not None:
        reliability = reliability * dice_of_labels(y_c, hard_label(ema)[0])
    return Agreement(label=label, weight=weight, reliability=reliability, agreed=y_t == y_c)


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
def _average(o: Opinions) -> tuple[Tensor, Tensor]:
    """The class of the mean of both sides' probabilities, weighted by the probability that the mean gives to it."""
    return hard_label((o.raters[0] + o.raters[1]) / 2)


@AGREEMENT_RULES.register("reliability")
def _reliability(o: Opinions) -> tuple[Tensor, Tensor]:
    """The class that the raters' rates at this site make most likely; undecided pixels count 0, certain ones 1 (ours).

    See :mod:`samfed_monai.losses.rater_rates`.
    """
    classes = max(2, o.raters[0].shape[1])
    confidence, label = consensus(o.raters, o.rates or RaterRates.equal(len(o.raters), classes)).max(1, keepdim=True)
    return label, (classes * confidence - 1).clamp(min=0) / (classes - 1)


@AGREEMENT_RULES.register("teacher")
def _teacher(o: Opinions) -> tuple[Tensor, Tensor]:
    """The teacher's label everywhere, weight 1: what is left when agreement is taken away (ablation)."""
    return o.teacher_label, torch.ones_like(o.teacher_confidence)


@AGREEMENT_RULES.register("student")
def _student(o: Opinions) -> tuple[Tensor, Tensor]:
    """The student's own label where it is sure (tau), as FixMatch does (Sohn et al. 2020); no teacher."""
    return o.student_label, (o.student_confidence > o.tau).to(o.student_confidence.dtype)


@AGREEMENT_RULES.register("label")
def _label(o: Opinions) -> tuple[Tensor, Tensor]:
    """The true label, given in the teacher's place, weight 1: the oracle."""
    return o.teacher_label, torch.ones_like(o.teacher_confidence)
