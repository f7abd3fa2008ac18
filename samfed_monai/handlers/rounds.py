"""Which round an engine is in."""

from __future__ import annotations

from typing import Any


def round_of(engine: Any) -> tuple[int, int]:
    """``(round, rounds)``, the round counted from 0.

    In a federation the client sets ``engine.state.round`` and ``engine.state.rounds`` before ``run()``. A trainer on
    its own has no rounds: there an epoch is a round, ``(epoch - 1, max_epochs)``.
    """
    if in_federation(engine):
        return int(engine.state.round), int(engine.state.rounds)
    return max(int(engine.state.epoch) - 1, 0), int(engine.state.max_epochs or 1)


def in_federation(engine: Any) -> bool:
    """Whether somebody has told the engine its round."""
    return getattr(engine.state, "round", None) is not None
