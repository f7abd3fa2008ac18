"""Progress bars: redrawn on a terminal, one line every half minute in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 30.0
"""Between two lines of a log."""


class LogBar(tqdm):
    """A bar whose every state is a line of its own: a file has no line that could be drawn again."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Writes the state; tqdm asks for an empty one to wipe a bar away, of which a log has no need."""
        text = str(self) if msg is None else msg
        if text:
            self.fp.write(f"{text}\n")
        return bool(text)

    def close(self) -> None:
        """Writes the last state, if it was not, and lets tqdm do the rest silently."""
        if not self.disable and self.last_print_n != self.n:
            self.display()
        self.leave = False
        super().close()


def progress_bar(of: Iterable[Any] | None = None, *, show: bool = True, **options: Any) -> tqdm:
    """tqdm on a terminal, :class:`LogBar` elsewhere.

    Args:
        of: what is gone through; with ``None``, call ``update``.
        show: whether there is a bar at all.
        options: of ``tqdm.tqdm``.

    Example::

        for record in progress_bar(records, desc="soft masks", unit="image"):
            look(record)
    """
    hidden = {} if show else {"disable": True}  # without the argument, tqdm reads TQDM_DISABLE
    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(of, **hidden, **options)
    seldom = {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS, "ascii": True}
    return LogBar(of, **hidden, **seldom | options)
