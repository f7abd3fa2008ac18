"""Answers as they come from other threads: which of them counts, and why the others are dropped."""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Container, Iterable

logger = logging.getLogger(__name__)

Answer = bytes | str
"""An envelope's bytes, or why there is none."""


class Arrivals:
    """Collects the answers of one exchange after the other.

    Args:
        missing: sites that missed a deadline and have sent nothing since; whoever sends something is taken out.
    """

    def __init__(self, missing: set[str]) -> None:
        self.missing = missing
        self._queue: queue.Queue[tuple[int, str, Answer]] = queue.Queue()
        self._first: tuple[int, str, Answer] | None = None

    def put(self, exchange: int, sender: str, answer: Answer) -> None:
        """Called from any thread."""
        self._queue.put((exchange, sender, answer))

    def wait(self, seconds: float) -> None:
        """Until something has come, or for so long."""
        with contextlib.suppress(queue.Empty):
            self._first = self._queue.get(timeout=seconds)

    def collect(
        self, exchange: int, asked: Container[str], answered: Container[str]
    ) -> tuple[dict[str, Answer], dict[str, int]]:
        """Everything that has come and counts, and the bytes of everything that came from who was asked.

        Args:
            exchange: the number of the one that runs.
            asked: sites that it asked.
            answered: those that have answered already.
        """
        taken: dict[str, Answer] = {}
        size: dict[str, int] = {}
        while True:
            try:
                number, sender, answer = self._first or self._queue.get_nowait()
            except queue.Empty:
                return taken, size
            self._first = None
            if sender not in asked:
                logger.warning("dropped an answer of %r, which is no site that was asked", sender)
                continue
            if isinstance(answer, bytes):
                size[sender] = size.get(sender, 0) + len(answer)
            if number != exchange:
                self.late(sender)
            elif sender in answered or sender in taken:
                logger.warning("%s: dropped a second answer (one per site and message)", sender)
            else:
                self.missing.discard(sender)
                taken[sender] = answer

    def late(self, site: str) -> None:
        """Something came from ``site`` after its deadline; it is dropped, but the site is there again."""
        logger.warning("%s: dropped a late answer (its deadline had passed)", site)
        self.missing.discard(site)


def waiting(task: str, sites: Iterable[str], left: float | None) -> str:
    """One line about who is waited for: ``train: waiting for site-2, site-3 (4 min left)``."""
    names = ", ".join(sorted(sites))
    if left is None:
        return f"{task}: waiting for {names}"
    return (
        f"{task}: waiting for {names} ({left / 60:.0f} min left)"
        if left >= 90
        else (f"{task}: waiting for {names} ({left:.0f} s left)")
    )
