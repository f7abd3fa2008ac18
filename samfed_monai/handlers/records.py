"""The numbers of one iteration, by name, on the engine's state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

SUPERVISED = "supervised"


def record(engine: Any, name: str, value: Tensor) -> None:
    """Files a scalar of this iteration in ``engine.state.terms``, which starts empty at every iteration."""
    state = engine.state
    if getattr(state, "terms_iteration", None) != state.iteration:
        state.terms, state.terms_iteration = {}, state.iteration
    state.terms[name] = value.detach()


def record_supervised(engine: Any) -> None:
    """Files the loss as it is before the first term is added; later calls of the same iteration do nothing."""
    state = engine.state
    if getattr(state, "terms_iteration", None) != state.iteration or SUPERVISED not in state.terms:
        record(engine, SUPERVISED, state.output["loss"])
