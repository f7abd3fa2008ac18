"""SIGTERM as an exception that is deferred while something is written."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from samfed_monai.core.errors import AGAIN, WORK_KEPT, ExitCode, Stopped, Terminated

RECEIVED_SIGTERM = "received SIGTERM"


def stopped_by_sigterm(kept: str | None = None) -> Stopped:
    """Returns the error of a command that SIGTERM ended; the same command continues with the work that is kept."""
    return Stopped(RECEIVED_SIGTERM, AGAIN, kept or WORK_KEPT)


class Interrupted(Stopped):
    """Ctrl-C, with the last good state kept."""

    exit_code = ExitCode.INTERRUPTED


class Termination:
    """Turns SIGTERM into :class:`Terminated` inside a ``with`` block, once, so that a second one ends no clean-up.

    SIGHUP of a closed terminal counts as SIGTERM, unless the process ignores it (``nohup``).
    A nested block takes over until it ends. Outside the main thread, where Python allows no handlers, it does nothing.

    Example::

        with Termination() as termination:
            train()                       # SIGTERM raises Terminated here, at once
            with termination.deferred():
                write()                   # and here only when the block has ended
    """

    def __init__(self) -> None:
        self._deferred = self._pending = False
        self._previous: dict[signal.Signals, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            ends = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
            self._previous = {each: signal.signal(each, self._receive) for each in ends}
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous or signal.SIG_DFL)
        self._previous = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defers a signal until the block has ended without an error."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._pending:
            raise Terminated(RECEIVED_SIGTERM)

    def _receive(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:  # a forked worker of a data loader: it stores nothing
            os._exit(128 + number)
        again, self._pending = self._pending, True
        if not (again or self._deferred):
            raise Terminated(RECEIVED_SIGTERM)
