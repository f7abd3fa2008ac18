"""What is learned of SAM and the student during a round, and that it is forgotten after it."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.handlers import (
    BatchGuide,
    EmaGuide,
    PseudoLabelTerm,
    SamDistillationTerm,
    SeedHandler,
    TermLogger,
    UnlabelledStream,
)
from samfed_monai.handlers.term import SiteReliability
from samfed_monai.losses import RaterRates, em_step, probabilities
from samfed_monai.losses.reliability import first_statistics, joint
from tests.handlers.toy import next_round, same, toy_loader, toy_network, toy_trainer, weights


def trainer_with(rule: str = "reliability", **kwargs):
    loaders = toy_loader(), toy_loader()
    terms = [PseudoLabelTerm(rule=rule, schedule="constant"), SamDistillationTerm(rule=rule)]
    stream = UnlabelledStream(loader=loaders[1], guides=[BatchGuide(), EmaGuide()])
    handlers = [SeedHandler(loaders=loaders), *terms, stream, TermLogger()]  # stream and terms in any order
    return toy_trainer(handlers, loader=loaders[0], **kwargs)


def test_one_step_of_em_per_batch_for_two_terms() -> None:
    trainer = trainer_with(steps=1)
    next_round(trainer, 0, 1)
    guidance = trainer.state.guidance
    raters = guidance.guides["sam"], guidance.weak, guidance.guides["ema"]
    (rates,) = guidance.rates.values()
    free = RaterRates.of(em_step(first_statistics(3, 2), raters))
    torch.testing.assert_close(rates.confusion[0], free.confusion[0])  # of the student, the public labels know as well
    assert not torch.equal(rates.confusion[1], free.confusion[1])
    assert trainer.state.term_means["teacher_sensitivity"] == pytest.approx(free.sensitivity(0).item())


def test_public_labels_anchor_the_student() -> None:
    seen = {}

    class Watch(SiteReliability):
        def __call__(self, engine):
            super().__call__(engine)
            seen.update(engine.state.output, statistics=self._statistics, guidance=engine.state.guidance)

    term = PseudoLabelTerm(rule="reliability")
    stream = UnlabelledStream(loader=toy_loader(), guides=[BatchGuide()])
    trainer = toy_trainer([stream, Watch(term.settings), PseudoLabelTerm()], steps=1)
    next_round(trainer, 0, 1)
    public = joint(seen["label"], probabilities(seen["pred"]))
    raters = seen["guidance"].guides["sam"], seen["guidance"].weak
    torch.testing.assert_close(seen["statistics"], em_step(first_statistics(2, 2), raters, public=public))


def test_a_round_is_a_function_of_its_weights() -> None:
    start = weights(toy_network(3))

    def second_round(*, before: bool) -> dict:
        trainer = trainer_with(steps=3)
        if before:
            next_round(trainer, 0, 2)
        trainer.network.load_state_dict(start)
        next_round(trainer, 1, 2)
        return weights(trainer.network)

    assert same(second_round(before=True), second_round(before=False))


def test_another_rule_learns_nothing() -> None:
    trainer = trainer_with("confidence", steps=1)
    next_round(trainer, 0, 1)
    assert not hasattr(trainer.state, "site_reliabilities")
    assert trainer.state.guidance.rates == {}
