"""FLARE's processes, of which nothing is left behind: they carry a mark in their environment and are ended by it.

FLARE puts clients, job processes and trainers into sessions of their own, so that ending one process group leaves the
others; and killing the simulator leaves orphans. The mark is inherited by all of them.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Stopped
from samfed_monai.federation.signals import Terminated, Termination

logger = logging.getLogger(__name__)

MARK = "SAMFED_FLARE_MARK"


class Processes:
    """Starts processes and ends them with everything that they have started.

    Use it in a ``with`` block: whatever ends the block (an error, a time-out, Ctrl-C, SIGTERM), they are gone after it.

    Args:
        environment: on top of this process's own.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.mark = secrets.token_hex(8)
        self.environment = {**os.environ, **(environment or {}), MARK: self.mark}
        self.started: dict[str, subprocess.Popen] = {}
        self._termination = Termination()

    def start(self, name: str, command: Sequence[str], *, cwd: Path, log: Path, more: Mapping[str, str] | None = None):
        """Starts a process in a session of its own; its output goes to ``log``."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env={**self.environment, **(more or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.started[name] = process
        return process

    def marked(self) -> list[int]:
        """Numbers of all processes that carry the mark."""
        import psutil

        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except (psutil.Error, OSError):
                continue
        return [pid for pid in found if pid != os.getpid()]

    def end(self, grace: float = 5.0) -> None:
        """Asks all of them to end, and kills what is still there after ``grace`` seconds."""
        for number, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            for pid in self.marked():
                try:
                    os.kill(pid, number)
                except OSError:
                    continue
            deadline = time.monotonic() + wait
            while self.marked() and time.monotonic() < deadline:
                for process in self.started.values():
                    process.poll()
                time.sleep(0.1)
        for process in self.started.values():
            process.poll()

    def __enter__(self) -> Processes:
        self._termination.__enter__()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._termination.__exit__()
        self.end()
        if kind is not None and issubclass(kind, Terminated):
            raise Stopped("asked to end (SIGTERM); the rounds that were stored are kept", "type the same command again")
