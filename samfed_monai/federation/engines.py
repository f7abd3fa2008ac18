"""A client's Ignite engines from round to round: where one starts, and what a failed run left in it."""

from __future__ import annotations

from typing import Any

from samfed_monai.federation.call import Call


def place_at_round(trainer: Any, call: Call, *, local_epochs: int) -> None:
    """Puts a trainer where the rounds before ``call.round`` lead to, whatever it really did; without one, nowhere."""
    if call.round is None:
        return
    state = trainer.state
    state.round, state.rounds = call.round, call.words.get("rounds", call.round + 1)
    state.epoch = call.round * local_epochs
    state.iteration = state.epoch * (state.epoch_length or 0)


def forget_unfinished_run(engine: Any) -> None:
    """Makes an engine whose run failed ready for the next one.

    After an exception Ignite keeps the dead generator of that run, and the next ``run()`` returns at once (0.5.5).
    """
    for name in ("_internal_run_generator", "_dataloader_iter", "_init_iter"):
        if hasattr(engine, name):
            setattr(engine, name, None)
