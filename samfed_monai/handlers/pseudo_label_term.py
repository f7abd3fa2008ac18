"""The term that trains the strong view on agreed labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samfed_monai.errors import Problems, did_you_mean
from samfed_monai.handlers.agreed_term import AgreedTerm
from samfed_monai.handlers.guidance import Guidance
from samfed_monai.losses import AgreementSettings, StructureLoss, weighted_pseudo_label_loss
from samfed_monai.losses.trust import LEAST_AGREEMENT

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor

_LOSSES = {"structure": StructureLoss(), "dice_ce": weighted_pseudo_label_loss}


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
        least_agreement: for the rule ``adaptive``, see :class:`samfed_monai.losses.AgreementSettings`.
        labels: ``soft`` keeps the probabilities of whoever decided a pixel; ``hard`` takes the class alone.
        loss: ``structure``, the supervised loss (:class:`samfed_monai.losses.StructureLoss`), or ``dice_ce``, cross
            entropy and soft Dice.
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
        labels: str = "hard",
        loss: str = "dice_ce",
        weight: float = 1.0,
        schedule: str = "gaussian_ramp",
        fraction: float = 0.4,
    ) -> None:
        settings = AgreementSettings(teacher, student, rule, tau, delta, least_agreement, where=f"terms#{name}")
        super().__init__(settings, by_image=False, name=name, weight=weight, schedule=schedule, fraction=fraction)
        problems = Problems()
        for key, found, known in (("labels", labels, ("soft", "hard")), ("loss", loss, tuple(_LOSSES))):
            if found not in known:
                mend = did_you_mean(str(found), known) or "take one of them"
                problems.add(f"{self.where}#{key}", found=repr(found), expected=f"one of {list(known)}", mend=mend)
        if labels == "soft" and loss == "dice_ce":
            mend = "set loss to structure, or labels to hard"
            problems.add(f"{self.where}#labels", found="'soft'", expected="'hard' beside the loss dice_ce", mend=mend)
        problems.refuse_if_any()
        self.labels, self.loss = labels, _LOSSES[loss]

    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """``L_pl``."""
        agreement = self.agreement(guidance, engine)
        label = agreement.soft_label if self.labels == "soft" else agreement.label
        return self.loss(guidance.student, label, agreement.weight)
