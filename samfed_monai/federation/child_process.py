"""A process that trains, as whoever asks it sees it: two pipes, started when needed, replaced when it died.

Nothing here imports torch: whoever asks, a FLARE client for instance, stays light.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

logger = logging.getLogger(__name__)


_LENGTHS = struct.Struct("<IQ")
_MAX_HEAD = 1 << 20


class Ended(Exception):
    """The other end of the pipe is closed: its process has ended."""


def write_frame(stream: BinaryIO, head: Mapping[str, Any], payload: bytes | memoryview = b"") -> None:
    """Writes one message.

    Args:
        stream: an unbuffered or buffered binary stream; it is flushed.
        head: JSON content.
        payload: any number of bytes.

    Raises:
        Ended: nobody reads.
    """
    words = json.dumps(head).encode()
    try:
        stream.write(_LENGTHS.pack(len(words), len(payload)) + words)
        stream.write(payload)
        stream.flush()
    except (BrokenPipeError, ValueError) as error:
        raise Ended from error


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Waits for one message and reads it.

    Raises:
        Ended: the stream ended, between two messages or inside one.
    """
    length, size = _LENGTHS.unpack(_read(stream, _LENGTHS.size))
    if length > _MAX_HEAD:
        raise Ended
    head = json.loads(_read(stream, length))
    return head, _read(stream, size)


def incoming(stream: BinaryIO) -> queue.Queue[tuple[dict[str, Any], bytes]]:
    """Reads messages in a thread of its own and ends this process, whatever it does, when nobody can send any more."""
    frames: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()

    def receive() -> None:
        try:
            while True:
                frames.put(read_frame(stream))
        except Ended:
            os._exit(0)  # whoever asked is gone: nothing that runs here has anyone to answer to

    threading.Thread(target=receive, daemon=True).start()
    return frames


def _read(stream: BinaryIO, count: int) -> bytes:
    content = stream.read(count)
    if content is None or len(content) < count:
        raise Ended
    return content


class ChildDied(Exception):
    """The process that trains ended without an answer; the text may travel (a signal or a code, nothing else)."""


class Child:
    """Starts ``python -m <module>`` and asks it over two pipes.

    The process stays in the caller's process group, so that whoever ends the group ends it, too; it ends itself when
    the caller is gone.

    Args:
        module: of the process; see :mod:`samfed_monai.flare.worker`, :mod:`samfed_monai.federation.site_process`.
        settings: JSON content that it gets first.
        log: file that its output is appended to; ``None`` passes it on.
        environment: on top of this process's own.
        cwd: folder that it runs in, and that Python imports from first; ``None`` is this process's own.
    """

    def __init__(
        self,
        module: str,
        settings: Mapping[str, Any],
        *,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.module, self.settings, self.log = module, dict(settings), log
        self.cwd = cwd
        self.environment = {**os.environ, **environment} if environment else None
        self._process: subprocess.Popen | None = None
        self._to: BinaryIO | None = None
        self._from: BinaryIO | None = None

    @property
    def alive(self) -> bool:
        """Whether there is a process that can be asked."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its number; ``None`` when there is none."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Starts a fresh process; one that is there is ended first."""
        self.stop()
        down_read, down_write = os.pipe()
        up_read, up_write = os.pipe()
        command = [sys.executable, "-u", "-m", self.module, str(down_read), str(up_write)]
        output = open(self.log, "ab") if self.log else None  # noqa: SIM115 - the process keeps it
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(down_read, up_write),
                env=self.environment,
                cwd=self.cwd,
            )
        finally:
            os.close(down_read)
            os.close(up_write)
            if output is not None:
                output.close()
        self._to, self._from = os.fdopen(down_write, "wb"), os.fdopen(up_read, "rb")
        logger.info("the process that trains is %d", self._process.pid)
        self._send(self.settings, b"")

    def ask(self, head: Mapping[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Sends a message and waits for the answer.

        Raises:
            ChildDied: it ended before it had answered.
        """
        self._send(head, payload)
        assert self._from is not None
        try:
            return read_frame(self._from)
        except Ended:
            raise ChildDied(self._how()) from None

    def kill(self) -> None:
        """Ends the process at once; whoever waits for its answer, in another thread, gets :class:`ChildDied`."""
        process = self._process  # another thread may be starting a fresh one
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """Ends the process and everything it started; safe to call at any time."""
        for stream in (self._to, self._from):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._process is not None:
            if self._process.poll() is None:
                try:
                    self._process.wait(timeout=2)
                except subprocess.TimeoutExpired:
                    self._process.kill()
            self._process.wait()
        self._process = self._to = self._from = None

    def _send(self, head: Mapping[str, Any], payload: bytes) -> None:
        assert self._to is not None
        try:
            write_frame(self._to, head, payload)
        except Ended:
            raise ChildDied(self._how()) from None

    def _how(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "the process that trains closed its pipe"
        if code >= 0:
            return f"the process that trains ended with code {code}; see its log at the site"
        name = signal.Signals(-code).name
        hint = " (killed, for instance for want of memory)" if -code == signal.SIGKILL else ""
        return f"the process that trains was ended by {name}{hint}"
