"""What the terms that rest on an agreement have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samfed_monai.handlers.guidance import Guidance
from samfed_monai.handlers.records import record
from samfed_monai.handlers.site_reliability import SiteReliability
from samfed_monai.handlers.site_trust import SiteTrust
from samfed_monai.handlers.term import Term
from samfed_monai.losses.agreement_rules import WITHOUT_AVERAGE

if TYPE_CHECKING:
    from samfed_monai.losses import Agreement, AgreementSettings


class AgreedTerm(Term):
    """A term that asks how far teacher and student agree; terms of equal settings share the answer.

    Records ``reliability`` (mean ``g``, without the averaged student's factor where no term reads that guide) and
    ``agreement`` (share of pixels with one label).

    Args:
        settings: whom to compare, and by which rule.
        by_image: whether the value depends on each image's reliability ``g``, which the guide ``ema`` has a part in.
        name, weight, schedule, fraction: see :class:`Term`.
    """

    def __init__(
        self,
        settings: AgreementSettings,
        *,
        by_image: bool = True,
        name: str,
        weight: float,
        schedule: str,
        fraction: float,
    ) -> None:
        super().__init__(name=name, weight=weight, schedule=schedule, fraction=fraction)
        self.settings, self.by_image = settings, by_image

    @property
    def needs(self) -> tuple[str, ...]:
        """Teacher and student."""
        return (self.settings.teacher, self.settings.student)

    @property
    def reads(self) -> tuple[str, ...]:
        """Teacher and student, and the averaged student where rule or reliability look at it."""
        if not self.by_image and self.settings.rule in WITHOUT_AVERAGE:
            return self.needs
        return (*self.needs, "weak" if self.settings.student == "ema" else "ema")

    def attach(self, engine: Any) -> None:
        """Binds the term, and before it what learns for the rules ``reliability`` and ``adaptive``."""
        if self.settings.rule == "reliability":
            SiteReliability.shared(engine, self.settings)
        if self.settings.rule == "adaptive":
            SiteTrust.shared(engine, self.settings)
        super().attach(engine)

    def agreement(self, guidance: Guidance, engine: Any) -> Agreement:
        """This iteration's agreement."""
        found = guidance.agree(self.settings, asked_by=self.where)
        record(engine, "reliability", found.reliability.mean())
        record(engine, "agreement", found.agreed.float().mean())
        return found
