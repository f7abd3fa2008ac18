"""Mean teacher in a federation."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import EmaGuide, Guidance, UnlabelledStream
from samfed_monai.methods.mean_teacher import ConsistencyTerm, consistency_mse
from tests.handlers.toy import next_round, toy_loader, toy_trainer, weights


def test_the_value_is_the_measure_between_strong_view_and_guide() -> None:
    student = torch.zeros(1, 1, 1, 2)
    given = Guidance(student=student, weak_view=student, guides={"ema": torch.tensor([[[[1.0, 0.5]]]])})
    assert ConsistencyTerm().value(given, None).item() == pytest.approx(0.125)  # type: ignore[arg-type]
    assert ConsistencyTerm(guide="sam").needs == ("sam",)


def test_an_unknown_measure_is_refused_when_built() -> None:
    with pytest.raises(Refused, match=r"consistency measure: .*'msd'; did you mean 'mse'"):
        ConsistencyTerm(measure="msd")


def test_the_teacher_starts_every_round_from_the_weights_that_arrived() -> None:
    guide = EmaGuide()
    trainer = toy_trainer([UnlabelledStream(loader=toy_loader(), guides=[guide]), ConsistencyTerm()], steps=2)
    next_round(trainer, 0, 2)
    with torch.no_grad():
        for weight in trainer.network.parameters():
            weight.fill_(0.125)  # the server's next weights: far from those of the first round
    before, seen = weights(trainer.network), []
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda _: seen.append(weights(guide._copy.network)))
    next_round(trainer, 1, 2)
    assert all(torch.equal(seen[0][name], before[name]) for name in before)


def test_it_is_what_the_strong_view_learns_from() -> None:
    term = ConsistencyTerm(schedule="constant")
    trainer = toy_trainer([UnlabelledStream(loader=toy_loader(), guides=[EmaGuide()]), term], steps=1)
    next_round(trainer, 0, 1)
    guidance = trainer.state.guidance
    expected = consistency_mse(guidance.student, guidance.guides["ema"])
    torch.testing.assert_close(trainer.state.terms["consistency"], expected.detach())
