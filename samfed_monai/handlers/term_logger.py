"""Averages what the terms recorded over a round."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ignite.engine import Events
from monai.engines.utils import IterationEvents

from samfed_monai.handlers.records import record_supervised
from samfed_monai.handlers.rounds import in_federation, round_of

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor

logger = logging.getLogger(__name__)


class TermLogger:
    """Averages ``engine.state.terms`` over a round into ``engine.state.term_means`` and logs the means.

    The means hold ``supervised``, every term by its name without its weight, ``reliability`` and ``agreement``. A
    trainer without rounds is averaged per epoch. Values stay on the device until the epoch ends.

    Example::

        {"_target_": "samfed_monai.handlers.TermLogger"}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def attach(self, engine: Engine) -> None:
        """Binds the logger to a trainer."""
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, record_supervised)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _reset(self, engine: Any) -> None:
        self._sums, self._counts = {}, {}
        engine.state.terms_iteration = None  # the last run may have ended at the iteration that this one begins with

    def _epoch_started(self, engine: Any) -> None:
        if not in_federation(engine):
            self._reset(engine)

    def __call__(self, engine: Any) -> None:
        """Adds one iteration to the averages."""
        for name, value in engine.state.terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def _epoch_completed(self, engine: Any) -> None:
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        engine.state.term_means = means
        number, rounds = round_of(engine)
        listed = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        level = logging.DEBUG if in_federation(engine) else logging.INFO  # there the controller tells of the round
        logger.log(level, "round %d of %d: %s", number + 1, rounds, listed)
