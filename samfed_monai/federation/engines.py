"""A client's Ignite engines from round to round: where one starts."""

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
