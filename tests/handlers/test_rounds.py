"""Which round it is, and how Ignite's events behave when a client runs a trainer again and again."""

from __future__ import annotations

from types import SimpleNamespace

from ignite.engine import Events

from samfed_monai.handlers import round_of
from tests.handlers.toy import next_round, toy_trainer


def test_an_epoch_is_a_round_for_a_trainer_on_its_own() -> None:
    engine = SimpleNamespace(state=SimpleNamespace(epoch=0, max_epochs=5))
    assert round_of(engine) == (0, 5)  # STARTED comes before the first epoch is counted
    engine.state.epoch = 3
    assert round_of(engine) == (2, 5)


def test_the_client_says_which_round_it_is() -> None:
    engine = SimpleNamespace(state=SimpleNamespace(epoch=9, max_epochs=9, round=2, rounds=15))
    assert round_of(engine) == (2, 15)


def test_events_of_a_trainer_that_is_run_again_as_monai_fl_does() -> None:
    trainer = toy_trainer([], steps=2)
    seen: list[str] = []
    for event in (Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
        trainer.add_event_handler(event, lambda engine, name=event.name: seen.append(name))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(str(engine.state.iteration)))
    for number in range(2):
        next_round(trainer, number, 2)
    once = ["STARTED", "EPOCH_STARTED", "{}", "{}", "EPOCH_COMPLETED", "COMPLETED"]
    assert seen == [name.format(i) for i, name in zip((0, 0, 1, 2, 0, 0), once, strict=True)] + [
        name.format(i) for i, name in zip((0, 0, 3, 4, 0, 0), once, strict=True)
    ]


def test_the_labelled_loader_starts_over_in_every_run() -> None:
    trainer = toy_trainer([], steps=1)
    firsts = []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: firsts.append(engine.state.batch["label"].sum()))
    drawn: list[list[int]] = []
    sampler, plain = trainer.data_loader.sampler, type(trainer.data_loader.sampler).__iter__

    class Watched(type(sampler)):  # type: ignore[misc]
        def __iter__(self):
            drawn.append([])
            for index in plain(self):
                drawn[-1].append(index)
                yield index

    sampler.__class__ = Watched
    for number in range(2):
        next_round(trainer, number, 2)
    assert len(drawn) == 2
    assert drawn[0][:4] == drawn[1][:4]  # the same seed replays the same order from its beginning
