"""Terms of the loss: ``Term``, named and scheduled; ``AgreedTerm``, on the agreement of guides; those of SAM-Fed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.registry import Registry
from samfed_monai.core.validators import POSITIVE, in_range, one_of, require
from samfed_monai.handlers.guide import OWN_VIEWS, Guidance, no_stream, register_reads, unknown_guide
from samfed_monai.handlers.records import record, record_supervised
from samfed_monai.handlers.rounds import round_of, when_round_starts
from samfed_monai.losses import (
    Agreement,
    AgreementSettings,
    StructureLoss,
    distillation_kl,
    hard_label,
    sure_agreement,
    trust_of_images,
    weighted_pseudo_label_loss,
)
from samfed_monai.losses.agreement import THRESHOLDS, SiteAgreement
from samfed_monai.networks.features import LastFeatures

Schedule = Callable[..., float]
"""``schedule(round, rounds, fraction=0.4) -> float`` with ``round`` counted from 0."""

SCHEDULES: Registry[Schedule] = Registry("schedule")


@SCHEDULES.register("constant")
def constant(round: int, rounds: int, fraction: float = 0.4) -> float:
    """1 in every round."""
    return 1.0


@SCHEDULES.register("gaussian_ramp")
def gaussian_ramp(round: int, rounds: int, fraction: float = 0.4) -> float:
    """``exp(-5 (1 - t)^2)`` with ``t`` going from 0 to 1 over the first ``fraction`` of the rounds, then 1.

    Args:
        round: this round, counted from 0.
        rounds: number of rounds of the run.
        fraction: part of the run in which the weight rises (docs/method.md, step 6; the curve is Laine & Aila 2017's).
    """
    length = fraction * rounds
    progress = 1.0 if length < 1 else min(1.0, round / length)  # no ramp if it is shorter than one round
    return math.exp(-5.0 * (1.0 - progress) ** 2)


@dataclass(kw_only=True, eq=False)
class Term(ABC):
    """Adds ``weight * schedule(round, rounds) * value(guidance)`` to the loss before it is back-propagated.

    The value itself, without weight, is recorded under the term's name. A new term subclasses this, lists the guides
    that it uses, if any, in ``needs``, and is named in the bundle's ``terms``. A term that only uses the labelled batch
    or the weights sets ``unlabelled = False``: it also works without a stream, with ``None`` as guidance.

    Args:
        name: name under which the value is logged.
        weight: factor >= 0.
        schedule: a name in :data:`samfed_monai.handlers.SCHEDULES`.
        fraction: part of the rounds in which a ramp rises.

    Raises:
        Refused: a negative weight, an unknown schedule; at ``STARTED``, a missing guide.
    """

    unlabelled = True
    #: Whether the value assumes that a round starts with the server's weights, whatever guides it reads.
    of_server = False
    #: Functions of a network and this term's place that refuse networks which the term does not support.
    of_network: ClassVar[Sequence[Callable[[Any, str], None]]] = ()
    #: Checks by option, functions of the option's place and value (:mod:`samfed_monai.core.validators`).
    checks: ClassVar[dict[str, Callable[[str, Any], list[Problem]]]] = {}

    name: str
    weight: float = 1.0
    schedule: str = "constant"
    fraction: float = 0.4

    def __post_init__(self) -> None:
        require(
            in_range(f"{self.where}#weight", self.weight, least=0),
            in_range(f"{self.where}#fraction", self.fraction, "a fraction", least=0, most=1),
            one_of(f"{self.where}#schedule", self.schedule, SCHEDULES),
            *(check(f"{self.where}#{option}", getattr(self, option)) for option, check in self.checks.items()),
        )
        self._schedule = SCHEDULES[self.schedule]

    @property
    def where(self) -> str:
        """The term's place in the bundle, for messages."""
        return f"terms#{self.name}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the guides that this term requires; none by default."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the guides that the value depends on: those of :attr:`needs`, and optional ones.

        Guides of networks that no term reads are not computed.
        """
        return self.needs

    @abstractmethod
    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """The term as a scalar >= 0 with gradient, without its weight."""

    def attach(self, engine: Any) -> None:
        """Binds the term to a MONAI trainer."""
        register_reads(engine, self.reads)
        engine.add_event_handler(Events.STARTED, self.check)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def check(self, engine: Any) -> None:
        """Refuses, before any work, a trainer without the guides, stream or network that this term needs."""
        known = getattr(engine.state, "guide_names", None)
        if known is not None:
            require(self.missing_guides(known))
        elif self.unlabelled:
            require([no_stream(self.where)])
        for require_fit in self.of_network:
            require_fit(engine.network, self.where)

    def missing_guides(self, known: Collection[str]) -> list[Problem]:
        """Problems for the guides that this term requires and that are not in ``known``."""
        missing = dict.fromkeys(name for name in self.needs if name not in known and name not in OWN_VIEWS)
        return [unknown_guide(name, known, self.where) for name in missing]

    def __call__(self, engine: Any) -> None:
        """Adds the term to ``engine.state.output["loss"]``."""
        record_supervised(engine)
        guidance: Any = getattr(engine.state, "guidance", None)
        if self.unlabelled and guidance is None:
            require([no_stream(self.where)])
        value = self.value(guidance, engine)
        record(engine, self.name, value)
        factor = self.weight * self._schedule(*round_of(engine), self.fraction)
        engine.state.output["loss"] = engine.state.output["loss"] + factor * value


@dataclass(kw_only=True, eq=False)
class GuidedTerm(Term):
    """A term that uses one guide.

    Args:
        guide: name of the guide; ``weak`` is the student's own weak view.
        name, weight, schedule, fraction: see :class:`Term`.
    """

    guide: str

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.guide,)


@dataclass(kw_only=True, eq=False)
class FeatureTerm(Term):
    """A term on the input of the network's head, or of another part, in this iteration.

    Args:
        network: the site's network.
        name, weight, schedule, fraction: see :class:`Term`.

    Raises:
        Refused: a network with an unknown head.
    """

    network: nn.Module

    def __post_init__(self) -> None:
        super().__post_init__()
        self._features = LastFeatures(self.network, self.part)

    @property
    def part(self) -> nn.Module | None:
        """The part of the network; ``None`` for its head."""
        return None

    def attach(self, engine: Any) -> None:
        super().attach(engine)
        self._features.attach(engine)


@dataclass(kw_only=True, eq=False)
class AgreedTerm(Term):
    """A term on the agreement of teacher and student, which terms with equal settings share.

    Records ``reliability`` (mean ``g``, without the averaged student's factor if no term reads that guide) and
    ``agreement`` (fraction of pixels with the same label).

    Args:
        teacher, student, rule, tau, delta, least_agreement: see :class:`samfed_monai.losses.AgreementSettings`.
        name, weight, schedule, fraction: see :class:`Term`.
    """

    by_image = True
    """Whether the value depends on each image's reliability ``g``, for which the guide ``ema`` is used."""

    teacher: str = "sam"
    student: str = "weak"
    rule: str = "teacher"
    tau: float = THRESHOLDS["tau"]
    delta: float = THRESHOLDS["delta"]
    least_agreement: float = THRESHOLDS["least_agreement"]

    def __post_init__(self) -> None:
        super().__post_init__()
        options = (self.teacher, self.student, self.rule, self.tau, self.delta, self.least_agreement)
        self.settings = AgreementSettings(*options, where=self.where)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.settings.teacher, self.settings.student)

    @property
    def reads(self) -> tuple[str, ...]:
        """Teacher and student, and the averaged student if the value depends on each image's reliability."""
        if not self.by_image:
            return self.needs
        return (*self.needs, "weak" if self.settings.student == "ema" else "ema")

    def attach(self, engine: Any) -> None:
        """Binds the term; the site's agreement is reset at the start of each round."""
        when_round_starts(engine, _reset_site_agreements)
        super().attach(engine)

    def agreement(self, guidance: Guidance, engine: Any) -> Agreement:
        """This iteration's agreement."""
        if self.settings.rule == "trusted_average" and self.settings not in guidance.trust:
            self._estimate_trust(guidance, engine)
        agreement = guidance.agree(self.settings, where=self.where)
        record(engine, "reliability", agreement.reliability.mean())
        record(engine, "agreement", agreement.agreed.float().mean())
        return agreement

    @torch.no_grad()
    def _estimate_trust(self, guidance: Guidance, engine: Any) -> None:
        """Trust in the teacher on each image, from its agreement with the student's sure pixels there and at the site.

        Only the two predictions of the unlabelled images are used: no label, no averaged student. It is computed once
        for all terms with equal settings. Records ``sure_agreement`` (its mean over the site so far) and ``trust``
        (mean over the batch).
        """
        teacher, student, _ = guidance.agreement_inputs(self.settings, where=self.where)
        (y_t, _), (y_c, k_c) = hard_label(teacher), hard_label(student)
        agreements, meaningful = sure_agreement(y_t, y_c, k_c > self.settings.tau)
        site = engine.state.site_agreements.setdefault(self.settings, SiteAgreement()).add(agreements, meaningful)
        trust = trust_of_images(torch.where(meaningful, agreements, site), site, self.settings.least_agreement)
        guidance.trust[self.settings] = trust
        record(engine, "sure_agreement", site)
        record(engine, "trust", trust.mean())


def _reset_site_agreements(engine: Any) -> None:
    """Resets the sites' agreement, so that a round depends only on (weights, seed, site, round)."""
    engine.state.site_agreements = {}


PseudoLabelLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of logits (B, C, H, W), labels (B, 1, H, W) and weights of pixels (B, 1, H, W) that returns a scalar."""

_LOSSES: dict[str, PseudoLabelLoss] = {"structure": StructureLoss(), "dice_ce": weighted_pseudo_label_loss}


def _loss_problems(where: str, loss: Any) -> list[Problem]:
    return [] if callable(loss) else one_of(where, loss, _LOSSES)


@dataclass(kw_only=True, eq=False)
class PseudoLabelTerm(AgreedTerm):
    """``lambda_u(t) L_pl``: the strong view's loss against agreed labels (docs/method.md, step 4).

    Also records ``reliability`` (mean ``g``) and ``agreement`` (fraction of pixels with the same label).

    Args:
        labels: ``soft`` uses the probabilities of the side that decided a pixel; ``hard`` only the class.
        loss: ``structure``, the supervised loss (:class:`samfed_monai.losses.StructureLoss`), ``dice_ce``, cross
            entropy and soft Dice, or your own :data:`PseudoLabelLoss`.
        teacher, student, rule, tau, delta, least_agreement, name, weight, schedule, fraction: see
            :class:`samfed_monai.handlers.term.AgreedTerm`.

    Example::

        {"_target_": "samfed_monai.handlers.PseudoLabelTerm", "teacher": "sam", "rule": "teacher", "weight": 1.0}
    """

    by_image = False
    checks: ClassVar = {"labels": partial(one_of, known=["soft", "hard"]), "loss": _loss_problems}

    name: str = "pseudo_label"
    labels: str = "hard"
    loss: str | PseudoLabelLoss = "dice_ce"
    schedule: str = "gaussian_ramp"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels == "soft" and self.loss == "dice_ce":
            expected, hint = "'hard' with the loss dice_ce", "set loss to structure, or labels to hard"
            raise refused(f"{self.where}#labels", "'soft'", expected, hint)
        self._loss = self.loss if callable(self.loss) else _LOSSES[self.loss]

    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """``L_pl``."""
        agreement = self.agreement(guidance, engine)
        label = agreement.soft_label if self.labels == "soft" else agreement.label
        return self._loss(guidance.student, label, agreement.weight)


@dataclass(kw_only=True, eq=False)
class SamDistillationTerm(AgreedTerm):
    """``lambda_T g L_T``: ``T^2 KL(p_T || p_s)``, weighted per pixel and, by ``g``, per image (docs/method.md).

    A pixel has the agreement's weight if its label is the teacher's, and weight 0 if the student overruled it. Use the
    rule, tau and delta of the pseudo-label term, so that the agreement is computed once for both.

    Args:
        adaptive: whether each image is weighted by its reliability ``g``.
        temperature: ``T``.
        teacher, student, rule, tau, delta, least_agreement, name, weight, schedule, fraction: see
            :class:`samfed_monai.handlers.term.AgreedTerm`.

    Raises:
        Refused: a temperature that is not positive.

    Example::

        {"_target_": "samfed_monai.handlers.SamDistillationTerm", "teacher": "sam", "weight": 1.0, "temperature": 2}
    """

    checks: ClassVar = {"temperature": POSITIVE}

    name: str = "sam_kd"
    adaptive: bool = True
    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.by_image = self.adaptive

    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """``g L_T``."""
        agreement = self.agreement(guidance, engine)
        return distillation_kl(
            guidance.student,
            guidance.probabilities(self.settings.teacher, where=self.where),
            self.temperature,
            weight=agreement.distillation_weight,
            scale=agreement.trust * agreement.reliability if self.by_image else agreement.trust,
        )


@dataclass(kw_only=True, eq=False)
class GlobalDistillationTerm(GuidedTerm):
    """``lambda_G L_G``: ``T^2 KL(p_G || p_s)`` over all pixels (docs/method.md, step 5, global-to-local transfer).

    Args:
        name: name under which the value is logged.
        guide: guide that is distilled, the global network.
        temperature: ``T``.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: a temperature that is not positive.

    Example::

        {"_target_": "samfed_monai.handlers.GlobalDistillationTerm", "guide": "global", "weight": 0.1}
    """

    checks: ClassVar = {"temperature": POSITIVE}

    name: str = "global_kd"
    guide: str = "global"
    temperature: float = 2.0
    weight: float = 0.1

    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """``L_G``."""
        return distillation_kl(guidance.student, guidance.probabilities(self.guide, where=self.where), self.temperature)
