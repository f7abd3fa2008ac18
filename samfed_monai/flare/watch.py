"""The status of a run on FLARE, in its folder, followed from this machine."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import AGAIN, ExitCode, Problem, Refused, SamFedError, Stopped
from samfed_monai.core.io import PUBLIC, read_json, write_json

logger = logging.getLogger(__name__)


STATUS = "flare.json"
RUN_ID = "flare.run.json"
"""Holds the run's random name, under which every site keeps its state."""


def write_status(folder: str | Path, state: str, message: str = "", exit_code: int = 0) -> None:
    """Writes ``flare.json``.

    Args:
        folder: the run's folder.
        state: ``running``, ``done``, ``refused``, ``stopped`` or ``failed``.
        message: what the user is told.
        exit_code: of the command that waits for the run.
    """
    content = {"state": state, "message": message, "exit_code": int(exit_code), "time": time.time()}
    write_json(Path(folder) / STATUS, content, mode=PUBLIC)


def read_status(folder: str | Path) -> dict[str, Any]:
    """What :func:`write_status` wrote last; ``{"state": "none"}`` before that."""
    path = Path(folder) / STATUS
    return (
        dict(read_json(path)) if path.is_file() else {"state": "none", "message": "", "exit_code": int(ExitCode.FAILED)}
    )


def clear_status(folder: str | Path) -> None:
    """Forgets how an earlier start of the run ended."""
    (Path(folder) / STATUS).unlink(missing_ok=True)


_FOR_USERS = re.compile(
    r"round \d+ of \d+: .*|going on after round .*|\w+: waiting for .*|.*: dropped an? .*|.* failed: .*"
    r"|.*: its message was refused: .*|teacher: .*|warm start: .*"
)
_LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ - (?:[\w.]+ - )?(?:INFO|WARNING) - (?:\[.*?\]: )?(.*)")
_ENDED = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ - (?:[\w.]+ - )?ERROR - (?:\[.*?\]: )?((?:stopped|refused): .*)")


class Watch:
    """Tells what the server's log says that a user wants to know.

    Args:
        folder: the run's folder; its ``flare.json`` says how the run stands.
        log: the server's log file, which may not exist yet.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        self._read = 0
        self._rest = ""

    def until_done(self, running: Callable[[], str], *, timeout: float | None = None) -> dict[str, Any]:
        """Waits for the run's end.

        Args:
            running: called every second; says why the run cannot end any more, or ``""``.
            timeout: seconds; ``None`` waits.

        Returns:
            The run's status.

        Raises:
            Stopped, Refused: as the server said, or the time is over, or FLARE ended without a status of the run.
        """
        started = time.monotonic()
        while True:
            self.tell()
            status = read_status(self.folder)
            if status["state"] not in ("none", "running"):
                break
            gone = running()
            if gone:
                time.sleep(0.5)
                status = read_status(self.folder)
                if status["state"] in ("none", "running"):
                    if self.log.is_file() and (reported := last_report(self.log.read_text(errors="replace"))):
                        raise reported
                    raise Stopped(f"{gone}{self.tail()}", AGAIN)
                break
            if timeout is not None and time.monotonic() - started > timeout:
                raise Stopped(f"no end after {timeout:g} s; everything that was started is ended", AGAIN)
            time.sleep(0.3)
        self.tell()
        raise_for_status(status)
        return status

    def tell(self) -> None:
        """Logs the new lines of the server's log that are meant for users."""
        if not self.log.is_file():
            return
        with open(self.log, "rb") as stream:
            stream.seek(self._read)
            text = self._rest + stream.read().decode(errors="replace")
            self._read = stream.tell()
        *lines, self._rest = text.split("\n")
        for line in user_lines(lines):
            logger.info("%s", line)

    def tail(self) -> str:
        """The last errors of the log, for a message."""
        if not self.log.is_file():
            return ""
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if "ERROR" in line or "Error" in line][-5:] or lines[-5:]
        return "".join(f"\n  | {line[:300]}" for line in errors)


def user_lines(lines: Iterable[str]) -> list[str]:
    """Lines of a FLARE log that are meant for users, without FLARE's prefix."""
    found = (_LINE.match(line) for line in lines)
    return [line[1].strip() for line in found if line and _FOR_USERS.fullmatch(line[1].strip())]


def last_report(log: str) -> ServerReported | None:
    """How the run ended by the server's log, for a server that could not write its status (a full disk)."""
    said: list[str] = []
    for line in log.splitlines():
        found = _ENDED.match(line)
        if found:
            said = [found[1]]
        elif said and line.startswith("  "):
            said.append(line)
        elif said:
            said.append("")  # what follows is not part of it
    if not said:
        return None
    message = "\n".join(said[: said.index("") if "" in said else None])
    return ServerReported(message, ExitCode.REFUSED if message.startswith("refused") else ExitCode.STOPPED)


_STORED = re.compile(
    r"going on after round (\d+) of (\d+)|round (\d+) of (\d+): (?:validation Dice|no validation scores)"
)


def stored_rounds(lines: Iterable[str]) -> str:
    """How many rounds a server has stored, by the lines of its log that are meant for users."""
    found = [line for line in map(_STORED.match, lines) if line]
    if not found:
        return "no round is stored yet, as far as the server's log says"
    done, of = (number for number in found[-1].groups() if number)
    return f"{done} of {of} rounds are stored at the server"


def raise_for_status(status: dict[str, Any]) -> None:
    """Raises what the server's run ended with; nothing for a run that is done.

    Raises:
        SamFedError: with the server's own message and exit code.
    """
    if status["state"] == "done":
        return
    unknown = f"stopped: the run's own record says {status['state']!r}; see the server's log"
    raise ServerReported(status["message"] or unknown, status["exit_code"] or ExitCode.STOPPED)


class ServerReported(SamFedError):
    """The error with which the server's run ended, in the server's own words."""

    def __init__(self, message: str, code: int) -> None:
        self.exit_code = code  # type: ignore[assignment]
        super().__init__(message)


def refuse_busy_port(port: int) -> None:
    """Refuses a port that something else listens on.

    Raises:
        Refused: with how to choose another.
    """
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            hint = f"choose another one, for instance --port {port + 100}, or end the program that uses it"
            raise Refused([Problem(f"port {port}", found="in use", expected="a free port", hint=hint)]) from None
