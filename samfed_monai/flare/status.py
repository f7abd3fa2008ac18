"""The state of a run on FLARE: its status file, and what the server's log says of it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import ExitCode, SamFedError
from samfed_monai.core.io import PUBLIC, read_json, write_json

logger = logging.getLogger(__name__)

STATUS = "flare.json"
RUN_ID = "flare.run.json"
"""Holds the run's random name, under which every site keeps its state."""


def write_status(folder: str | Path, state: str, message: str = "", exit_code: int = 0) -> dict[str, Any]:
    """Writes ``flare.json``; returns its content.

    Args:
        folder: the run's folder.
        state: ``running``, ``done``, ``refused``, ``stopped`` or ``failed``.
        message: what the user is shown.
        exit_code: of the command that waits for the run.
    """
    content = {"state": state, "message": message, "exit_code": int(exit_code), "time": time.time()}
    write_json(Path(folder) / STATUS, content, mode=PUBLIC)
    return content


def read_status(folder: str | Path) -> dict[str, Any]:
    """What :func:`write_status` wrote last; ``{"state": "none"}`` before that."""
    path = Path(folder) / STATUS
    return dict(read_json(path)) if path.is_file() else {"state": "none", "message": "", "exit_code": 1}


def clear_status(folder: str | Path) -> None:
    """Forgets how an earlier start of the run ended."""
    (Path(folder) / STATUS).unlink(missing_ok=True)


_FOR_USERS = re.compile(
    r"round \d+ of \d+: .*|going on after round .*|\w+: waiting for .*|.*: dropped an? .*|.* failed: .*"
    r"|.*: its message was refused: .*|teacher: .*|warm start: .*"
)
_LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ - (?:[\w.]+ - )?(?:INFO|WARNING) - (?:\[.*?\]: )?(.*)")
_ENDED = re.compile(
    r"^\d{4}-\d\d-\d\d [\d:,]+ - (?:[\w.]+ - )?ERROR - (?:\[.*?\]: )?((?:stopped|refused): .*(?:\n  .*)*)", re.MULTILINE
)


class ShownLog:
    """The lines of a server's log that were shown to the user; each is shown once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def show(self, log: str) -> None:
        """Shows what is new; of a long log FLARE sends the end alone, so what was shown may begin before it."""
        shown, lines = self._lines, user_lines(log.splitlines())
        known = next((n for n in range(min(len(shown), len(lines)), 0, -1) if shown[-n:] == lines[:n]), 0)
        for line in lines[known:]:
            logger.info("%s", line)
        self._lines = lines or shown

    def stored(self) -> str:
        """How many rounds the server has stored."""
        return stored_rounds(self._lines)


def user_lines(lines: Iterable[str]) -> list[str]:
    """Lines of a FLARE log that are meant for users, without FLARE's prefix."""
    found = (_LINE.match(line) for line in lines)
    return [line[1].strip() for line in found if line and _FOR_USERS.fullmatch(line[1].strip())]


def last_report(log: str) -> ServerReported | None:
    """How the run ended by the server's log, for a server that could not write its status (a full disk)."""
    found = list(_ENDED.finditer(log))
    if not found:
        return None
    message = found[-1][1]
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
