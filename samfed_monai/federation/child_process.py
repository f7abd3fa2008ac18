"""A child process that serves requests over a pipe: started on demand, killed, or restarted after it died.

Nothing here imports torch, so the parent process (for instance a FLARE client) stays light.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

Reply = tuple[Mapping[str, Any], bytes]
"""A reply: JSON content, and a payload of any number of bytes."""
_PIPE_CLOSED = (EOFError, OSError)


def _send(pipe: Connection, head: Mapping[str, Any], payload: bytes) -> None:
    pipe.send_bytes(json.dumps(head).encode())
    pipe.send_bytes(payload)


def _receive(pipe: Connection) -> tuple[dict[str, Any], bytes]:
    return json.loads(pipe.recv_bytes()), pipe.recv_bytes()


def serve(start: Callable[[dict[str, Any]], Callable[[dict[str, Any], bytes], Reply]]) -> NoReturn:
    """Serves requests in the child process, one at a time, until the pipe (file descriptor ``sys.argv[1]``) is closed.

    When the parent process ends, this process exits at once, even during a request.

    Args:
        start: takes the settings, returns the request handler: ``answer(head, payload)`` returns a head and bytes.
    """
    pipe = Connection(int(sys.argv[1]))
    settings, _ = _receive(pipe)
    requests: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()

    def receive() -> None:
        try:
            while True:
                requests.put(_receive(pipe))
        except _PIPE_CLOSED:
            os._exit(0)

    threading.Thread(target=receive, daemon=True).start()
    handle = start(settings)
    while True:
        _send(pipe, *handle(*requests.get()))


class ChildDied(Exception):
    """The child process ended without a reply; the text may leave the site (a signal or an exit code, nothing else)."""


@dataclass
class Child:
    """Starts ``python -m <module>``, which calls :func:`serve`, and sends it requests.

    The process stays in the caller's process group, so signals to the group reach it too, except Ctrl-C, which the
    caller handles; it exits when the caller is gone.

    Args:
        module: module to run: :mod:`samfed_monai.flare.worker`, :mod:`samfed_monai.federation.process_transport`.
        settings: JSON content that is sent first.
        log: file to append its output to; ``None`` inherits this process's output.
        environment: variables on top of this process's own.
        cwd: working directory, from which Python imports first; ``None`` is this process's own.
    """

    module: str
    settings: Mapping[str, Any]
    log: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    _process: subprocess.Popen | None = field(default=None, init=False)
    _pipe: Connection | None = field(default=None, init=False)

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id; ``None`` before :meth:`start` and after :meth:`stop`."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Starts a new process, after ending one that still runs."""
        self.stop()
        self._pipe, child_end = Pipe()
        with contextlib.ExitStack() as stack:
            descriptor = stack.enter_context(child_end).fileno()
            output = stack.enter_context(open(self.log, "ab")) if self.log else None
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # by this thread and the new process
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, blocked)
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", self.module, str(descriptor)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(descriptor,),
                env={**os.environ, **self.environment},
                cwd=self.cwd,
            )
        logger.info("started training process %d", self._process.pid)
        self._exchange(lambda pipe: _send(pipe, self.settings, b""))

    def ask(self, head: Mapping[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Sends JSON content and bytes, and waits for the reply.

        Raises:
            ChildDied: the process ended before it replied.
        """

        def exchange(pipe: Connection) -> tuple[dict[str, Any], bytes]:
            _send(pipe, head, payload)
            return _receive(pipe)

        return self._exchange(exchange)

    def kill(self) -> None:
        """Ends the process at once; a pending :meth:`ask` in another thread then raises :class:`ChildDied`."""
        process = self._process  # another thread may be starting a new one
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """Ends the process; safe to call at any time."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)
            self._process.kill()
            self._process.wait()
        self._process = self._pipe = None

    def _exchange(self, work: Callable[[Connection], Any]) -> Any:
        assert self._pipe is not None
        try:
            return work(self._pipe)
        except _PIPE_CLOSED:
            raise ChildDied(self._exit_reason()) from None

    def _exit_reason(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "the training process closed its pipe"
        if code >= 0:
            return f"the training process ended with code {code}; see its log at the site"
        name = signal.Signals(-code).name
        hint = " (killed, for instance because memory ran out)" if -code == signal.SIGKILL else ""
        return f"the training process was ended by {name}{hint}"
