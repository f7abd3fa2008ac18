"""Adaptive agreement: which pixels of an unlabelled image get which label, and how much they count (docs/method.md).

SAM-Fed's abstract (arXiv 2511.14302) names an "adaptive agreement mechanism", and a summary says of it "selecting or
weighting the supervisory signal based on contextual agreement and estimated confidence"; its method section was not at
hand, so the agreement rule is our reading. ``confidence`` is what that summary describes. The bundles take
``average``, of SAM and the round's global network; how far SAM is distilled is decided per image (``reliability``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from samfed_monai.errors import Problems
from samfed_monai.losses.agreement_rules import AGREEMENT_RULES, Opinions
from samfed_monai.losses.labels import dice_of_labels, hard_label
from samfed_monai.losses.rater_rates import RaterRates
from samfed_monai.losses.trust import LEAST_AGREEMENT


@dataclass(frozen=True)
class Agreement:
    """What a rule decided for a batch.

    Args:
        label: (B, 1, H, W) long, class indices (0 or 1 when there is one foreground class).
        weight: (B, 1, H, W) float in [0, 1]; 0 leaves a pixel out.
        reliability: (B,) float in [0, 1], how far the teacher can be believed on each image.
        agreed: (B, 1, H, W) bool, where teacher and student name the same class.
        of_teacher: (B, 1, H, W) bool, where the label is the one that the teacher names.
        soft_label: (B, C, H, W) float in [0, 1], the probabilities of whoever decided a pixel; of the rule ``average``
            the mean of both.
        trust: (B,) float in [0, 1], how far the teacher was trusted on each image; 1 where nothing was learned of it.
    """

    label: Tensor
    weight: Tensor
    reliability: Tensor
    agreed: Tensor
    of_teacher: Tensor
    soft_label: Tensor
    trust: Tensor

    @property
    def distillation_weight(self) -> Tensor:
        """``weight`` where the label is the teacher's, 0 where the student overruled it: (B, 1, H, W) float in [0, 1].

        What pulls a pixel towards the teacher's probabilities must not work against its label (docs/method.md, step 5).
        """
        return self.weight * self.of_teacher


@dataclass(frozen=True)
class AgreementSettings:
    """Whom to compare, and how: one object, so that terms of equal settings share one agreement.

    Args:
        teacher: guide that plays the teacher; ``weak`` when a rule needs none.
        student: guide that plays the student: its own ``weak`` view, ``ema``, or another guide.
        rule: a name in :data:`AGREEMENT_RULES`.
        tau: how sure the surer side must be where the two disagree, in [0, 1].
        delta: how much surer than the other it must be there, in [0, 1].
        least_agreement: for the rule ``adaptive``, the Dice with the student's sure pixels from which the teacher has
            the larger say, in [0, 1]; see :func:`samfed_monai.losses.trust.trust_of_images`.
        where: the place that a refusal names.

    Raises:
        Refused: an unknown rule, a threshold outside [0, 1]; all at once.
    """

    teacher: str = "sam"
    student: str = "weak"
    rule: str = "teacher"
    tau: float = 0.9
    delta: float = 0.1
    least_agreement: float = LEAST_AGREEMENT
    where: str = field(default="agreement", compare=False)

    def __post_init__(self) -> None:
        problems = Problems()
        with problems.collected():
            AGREEMENT_RULES.named(self.rule, where=f"{self.where}#rule")
        for name in ("tau", "delta", "least_agreement"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                problems.add(f"{self.where}#{name}", found=repr(value), expected="a number in [0, 1]")
        problems.refuse_if_any()


def agree(
    teacher: Tensor,
    student: Tensor,
    ema: Tensor | None = None,
    *,
    tau: float = 0.9,
    delta: float = 0.1,
    rule: str = "teacher",
    rates: RaterRates | None = None,
    trust: Tensor | None = None,
) -> Agreement:
    """Compares teacher and student pixel by pixel.

    The reliability of an image is ``g = Dice(y_T, y_c) x Dice(y_c, y_ema)`` (docs/method.md), whatever the rule;
    without an EMA its factor is 1. It does not enter ``label`` or ``weight``: the distillation term multiplies by it.

    Args:
        teacher: (B, C, H, W) float in [0, 1], the guide's probabilities (for the rule ``label``: the true label).
        student: (B, C, H, W) float in [0, 1], the student's own weak view.
        ema: (B, C, H, W) float in [0, 1], the weak view through the averaged student.
        tau: how sure the surer side must be where the two disagree.
        delta: how much surer than the other it must be there.
        rule: a name in :data:`AGREEMENT_RULES`.
        rates: what was learned of teacher, student and EMA at this site, for the rule ``reliability``; ``None`` takes
            all of them for equally good.
        trust: (B,) float in [0, 1], how far the teacher is to be trusted on each image, for the rule ``adaptive``;
            ``None`` is fully.

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
    label, weight, *soft = decide(Opinions(y_t, k_t, y_c, k_c, tau, delta, raters, rates, trust))
    reliability = dice_of_labels(y_t, y_c)
    if ema is not None:
        reliability = reliability * dice_of_labels(y_c, hard_label(ema)[0])
    of_teacher = label == y_t
    return Agreement(
        label=label,
        weight=weight,
        reliability=reliability,
        agreed=y_t == y_c,
        of_teacher=of_teacher,
        soft_label=soft[0] if soft else torch.where(of_teacher, teacher, student),
        trust=torch.ones_like(reliability) if trust is None else trust.to(reliability),
    )
