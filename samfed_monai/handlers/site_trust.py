"""Learns during a round how far the teacher is to be trusted at this site, and on each of its images."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents

from samfed_monai.handlers.guidance import guidance_of
from samfed_monai.handlers.records import record, record_supervised
from samfed_monai.losses import AgreementSettings, hard_label
from samfed_monai.losses.trust import SiteAgreement, sure_agreement, trust_of_images


class SiteTrust:
    """Teacher against the student's sure pixels, image by image and over the site, for the agreement rule ``adaptive``.

    A term with that rule attaches it; a bundle does not name it. It reads the two opinions of the unlabelled images and
    nothing else: no label, no averaged student. At ``STARTED`` it forgets everything, so a round stays a function of
    (weights, seed, site, round).

    Records ``sure_agreement`` (its mean over the site so far) and ``trust`` (mean over the batch).

    Args:
        settings: whose teacher and student are meant, what is sure (``tau``), and from which agreement on the teacher
            is trusted (``least_agreement``).
    """

    def __init__(self, settings: AgreementSettings) -> None:
        self.settings = settings
        self._site = SiteAgreement()

    @classmethod
    def shared(cls, engine: Any, settings: AgreementSettings) -> None:
        """Attaches one of them for all terms of equal settings."""
        known = getattr(engine.state, "site_trusts", None)
        if known is None:
            known = engine.state.site_trusts = {}
        if settings not in known:
            known[settings] = cls(settings)
            known[settings].attach(engine)

    def attach(self, engine: Any) -> None:
        """Binds to a trainer."""
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
        teacher, student = guidance.raters(self.settings, asked_by=asked_by)[:2]
        (y_t, _), (y_c, k_c) = hard_label(teacher), hard_label(student)
        images, says = sure_agreement(y_t, y_c, k_c > self.settings.tau)
        site = self._site.add(images, says)
        trust = trust_of_images(torch.where(says, images, site), site, self.settings.least_agreement)
        guidance.trust[self.settings] = trust
        record(engine, "sure_agreement", site)
        record(engine, "trust", trust.mean())
