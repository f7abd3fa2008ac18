"""Adaptive agreement: the pseudo-label and weight of each pixel of an unlabelled image.

SAM-Fed's abstract (arXiv 2511.14302) names an "adaptive agreement mechanism", which a summary describes as "selecting
or weighting the supervisory signal based on contextual agreement and estimated confidence"; its method section was not
available, so the agreement rule is our reading. ``confidence`` follows that summary. The bundles use
``trusted_average``: the mean of the round's global network and of SAM, weighted by agreement at the site; the weight of
SAM's distillation is set per image (``trust`` and ``reliability``).

*Trust* is a teacher's reliability, estimated without labels of the site. The reference is the student's sure pixels. A
student that was warmed up on public labels is right about most pixels of which it is sure, even if it is poor on the
rest; FixMatch therefore learns only from these (Sohn et al. 2020, arXiv 2001.07685). A teacher that contradicts it
there is probably wrong; pixels of which the student is unsure are not evidence. Neither an averaged student nor a label
is used. For images with labels, such as the public set, reliability is measured (:func:`image_reliability`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from torch import Tensor

from samfed_monai.core.errors import Problem
from samfed_monai.core.registry import Registry
from samfed_monai.core.validators import in_range, one_of, require
from samfed_monai.losses.pixelwise import dice_of_labels, hard_label

LEAST_AGREEMENT = 0.7
"""A Dice above this is called a good overlap (Zijdenbos et al. 1994, as quoted by Zou et al. 2004)."""

WIDTH = 0.1
"""Trust is 0 this far below that Dice and 1 this far above it, so that labels do not change with their full weight."""


def sure_agreement(teacher_label: Tensor, student_label: Tensor, sure: Tensor) -> tuple[Tensor, Tensor]:
    """Dice of teacher and student over the student's sure pixels, and the images on which it is meaningful.

    These are images with sure foreground. If the student is sure only of background, the image is evidence neither for
    a teacher that finds nothing nor against one that finds something that the student missed.

    Args:
        teacher_label, student_label: (B, 1, H, W) long, 0 is the background.
        sure: (B, 1, H, W) bool.

    Returns:
        (B,) float in [0, 1], and (B,) bool.
    """
    sure_label = student_label * sure
    return dice_of_labels(teacher_label * sure, sure_label), (sure_label > 0).flatten(1).any(dim=1)


def trust_of_images(image: Tensor, site: Tensor, least: float = LEAST_AGREEMENT) -> Tensor:
    """Trust in the teacher on each image, from the agreement on the image and at the whole site, with equal weights.

    ``t = clip((s - least) / (2 WIDTH) + 1/2)`` with ``s = (image + site) / 2``. If the agreement at the site is high,
    only a clear contradiction reduces the trust on an image; if it is low, no single image restores trust.

    Args:
        image: (B,) float in [0, 1], from :func:`sure_agreement`; the site's value if that is not meaningful.
        site: scalar in [0, 1], its mean over the site's images.
        least: the ``s`` at which trust is one half, in [0, 1].

    Returns:
        (B,) float in [0, 1]: at 1 the teacher has as much weight as the student, at 0 none.
    """
    return (((image + site) / 2 - least) / (2 * WIDTH) + 0.5).clamp(0, 1)


class SiteAgreement:
    """Running mean of :func:`sure_agreement` over all images on which it is meaningful, independent of batches."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count: Tensor | None = None

    def add(self, dice: Tensor, meaningful: Tensor) -> Tensor:
        """Adds (B,) Dice and (B,) bool and returns the mean, a scalar; 1 if there is no image yet."""
        total, count = (dice * meaningful).sum(), meaningful.sum()
        self._sum = total if self._sum is None else self._sum + total
        self._count = count if self._count is None else self._count + count
        return torch.where(self._count > 0, self._sum / self._count.clamp(min=1), 1.0)


class Reliability(str, Enum):
    """Measures of how well soft masks of labelled images match their labels."""

    DICE = "dice"
    PIXEL_ACCURACY = "pixel_accuracy"


def image_reliability(probabilities: Tensor, labels: Tensor, measure: str = "dice") -> Tensor:
    """Reliability of each image's prediction, measured with its label.

    ``dice`` is ours: accuracy, which HSSF's code uses (Ma et al., TMI 2024), rewards an empty mask on an image with a
    small lesion.

    Args:
        probabilities: (N, C, H, W) float in [0, 1].
        labels: (N, 1, H, W), class indices (0 or 1 for C = 1); or (N, C, H, W), a plane of 0 and 1 for the background
            and for each class, exactly one of them 1 in every pixel (:func:`samfed_monai.data.classes.planes_of`).
        measure: ``dice`` or ``pixel_accuracy``.

    Returns:
        (N,) float in [0, 1].

    Raises:
        ValueError: an unknown measure.
    """
    predicted = hard_label(probabilities)[0]
    truth = (labels.argmax(dim=1, keepdim=True) if labels.shape[1] > 1 else labels).long()
    if Reliability(measure) is Reliability.PIXEL_ACCURACY:
        return (predicted == truth).float().mean(dim=(1, 2, 3))
    return dice_of_labels(predicted, truth)


@dataclass(frozen=True)
class AgreementInputs:
    """Inputs of an agreement rule.

    Args:
        teacher_label, student_label: (B, 1, H, W) long.
        teacher_confidence, student_confidence: (B, 1, H, W) float in [0, 1].
        tau, delta: the thresholds.
        teacher, student: their probabilities, (B, C, H, W).
        trust: (B,) float in [0, 1], trust in the teacher on each image; ``None`` is 1.
    """

    teacher_label: Tensor
    teacher_confidence: Tensor
    student_label: Tensor
    student_confidence: Tensor
    tau: float
    delta: float
    teacher: Tensor
    student: Tensor
    trust: Tensor | None = None


AGREEMENT_RULES: Registry[Callable[[AgreementInputs], tuple[Tensor, ...]]] = Registry("agreement rule")
"""Rules by name: functions of :class:`AgreementInputs` that return ``(label, weight)``, both (B, 1, H, W).

A rule may return a soft label of its own as a third result, (B, C, H, W) in [0, 1]; the default is the probabilities of
the side with the chosen label.
"""


@AGREEMENT_RULES.register("confidence")
def _confidence(inputs: AgreementInputs) -> tuple[Tensor, Tensor]:
    """Common label, mean confidence; else the surer side's, with weight 0 unless sure (tau) and surer (delta)."""
    teacher_confidence, student_confidence = inputs.teacher_confidence, inputs.student_confidence
    same = inputs.teacher_label == inputs.student_label
    highest = torch.maximum(teacher_confidence, student_confidence)
    clear = (highest > inputs.tau) & ((teacher_confidence - student_confidence).abs() > inputs.delta)
    label = torch.where(same | (teacher_confidence > student_confidence), inputs.teacher_label, inputs.student_label)
    return label, torch.where(same, (teacher_confidence + student_confidence) / 2, highest * clear)


@AGREEMENT_RULES.register("average")
def _average(inputs: AgreementInputs) -> tuple[Tensor, ...]:
    """The class of the mean of both sides' probabilities, weighted by its mean probability."""
    return _trusted_average(replace(inputs, trust=None))


@AGREEMENT_RULES.register("trusted_average")
def _trusted_average(inputs: AgreementInputs) -> tuple[Tensor, ...]:
    """The class of ``(t p_T + p_c) / (1 + t)``, weighted by its probability there (ours).

    Trust ``t = 1`` is the rule ``average``; with ``t = 0`` only the student decides.
    """
    teacher = inputs.teacher
    t = teacher.new_ones(1) if inputs.trust is None else inputs.trust.to(teacher.dtype).view(-1, 1, 1, 1)
    mean = (t * teacher + inputs.student) / (1 + t)
    return (*hard_label(mean), mean)


@AGREEMENT_RULES.register("teacher")
@AGREEMENT_RULES.register("label")
def _teacher(inputs: AgreementInputs) -> tuple[Tensor, Tensor]:
    """The teacher's label with weight 1 everywhere; reliability is taken into account per image only.

    For ``label``, the oracle, the teacher is the true label.
    """
    return inputs.teacher_label, torch.ones_like(inputs.teacher_confidence)


@AGREEMENT_RULES.register("student")
def _student(inputs: AgreementInputs) -> tuple[Tensor, Tensor]:
    """The student's own label where it is sure (``tau``), as in FixMatch (Sohn et al. 2020); no teacher."""
    return inputs.student_label, (inputs.student_confidence > inputs.tau).to(inputs.student_confidence.dtype)


THRESHOLDS = {"tau": 0.9, "delta": 0.1, "least_agreement": LEAST_AGREEMENT}
"""Thresholds of :class:`AgreementSettings` and their defaults."""

READ_BY_RULE: dict[str, Sequence[str]] = {
    "confidence": ("tau", "delta"),
    "trusted_average": ("tau", "least_agreement"),
    "student": ("tau",),
    **dict.fromkeys(("average", "teacher", "label"), ()),
}
"""The :data:`THRESHOLDS` that each rule of this package reads."""


@dataclass(frozen=True)
class Agreement:
    """Result of an agreement rule for a batch.

    Args:
        label: (B, 1, H, W) long, class indices (0 or 1 for one foreground class).
        weight: (B, 1, H, W) float in [0, 1]; 0 leaves a pixel out.
        reliability: (B,) float in [0, 1], reliability of the teacher on each image.
        agreed: (B, 1, H, W) bool, pixels on which teacher and student have the same class.
        of_teacher: (B, 1, H, W) bool, pixels whose label is the teacher's.
        soft_label: (B, C, H, W) float in [0, 1], the probabilities of the side that decided a pixel; for the averaging
            rules the mean of both.
        trust: (B,) float in [0, 1], trust in the teacher on each image; 1 if it was not estimated.
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

        Distillation must not pull a pixel towards another class than its label (docs/method.md, step 5).
        """
        return self.weight * self.of_teacher


@dataclass(frozen=True)
class AgreementSettings:
    """Guides to compare, rule and thresholds; terms with equal settings share one agreement.

    Args:
        teacher: guide used as teacher; ``weak`` if a rule needs none.
        student: guide used as student: its own ``weak`` view, ``ema``, or another guide.
        rule: a name in :data:`AGREEMENT_RULES`.
        tau: for the rule ``confidence``, the confidence that the more confident side needs where the two disagree; for
            ``trusted_average`` and ``student``, the confidence above which the student is sure of a pixel; in [0, 1].
        delta: for the rule ``confidence``, the lead in confidence that the more confident side needs there, in [0, 1].
        least_agreement: for the rule ``trusted_average``, the Dice with the student's sure pixels at which the teacher
            has half of the student's weight, in [0, 1]; see :func:`trust_of_images`.
        where: the place for error messages.

    Raises:
        Refused: an unknown rule, thresholds outside [0, 1], and thresholds that are set but that the rule does not
            read (not checked for your own rules); all at once.
    """

    teacher: str = "sam"
    student: str = "weak"
    rule: str = "teacher"
    tau: float = THRESHOLDS["tau"]
    delta: float = THRESHOLDS["delta"]
    least_agreement: float = THRESHOLDS["least_agreement"]
    where: str = field(default="agreement", compare=False)

    def __post_init__(self) -> None:
        problems = one_of(f"{self.where}#rule", self.rule, AGREEMENT_RULES)
        read = READ_BY_RULE.get(str(self.rule), THRESHOLDS)
        for name, default in THRESHOLDS.items():
            where, value = f"{self.where}#{name}", getattr(self, name)
            problems += in_range(where, value, least=0, most=1)
            if name not in read and value != default:
                rules = " or ".join(rule for rule, names in READ_BY_RULE.items() if name in names)
                expected, hint = f"{default}, as the rule {self.rule} does not use it", f"or set rule to {rules}"
                problems.append(Problem(where, repr(value), expected, f"remove it, {hint}"))
        require(problems)


def agree(
    teacher: Tensor,
    student: Tensor,
    ema: Tensor | None = None,
    *,
    tau: float = 0.9,
    delta: float = 0.1,
    rule: str = "teacher",
    trust: Tensor | None = None,
) -> Agreement:
    """Compares teacher and student pixel by pixel.

    For all rules, the reliability of an image is ``g = Dice(y_T, y_c) x Dice(y_c, y_ema)`` (docs/method.md); without an
    EMA its factor is 1. ``label`` and ``weight`` do not depend on it; the distillation term multiplies by it.

    Args:
        teacher: (B, C, H, W) float in [0, 1], the guide's probabilities (for the rule ``label``: the true label).
        student: (B, C, H, W) float in [0, 1], the student's own weak view.
        ema: (B, C, H, W) float in [0, 1], the averaged student's probabilities of the weak view.
        tau, delta: thresholds of the rules ``confidence`` and ``student``, see :class:`AgreementSettings`.
        rule: a name in :data:`AGREEMENT_RULES`.
        trust: (B,) float in [0, 1], trust in the teacher on each image, for the rule ``trusted_average``; ``None``
            is 1.

    Raises:
        Refused: an unknown rule.
        ValueError: different shapes.
    """
    decide = AGREEMENT_RULES[rule]
    if teacher.shape != student.shape or (ema is not None and ema.shape != student.shape):
        shapes = [tuple(each.shape) for each in (teacher, student, ema) if each is not None]
        raise ValueError(f"agree: expected probabilities of one shape, found {shapes}")
    y_t, k_t = hard_label(teacher)
    y_c, k_c = hard_label(student)
    label, weight, *soft = decide(AgreementInputs(y_t, k_t, y_c, k_c, tau, delta, teacher, student, trust))
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
