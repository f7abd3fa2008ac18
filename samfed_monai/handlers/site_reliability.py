"""Learns during a round how far SAM and the student can be believed at this site."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from torch import Tensor

from samfed_monai.handlers.guidance import guidance_of
from samfed_monai.handlers.records import record, record_supervised
from samfed_monai.losses import AgreementSettings, RaterRates, em_step, probabilities
from samfed_monai.losses.rater_rates import first_statistics, joint


class SiteReliability:
    """One step of EM per batch over teacher, student and averaged student, for the agreement rule ``reliability``.

    A term with that rule attaches it; a bundle does not name it. No private label is read: the site's images give the
    raters' answers, and the public batch of the same step, whose labels everybody has, anchors the student's rates. At
    ``STARTED`` it forgets everything, so a round stays a function of (weights, seed, site, round).

    Records ``teacher_sensitivity``, ``teacher_specificity``, ``student_sensitivity`` and ``student_specificity``.

    Args:
        settings: whose teacher and student are meant.
    """

    def __init__(self, settings: AgreementSettings) -> None:
        self.settings = settings
        self._statistics: Tensor | None = None

    @classmethod
    def shared(cls, engine: Any, settings: AgreementSettings) -> None:
        """Attaches one of them per pair of teacher and student, however many terms ask."""
        known = getattr(engine.state, "site_reliabilities", None)
        if known is None:
            known = engine.state.site_reliabilities = {}
        pair = (settings.teacher, settings.student)
        if pair not in known:
            known[pair] = cls(settings)
            known[pair].attach(engine)

    def attach(self, engine: Any) -> None:
        """Binds to a trainer."""
        engine.add_event_handler(Events.STARTED, self.forget)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def forget(self, engine: Any) -> None:
        """Back to raters of whom nothing is known."""
        self._statistics = None

    @torch.no_grad()
    def __call__(self, engine: Any) -> None:
        """Learns from this iteration's batch, and puts the rates where the rule finds them."""
        record_supervised(engine)
        asked_by = f"the agreement rule {self.settings.rule!r}"
        guidance = guidance_of(engine, asked_by=asked_by)
        raters = [rater.float() for rater in guidance.raters(self.settings, asked_by=asked_by)]
        if self._statistics is None:
            self._statistics = first_statistics(len(raters), max(2, raters[0].shape[1])).to(raters[0])
        self._statistics = em_step(self._statistics, raters, public=_public(engine.state.output))
        rates = RaterRates.of(self._statistics)
        guidance.rates[self.settings.teacher, self.settings.student] = rates
        for index, name in enumerate(("teacher", "student")):
            record(engine, f"{name}_sensitivity", rates.sensitivity(index))
            record(engine, f"{name}_specificity", rates.specificity(index))


def _public(output: Any) -> Tensor | None:
    """The student's answers on the labelled batch against its labels, (K, K); ``None`` where there is no such batch."""
    logits, label = output.get("pred"), output.get("label")
    if not isinstance(logits, Tensor) or not isinstance(label, Tensor):
        return None
    said, truth = probabilities(logits.float()), label.float()
    if said.shape[1] > 1:
        truth = torch.nn.functional.one_hot(label.squeeze(1).long(), said.shape[1]).movedim(-1, 1).to(said)
    return joint(truth, said)
