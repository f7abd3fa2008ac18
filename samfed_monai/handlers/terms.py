"""The terms of SAM-Fed: pseudo-labels, distillation from SAM and from the global network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.validators import in_range, one_of, require
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.term import AgreedTerm, Term
from samfed_monai.losses import AgreementSettings, StructureLoss, distillation_kl, weighted_pseudo_label_loss
from samfed_monai.losses.reliability import LEAST_AGREEMENT

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor


_LOSSES: dict[str, Callable[..., Tensor]] = {"structure": StructureLoss(), "dice_ce": weighted_pseudo_label_loss}


class PseudoLabelTerm(AgreedTerm):
    """``lambda_u(t) L_pl``: the strong view's loss against agreed labels (docs/method.md, step 4).

    Also records ``reliability`` (mean ``g``) and ``agreement`` (share of pixels with one label).

    Args:
        name: under which the value is logged.
        teacher: guide that plays the teacher; ``weak`` when a rule needs none.
        student: guide that plays the student: its own ``weak`` view, or ``ema``.
        rule: a name in :data:`samfed_monai.losses.AGREEMENT_RULES`.
        tau: how sure the surer side must be where the two disagree.
        delta: how much surer than the other it must be there.
        least_agreement: for the rule ``trusted_average``, see :class:`samfed_monai.losses.AgreementSettings`.
        labels: ``soft`` keeps the probabilities of whoever decided a pixel; ``hard`` takes the class alone.
        loss: ``structure``, the supervised loss (:class:`samfed_monai.losses.StructureLoss`), or ``dice_ce``, cross
            entropy and soft Dice.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Example::

        {"_target_": "samfed_monai.handlers.PseudoLabelTerm", "teacher": "sam", "rule": "teacher", "weight": 1.0}
    """

    def __init__(
        self,
        *,
        name: str = "pseudo_label",
        teacher: str = "sam",
        student: str = "weak",
        rule: str = "teacher",
        tau: float = 0.9,
        delta: float = 0.1,
        least_agreement: float = LEAST_AGREEMENT,
        labels: str = "hard",
        loss: str = "dice_ce",
        weight: float = 1.0,
        schedule: str = "gaussian_ramp",
        fraction: float = 0.4,
    ) -> None:
        settings = AgreementSettings(teacher, student, rule, tau, delta, least_agreement, where=f"terms#{name}")
        super().__init__(settings, by_image=False, name=name, weight=weight, schedule=schedule, fraction=fraction)
        at = f"{self.where}#labels"
        require(one_of(at, labels, ["soft", "hard"]), one_of(f"{self.where}#loss", loss, _LOSSES))
        if labels == "soft" and loss == "dice_ce":
            hint = "set loss to structure, or labels to hard"
            raise Refused([Problem(at, found="'soft'", expected="'hard' beside the loss dice_ce", hint=hint)])
        self.labels, self.loss = labels, _LOSSES[loss]

    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """``L_pl``."""
        agreement = self.agreement(guidance, engine)
        label = agreement.soft_label if self.labels == "soft" else agreement.label
        return self.loss(guidance.student, label, agreement.weight)


class SamDistillationTerm(AgreedTerm):
    """``lambda_T g L_T``: ``T^2 KL(p_T || p_s)``, weighted per pixel and, by ``g``, per image (docs/method.md).

    A pixel counts with the agreement's weight where the label is the teacher's, and not at all where the student
    overruled it. Give it the rule, tau and delta of the pseudo-label term: the agreement is then computed once for
    both.

    Args:
        name: under which the value is logged.
        teacher: guide that is distilled.
        student: guide that plays the student in the agreement: ``weak`` or ``ema``.
        rule: a name in :data:`samfed_monai.losses.AGREEMENT_RULES`; ``teacher`` weighs all pixels alike.
        tau: see :class:`PseudoLabelTerm`.
        delta: see :class:`PseudoLabelTerm`.
        least_agreement: see :class:`PseudoLabelTerm`; an image counts by the trust of that rule in it.
        adaptive: whether each image counts by its reliability ``g``.
        temperature: ``T``.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: a temperature that is not positive.

    Example::

        {"_target_": "samfed_monai.handlers.SamDistillationTerm", "teacher": "sam", "weight": 1.0, "temperature": 2}
    """

    def __init__(
        self,
        *,
        name: str = "sam_kd",
        teacher: str = "sam",
        student: str = "weak",
        rule: str = "teacher",
        tau: float = 0.9,
        delta: float = 0.1,
        least_agreement: float = LEAST_AGREEMENT,
        adaptive: bool = True,
        temperature: float = 2.0,
        weight: float = 1.0,
        schedule: str = "constant",
        fraction: float = 0.4,
    ) -> None:
        settings = AgreementSettings(teacher, student, rule, tau, delta, least_agreement, where=f"terms#{name}")
        super().__init__(settings, by_image=adaptive, name=name, weight=weight, schedule=schedule, fraction=fraction)
        require(in_range(f"{self.where}#temperature", temperature, above=0))
        self.temperature = temperature

    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """``g L_T``."""
        agreement = self.agreement(guidance, engine)
        return distillation_kl(
            guidance.student,
            guidance.probabilities(self.settings.teacher, asked_by=self.where),
            self.temperature,
            weight=agreement.distillation_weight,
            scale=agreement.trust * agreement.reliability if self.by_image else agreement.trust,
        )


class GlobalDistillationTerm(Term):
    """``lambda_G L_G``: ``T^2 KL(p_G || p_s)`` over all pixels (docs/method.md, step 5, global-to-local transfer).

    Args:
        name: under which the value is logged.
        guide: guide that is distilled, the global network.
        temperature: ``T``.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: a temperature that is not positive.

    Example::

        {"_target_": "samfed_monai.handlers.GlobalDistillationTerm", "guide": "global", "weight": 0.1}
    """

    def __init__(
        self,
        *,
        name: str = "global_kd",
        guide: str = "global",
        temperature: float = 2.0,
        weight: float = 0.1,
        schedule: str = "constant",
        fraction: float = 0.4,
    ) -> None:
        super().__init__(name=name, weight=weight, schedule=schedule, fraction=fraction)
        require(in_range(f"{self.where}#temperature", temperature, above=0))
        self.guide, self.temperature = guide, temperature

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.guide,)

    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """``L_G``."""
        return distillation_kl(
            guidance.student, guidance.probabilities(self.guide, asked_by=self.where), self.temperature
        )
