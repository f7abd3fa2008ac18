"""A site that diverges fails its round."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samfed_monai.core.errors import Stopped
from samfed_monai.handlers import BatchGuide, DivergenceGuard, SamDistillationTerm, UnlabelledStream
from tests.handlers.toy import next_round, same, toy_loader, toy_trainer, weights


class Broken(SamDistillationTerm):
    def value(self, guidance: Any, engine: Any) -> torch.Tensor:
        return super().value(guidance, engine) * float("nan")


def test_a_nan_term_stops_before_the_weights_are_touched() -> None:
    stream = UnlabelledStream(loader=toy_loader(), guides=[BatchGuide()])
    trainer = toy_trainer([stream, Broken(), DivergenceGuard(site="site-3")])
    before = weights(trainer.network)["0.weight"]
    message = (
        r"training diverged at site 'site-3', round 2 of 5, step 1: the loss is NaN or infinite "
        r"\(terms at fault: sam_kd\)\n  to go on: lower learning_rate, or the weight of that term"
    )
    with pytest.raises(Stopped, match=message):
        next_round(trainer, 1, 5)
    assert torch.equal(before, weights(trainer.network)["0.weight"])


def test_weights_broken_by_the_last_step_are_found_at_the_end_of_the_epoch() -> None:
    trainer = toy_trainer([DivergenceGuard(site="a")], steps=1, learning_rate=float("inf"))
    with pytest.raises(Stopped, match=r"site 'a', round 1 of 1, step 1: the weights hold NaN or infinity \(first at 0"):
        trainer.run()


def test_a_sound_run_is_left_alone() -> None:
    guarded, plain = toy_trainer([DivergenceGuard()]), toy_trainer([])
    guarded.run()
    plain.run()
    assert same(weights(guarded.network), weights(plain.network))
