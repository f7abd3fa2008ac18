"""The term that trains the strong view on agreed labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samfed_monai.handlers.agreed_term import AgreedTerm
from samfed_monai.handlers.guidance import Guidance
from samfed_monai.losses import AgreementSettings, weighted_pseudo_label_loss
from samfed_monai.losses.trust import LEAST_AGREEMENT

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor


class PseudoLabelTerm(AgreedTerm):
    """``lambda_u(t) L_pl``: cross entropy and soft Dice of the strong view against agreed labels (docs/method.md).

    Also records ``reliability`` (mean ``g``) and ``agreement`` (share of pixels with one label).

    Args:
        name: under which the value is logged.
        teacher: guide that plays the teacher; ``weak`` when a rule needs none.
        student: guide that plays the student: its own ``weak`` view, or ``ema``.
        rule: a name in :data:`samfed_monai.losses.AGREEMENT_RULES`.
        tau: how sure the surer side must be where the two disagree.
        delta: how much surer than the other it must be there.
        least_agreement: for the rule ``adaptive``, see :class:`samfed_monai.losses.AgreementSettings`.
        weight: factor of the term.
        schedule: how the factor changes over the rounds.
        fraction: part of the rounds in which a ramp rises.

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
        weight: float = 1.0,
        schedule: str = "gaussian_ramp",
        fraction: float = 0.4,
    ) -> None:
        settings = AgreementSettings(teacher, student, rule, tau, delta, least_agreement, where=f"terms#{name}")
        super().__init__(settings, by_image=False, name=name, weight=weight, schedule=schedule, fraction=fraction)

    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """``L_pl``."""
        agreement = self.agreement(guidance, engine)
        return weighted_pseudo_label_loss(guidance.student, agreement.label, agreement.weight)
