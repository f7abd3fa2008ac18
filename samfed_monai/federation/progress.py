"""Progress of a run on the terminal, and seconds by activity."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


class Clock:
    """Adds up seconds per activity; the innermost activity is the one that is charged.

    Example::

        clock = Clock()
        with clock("training"):
            with clock("controller"):
                ...  # charged to "controller" only
        clock.seconds["training"]
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        self._charge()
        self._running.append(activity)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._running:
            activity = self._running[-1]
            self.seconds[activity] = self.seconds.get(activity, 0.0) + now - self._since
        self._since = now


class Progress:
    """Three nested progress bars.

    Args:
        show: True or False; ``None`` shows them only when standard error is a terminal.
    """

    def __init__(self, show: bool | None = None) -> None:
        self._disable = None if show is None else not show

    @contextmanager
    def rounds(self, total: int, done: int) -> Iterator[tqdm]:
        """The bar of the run; ``done`` rounds were finished before. Log lines go above the bars meanwhile."""
        loggers = [logging.root, logging.getLogger("samfed_monai")]
        with logging_redirect_tqdm(loggers), self._bar(total, "rounds", 0, initial=done, leave=True) as bar:
            yield bar

    def sites(self, total: int) -> tqdm:
        """The bar of one round's sites."""
        return self._bar(total, "sites", 1)

    @contextmanager
    def iterations(self, engine: Any) -> Iterator[None]:
        """The bar of one engine's iterations; anything that is not an Ignite engine gets none."""
        if not isinstance(engine, Engine):
            yield
            return
        with self._bar(None, "iterations", 2) as bar:
            if bar.disable:
                yield
                return

            def advance(engine: Engine) -> None:
                if bar.total is None and engine.state.epoch_length and engine.state.max_epochs:
                    left = engine.state.max_epochs - engine.state.epoch + 1
                    bar.reset(total=left * engine.state.epoch_length)
                bar.update()

            with engine.add_event_handler(Events.ITERATION_COMPLETED, advance):
                yield

    def _bar(self, total: int | None, what: str, place: int, **options: Any) -> tqdm:
        options.setdefault("leave", False)
        return tqdm(total=total, desc=what, position=place, disable=self._disable, dynamic_ncols=True, **options)
