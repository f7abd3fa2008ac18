"""``Term``, one named and scheduled summand of the loss; ``AgreedTerm``, a term on the agreement of two guides."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from torch import Tensor

from samfed_monai.core.errors import Problem, Problems
from samfed_monai.core.registry import Registry
from samfed_monai.core.validators import in_range, one_of, require
from samfed_monai.handlers.guide import OWN_VIEWS, Guidance, guidance_of, no_stream, say_read, unknown_guide
from samfed_monai.handlers.records import record, record_supervised
from samfed_monai.handlers.rounds import round_of
from samfed_monai.losses import AgreementSettings, hard_label, sure_agreement, trust_of_images
from samfed_monai.losses.agreement import LEAST_AGREEMENT, SiteAgreement

if TYPE_CHECKING:
    from ignite.engine import Engine

    from samfed_monai.losses import Agreement


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
        rounds: how many rounds the run has.
        fraction: part of the run in which the weight rises (docs/method.md, step 6; the curve is Laine & Aila 2017's).
    """
    return math.exp(-5.0 * (1.0 - _progress(round, rounds, fraction)) ** 2)


@SCHEDULES.register("linear")
def linear(round: int, rounds: int, fraction: float = 0.4) -> float:
    """From 0 to 1 in a straight line over the first ``fraction`` of the rounds, then 1."""
    return _progress(round, rounds, fraction)


def _progress(round: int, rounds: int, fraction: float) -> float:
    length = fraction * rounds
    return 1.0 if length < 1 else min(1.0, round / length)  # a ramp shorter than one round is no ramp


@dataclass(kw_only=True, eq=False)
class Term(ABC):
    """Adds ``weight * schedule(round, rounds) * value(guidance)`` to the loss before it is back-propagated.

    The value itself, without weight, is recorded under the term's name. A new term subclasses this, says in ``needs``
    which guides it asks for, if any, and is named in the bundle's ``terms``. One that looks at the labelled batch or at
    the weights alone sets ``unlabelled = False``: it works without a stream too, and is then given ``None`` as
    guidance.

    Args:
        name: under which the value is logged.
        weight: factor >= 0.
        schedule: a name in :data:`samfed_monai.handlers.SCHEDULES`.
        fraction: part of the rounds in which a ramp rises.

    Raises:
        Refused: a negative weight, an unknown schedule; at ``STARTED``, a guide that is not there.
    """

    unlabelled = True
    #: Option to its check, which takes the option's place and value (:mod:`samfed_monai.core.validators`).
    checks: ClassVar[dict[str, Callable[[str, Any], list[Problem]]]] = {}

    name: str
    weight: float = 1.0
    schedule: str = "constant"
    fraction: float = 0.4

    def __post_init__(self) -> None:
        require(
            in_range(f"{self.where}#weight", self.weight, least=0),
            in_range(f"{self.where}#fraction", self.fraction, "a part", least=0, most=1),
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
        """Names of the guides this term asks for; none, unless a subclass says so."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the guides that the value depends on: those of :attr:`needs`, and any that it takes if it is there.

        A network's guide that no term reads is not computed.
        """
        return self.needs

    @abstractmethod
    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """The term as a scalar >= 0 with gradient, without its weight."""

    def attach(self, engine: Any) -> None:
        """Binds the term to a MONAI trainer."""
        say_read(engine, self.reads)
        engine.add_event_handler(Events.STARTED, self.check)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def check(self, engine: Any) -> None:
        """Refuses, before any work, a trainer that cannot give what this term asks for."""
        known = getattr(engine.state, "guide_names", None)
        problems = Problems()
        if known is None and self.unlabelled:
            problems.extend([no_stream(self.where)])
        elif known is not None:
            problems.extend(self.missing_guides(known))
        problems.refuse_if_any()

    def missing_guides(self, known: Collection[str]) -> list[Problem]:
        """The guides that this term asks for and that are not among ``known``."""
        missing = dict.fromkeys(name for name in self.needs if name not in known and name not in OWN_VIEWS)
        return [unknown_guide(name, known, self.where) for name in missing]

    def __call__(self, engine: Any) -> None:
        """Adds the term to ``engine.state.output["loss"]``."""
        record_supervised(engine)
        given = getattr(engine.state, "guidance", None)
        guidance: Any = guidance_of(engine, asked_by=self.where) if self.unlabelled else given
        value = self.value(guidance, engine)
        record(engine, self.name, value)
        factor = self.weight * self._schedule(*round_of(engine), self.fraction)
        engine.state.output["loss"] = engine.state.output["loss"] + factor * value


class SiteTrust:
    """Teacher against the student's sure pixels, image by image and over the site: how far the teacher is trusted.

    A term with the rule ``trusted_average`` attaches it; a bundle does not name it. It reads the two opinions of the
    unlabelled images and nothing else: no label, no averaged student. At ``STARTED`` it forgets everything, so a round
    stays a function of (weights, seed, site, round).

    Records ``sure_agreement`` (its mean over the site so far) and ``trust`` (mean over the batch).

    Args:
        settings: whose teacher and student are meant, what is sure (``tau``), and from which agreement on the teacher
            is trusted (``least_agreement``).
    """

    def __init__(self, settings: AgreementSettings) -> None:
        self.settings = settings
        self._site = SiteAgreement()

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, self.forget)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def forget(self, engine: Any) -> None:
        """Back to a site of which nothing was seen."""
        self._site = SiteAgreement()

    @torch.no_grad()
    def __call__(self, engine: Any) -> None:
        """Learns from this iteration's batch, and puts the trust where the rule finds it."""
        record_supervised(engine)
        asked_by = f"the agreement rule {self.settings.rule!r}"
        guidance = guidance_of(engine, asked_by=asked_by)
        teacher, student, _ = guidance.compared(self.settings, asked_by=asked_by)
        (y_t, _), (y_c, k_c) = hard_label(teacher), hard_label(student)
        images, says = sure_agreement(y_t, y_c, k_c > self.settings.tau)
        site = self._site.add(images, says)
        trust = trust_of_images(torch.where(says, images, site), site, self.settings.least_agreement)
        guidance.trust[self.settings] = trust
        record(engine, "sure_agreement", site)
        record(engine, "trust", trust.mean())


@dataclass(kw_only=True, eq=False)
class AgreedTerm(Term):
    """A term that asks how far teacher and student agree; terms of equal settings share the answer.

    Records ``reliability`` (mean ``g``, without the averaged student's factor where no term reads that guide) and
    ``agreement`` (share of pixels with one label).

    Args:
        teacher: guide that plays the teacher; ``weak`` when a rule needs none.
        student: guide that plays the student: its own ``weak`` view, or ``ema``.
        rule: a name in :data:`samfed_monai.losses.AGREEMENT_RULES`.
        tau: how sure the surer side must be where the two disagree.
        delta: how much surer than the other it must be there.
        least_agreement: for the rule ``trusted_average``, see :class:`samfed_monai.losses.AgreementSettings`.
        name, weight, schedule, fraction: see :class:`Term`.
    """

    by_image = True
    """Whether the value depends on each image's reliability ``g``, which the guide ``ema`` has a part in."""

    teacher: str = "sam"
    student: str = "weak"
    rule: str = "teacher"
    tau: float = 0.9
    delta: float = 0.1
    least_agreement: float = LEAST_AGREEMENT

    def __post_init__(self) -> None:
        super().__post_init__()
        compared = (self.teacher, self.student, self.rule, self.tau, self.delta, self.least_agreement)
        self.settings = AgreementSettings(*compared, where=self.where)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.settings.teacher, self.settings.student)

    @property
    def reads(self) -> tuple[str, ...]:
        """Teacher and student, and the averaged student where the value depends on each image's reliability."""
        if not self.by_image:
            return self.needs
        return (*self.needs, "weak" if self.settings.student == "ema" else "ema")

    def attach(self, engine: Any) -> None:
        """Binds the term, and before it what learns for its rule."""
        settings = self.settings
        if settings.rule == "trusted_average":
            known = vars(engine.state).setdefault("site_trusts", {})  # one for all terms of equal settings
            if settings not in known:
                known[settings] = SiteTrust(settings)
                known[settings].attach(engine)
        super().attach(engine)

    def agreement(self, guidance: Guidance, engine: Any) -> Agreement:
        """This iteration's agreement."""
        found = guidance.agree(self.settings, asked_by=self.where)
        record(engine, "reliability", found.reliability.mean())
        record(engine, "agreement", found.agreed.float().mean())
        return found
