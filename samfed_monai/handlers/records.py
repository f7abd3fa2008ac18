"""Records of an engine: the scalars of one iteration by name, their means, a progress bar."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor

from samfed_monai.core.run_log import progress_bar
from samfed_monai.handlers.rounds import in_federation, round_of, when_round_starts

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)


SUPERVISED = "supervised"


def record(engine: Any, name: str, value: Tensor) -> None:
    """Stores a scalar of this iteration in ``engine.state.terms``, which starts empty at every iteration."""
    state = engine.state
    if getattr(state, "terms_iteration", None) != state.iteration:
        state.terms, state.terms_iteration = {}, state.iteration
    state.terms[name] = value.detach()


def record_supervised(engine: Any) -> None:
    """Stores the loss before the first term is added; later calls in the same iteration do nothing."""
    state = engine.state
    if getattr(state, "terms_iteration", None) != state.iteration or SUPERVISED not in state.terms:
        record(engine, SUPERVISED, state.output["loss"])


class TermLogger:
    """Averages ``engine.state.terms`` over a round into ``engine.state.term_means`` and logs the means.

    The means contain ``supervised``, every term by name, without its weight, ``reliability`` and ``agreement``. Without
    rounds the means are per epoch. Values stay on the device until the epoch ends.

    Example::

        {"_target_": "samfed_monai.handlers.TermLogger"}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def attach(self, engine: Engine) -> None:
        when_round_starts(engine, self._reset)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, record_supervised)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _reset(self, engine: Any) -> None:
        self._sums, self._counts = {}, {}
        engine.state.terms_iteration = None  # the last run may have ended at the first iteration of this one

    def __call__(self, engine: Any) -> None:
        """Adds one iteration to the averages."""
        for name, value in engine.state.terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def _epoch_completed(self, engine: Any) -> None:
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        engine.state.term_means = means
        number, rounds = round_of(engine)
        text = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        if in_federation(engine):  # the controller logs the round
            logger.debug("round %d of %d: %s", number + 1, rounds, text)
        else:  # a warm start, for instance, is not counted in epochs
            logger.info("%s: %s", "training" if rounds == 1 else f"epoch {number + 1} of {rounds}", text)


class BatchBar:
    """Shows the progress of an epoch in batches, on a terminal and in a log.

    In a log, Ignite's ``ProgressBar`` writes all states into one line, some of them twice; this handler uses a
    :class:`samfed_monai.core.run_log.LogBar` there.

    Args:
        what: description of the work; in training the epoch's number follows.

    Example::

        {"_target_": "samfed_monai.handlers.BatchBar", "what": "segmenting"}
    """

    def __init__(self, *, what: str) -> None:
        self.what = what
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        for event in (Events.EPOCH_COMPLETED, Events.TERMINATE):
            engine.add_event_handler(event, self._end)

    def _begin(self, engine: Engine) -> None:
        epochs = engine.state.max_epochs or 1
        what = f"{self.what}, epoch {engine.state.epoch} of {epochs}" if epochs > 1 else self.what
        self._bar = progress_bar(total=engine.state.epoch_length, desc=what, unit="batch")

    def _advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None
