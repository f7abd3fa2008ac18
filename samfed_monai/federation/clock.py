"""Seconds by activity, where an activity inside another is not counted twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


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
