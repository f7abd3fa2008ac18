"""What to say of runs that failed: what each said last in its log, and whether typing the command again helps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from samfed_monai.config.exit_codes import OUR_MISTAKE
from samfed_monai.errors import ExitCode, SamFedError, Stopped

AGAIN = "type the same command again"
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(: |$)")  # what a traceback ends with
_MONAI_S = re.compile(r"RuntimeError: Failed to (instantiate|evaluate) ")  # around what a component raised


class FailedRun(NamedTuple):
    """A run of a comparison that failed: its name, its folder and its exit code."""

    name: str
    folder: Path
    code: int


class RunsRefused(SamFedError):
    """Every run that failed was refused."""

    exit_code = ExitCode.REFUSED


def failure(failed: Sequence[FailedRun], runs: int) -> RunsRefused | Stopped:
    """The error that tells of failed runs; those that said the same are told together.

    Args:
        failed: in the order in which they ended.
        runs: how many there are, those included that did not fail.
    """
    told: dict[tuple[str, ...], list[FailedRun]] = {}
    for run in failed:
        told.setdefault(last_words(run.folder, run.code), []).append(run)
    text = "".join(_paragraph(lines, those) for lines, those in told.items())
    refused = sum(run.code == ExitCode.REFUSED for run in failed)
    if refused == len(failed):
        return RunsRefused(f"refused: {refused} of {runs} runs{text}\n  to go on: mend it, then {AGAIN}")
    resume = f"mend what was refused ({refused} of them), then {AGAIN}" if refused else AGAIN
    return Stopped(f"{len(failed)} of {runs} runs failed{text}", resume=resume)


def last_words(folder: Path, code: int) -> tuple[str, ...]:
    """What a run that ended with this exit code said last: its problems, its exception, or else its last line."""
    log = folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    if code == ExitCode.REFUSED:
        heads = [place for place, line in enumerate(lines) if line.startswith("refused: ")]
        if heads and lines[heads[-1] + 1 :]:
            return tuple(line.strip() for line in lines[heads[-1] + 1 :])
    if lines and lines[-1] == OUR_MISTAKE:
        lines = [line for line in lines if _EXCEPTION.match(line) and not _MONAI_S.match(line)] or lines
    return (lines[-1].strip(),) if lines else ("no output",)


def _paragraph(lines: Sequence[str], runs: Sequence[FailedRun]) -> str:
    head = "".join(f"\n    {run.name} ({run.folder / 'log.txt'}):" for run in runs)
    return head + "".join(f"\n      {line}" for line in lines)
