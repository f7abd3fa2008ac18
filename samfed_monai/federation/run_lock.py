"""One run per folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from samfed_monai.core.errors import Problem, Refused

# Keeps the files of held locks open: the system drops a lock when its file is closed, garbage collection included.
_held: dict[Path, TextIO] = {}


class RunLock:
    """A lock file in a run's folder.

    The lock is the operating system's own (``fcntl``), so that of a killed process is free at once and its file is
    simply taken over; workers that outlive their process do not hold it. It does not work across machines on network
    file systems without lock service.

    Args:
        path: the lock file; it holds the process id of its owner and stays when the lock is released.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._holds = False

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            Refused: another run holds it (fault 51).
        """
        if self.path in _held:
            raise self._refusal(str(os.getpid()))
        stream = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the lock is held
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            owner = stream.read().strip()
            stream.close()
            raise self._refusal(owner or "unknown") from None
        stream.seek(0)
        stream.truncate()
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        _held[self.path] = stream
        self._holds = True

    def release(self) -> None:
        """Gives the lock back; nothing when it is not held."""
        if self._holds:
            self._holds = False
            _held.pop(self.path).close()

    def _refusal(self, owner: str) -> Refused:
        mend = "wait for it, stop it, or choose another output_dir"
        found = f"another run is at work in it (process {owner})"
        return Refused([Problem(str(self.path.parent), found=found, expected="a folder of its own", mend=mend)])
