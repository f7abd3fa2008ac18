"""How a run on FLARE stands, in the run's own folder: FLARE's exit codes and job status do not say it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import ExitCode
from samfed_monai.core.io import read_json, write_json

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
    write_json(Path(folder) / STATUS, content)


def read_status(folder: str | Path) -> dict[str, Any]:
    """What :func:`write_status` wrote last; ``{"state": "none"}`` before that."""
    path = Path(folder) / STATUS
    return (
        dict(read_json(path)) if path.is_file() else {"state": "none", "message": "", "exit_code": int(ExitCode.FAILED)}
    )


def clear_status(folder: str | Path) -> None:
    """Forgets how an earlier start of the run ended."""
    (Path(folder) / STATUS).unlink(missing_ok=True)
