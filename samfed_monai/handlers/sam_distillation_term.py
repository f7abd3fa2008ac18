"""The term that distils the teacher into the strong view where the agreed label is the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samfed_monai.errors import Problem, Refused
from samfed_monai.handlers.agreed_term import AgreedTerm
from samfed_monai.handlers.guidance import Guidance
from samfed_monai.losses import AgreementSettings, distillation_kl
from samfed_monai.losses.trust import LEAST_AGREEMENT

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor


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
        least_agreement: see :class:`PseudoLabelTerm`; an image counts by the trust of the rule ``adaptive`` in it.
        adaptive: whether each image counts by its reliability ``g``.
        temperature: ``T``.
        weight: factor of the term.
        schedule: how the factor changes over the rounds.
        fraction: part of the rounds in which a ramp rises.

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
        if not temperature > 0:
            where, expected = f"{self.where}#temperature", "a number > 0"
            raise Refused([Problem(where, found=repr(temperature), expected=expected)])
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
