"""A progress bar over an engine's batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ignite.engine import Events

from samfed_monai.core.run_log import progress_bar

if TYPE_CHECKING:
    from ignite.engine import Engine
    from tqdm import tqdm


class BatchBar:
    """Shows how many batches of an epoch are done, on a terminal and in a log.

    In a log, Ignite's ``ProgressBar`` writes all states into one line, some of them twice; this one is a
    :class:`samfed_monai.core.run_log.LogBar` there.

    Args:
        what: is done with them; a training's epochs are counted behind it.

    Example::

        {"_target_": "samfed_monai.handlers.BatchBar", "what": "segmenting"}
    """

    def __init__(self, *, what: str) -> None:
        self.what = what
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._go_on)
        for event in (Events.EPOCH_COMPLETED, Events.TERMINATE):
            engine.add_event_handler(event, self._end)

    def _begin(self, engine: Engine) -> None:
        epochs = engine.state.max_epochs or 1
        what = f"{self.what}, epoch {engine.state.epoch} of {epochs}" if epochs > 1 else self.what
        self._bar = progress_bar(total=engine.state.epoch_length, desc=what, unit="batch")

    def _go_on(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None
