"""Where an engine starts a round, and that a failed run does not stop the next one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ignite.engine import Engine, Events

from samfed_monai.federation.client import place_at_round
from samfed_monai.federation.exchange import Call
from samfed_monai.handlers.rounds import forget_unfinished_run


def trainer(epoch_length: int | None) -> SimpleNamespace:
    return SimpleNamespace(state=SimpleNamespace(epoch=9, iteration=9, epoch_length=epoch_length))


def test_a_trainer_is_put_where_the_rounds_before_lead_to():
    placed = trainer(5)
    place_at_round(placed, Call.of("a", {"round": 2, "rounds": 4}), local_epochs=3)
    assert vars(placed.state) == {"round": 2, "rounds": 4, "epoch": 6, "iteration": 30, "epoch_length": 5}
    placed = trainer(None)
    place_at_round(placed, Call.of("a", {"round": 2}), local_epochs=1)
    assert (placed.state.rounds, placed.state.iteration) == (3, 0)


def test_without_a_round_a_trainer_stays_where_it_is():
    placed = trainer(5)
    place_at_round(placed, Call.of("a"), local_epochs=3)
    assert (placed.state.epoch, placed.state.iteration) == (9, 9)


def test_a_run_that_failed_does_not_make_the_next_one_do_nothing():
    seen = []

    def step(engine, item):
        if not seen:
            seen.append("failed")
            raise ValueError("once")
        seen.append(item)

    engine = Engine(step)
    with pytest.raises(ValueError, match="once"):
        engine.run([1, 2], max_epochs=1)
    forget_unfinished_run(engine)
    engine.add_event_handler(Events.COMPLETED, lambda: seen.append("completed"))
    engine.run([1, 2], max_epochs=1)
    assert seen == ["failed", 1, 2, "completed"]
