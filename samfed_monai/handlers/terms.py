"""The terms of SAM-Fed: pseudo-labels, distillation from SAM and from the global network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samfed_monai.core.errors import refused
from samfed_monai.core.validators import in_range, one_of, require
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.term import AgreedTerm, Term
from samfed_monai.losses import StructureLoss, distillation_kl, weighted_pseudo_label_loss

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor


_LOSSES: dict[str, Callable[..., Tensor]] = {"structure": StructureLoss(), "dice_ce": weighted_pseudo_label_loss}


@dataclass(kw_only=True, eq=False)
class PseudoLabelTerm(AgreedTerm):
    """``lambda_u(t) L_pl``: the strong view's loss against agreed labels (docs/method.md, step 4).

    Also records ``reliability`` (mean ``g``) and ``agreement`` (share of pixels with one label).

    Args:
        labels: ``soft`` keeps the probabilities of whoever decided a pixel; ``hard`` takes the class alone.
        loss: ``structure``, the supervised loss (:class:`samfed_monai.losses.StructureLoss`), or ``dice_ce``, cross
            entropy and soft Dice.
        teacher, student, rule, tau, delta, least_agreement, name, weight, schedule, fraction: see
            :class:`samfed_monai.handlers.term.AgreedTerm`.

    Example::

        {"_target_": "samfed_monai.handlers.PseudoLabelTerm", "teacher": "sam", "rule": "teacher", "weight": 1.0}
    """

    by_image = False

    name: str = "pseudo_label"
    labels: str = "hard"
    loss: str = "dice_ce"
    schedule: str = "gaussian_ramp"

    def __post_init__(self) -> None:
        super().__post_init__()
        at = f"{self.where}#labels"
        require(one_of(at, self.labels, ["soft", "hard"]), one_of(f"{self.where}#loss", self.loss, _LOSSES))
        if self.labels == "soft" and self.loss == "dice_ce":
            raise refused(at, "'soft'", "'hard' beside the loss dice_ce", "set loss to structure, or labels to hard")
        self._loss = _LOSSES[self.loss]

    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """``L_pl``."""
        agreement = self.agreement(guidance, engine)
        label = agreement.soft_label if self.labels == "soft" else agreement.label
        return self._loss(guidance.student, label, agreement.weight)


@dataclass(kw_only=True, eq=False)
class SamDistillationTerm(AgreedTerm):
    """``lambda_T g L_T``: ``T^2 KL(p_T || p_s)``, weighted per pixel and, by ``g``, per image (docs/method.md).

    A pixel counts with the agreement's weight where the label is the teacher's, and not at all where the student
    overruled it. Give it the rule, tau and delta of the pseudo-label term: the agreement is then computed once for
    both.

    Args:
        adaptive: whether each image counts by its reliability ``g``.
        temperature: ``T``.
        teacher, student, rule, tau, delta, least_agreement, name, weight, schedule, fraction: see
            :class:`samfed_monai.handlers.term.AgreedTerm`.

    Raises:
        Refused: a temperature that is not positive.

    Example::

        {"_target_": "samfed_monai.handlers.SamDistillationTerm", "teacher": "sam", "weight": 1.0, "temperature": 2}
    """

    name: str = "sam_kd"
    adaptive: bool = True
    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(in_range(f"{self.where}#temperature", self.temperature, above=0))
        self.by_image = self.adaptive

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


@dataclass(kw_only=True, eq=False)
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

    name: str = "global_kd"
    guide: str = "global"
    temperature: float = 2.0
    weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(in_range(f"{self.where}#temperature", self.temperature, above=0))

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.guide,)

    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """``L_G``."""
        return distillation_kl(
            guidance.student, guidance.probabilities(self.guide, asked_by=self.where), self.temperature
        )
