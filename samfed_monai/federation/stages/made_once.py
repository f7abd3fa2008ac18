"""Several runs may share a cache: whoever comes first makes a thing, the others wait and take it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def made_once(path: str | Path) -> Iterator[bool]:
    """Holds a lock on ``path`` while its maker works; says whether it exists already.

    The lock is the operating system's, on ``<path>.lock``: it goes away with a process that dies. Where the platform
    has no such locks, two runs may make the same thing twice, which costs time and nothing else.

    Example::

        with made_once(path) as exists:
            if not exists:
                make(path)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        _lock(lock.fileno(), path.name)
        yield path.exists()


def _lock(descriptor: int, name: str) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("another run is making %s; waiting for it", name)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
