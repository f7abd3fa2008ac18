"""What goes wrong and how it is told: problems are collected, then refused together."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every ``samfed`` command and bundle workflow."""

    DONE = 0
    FAILED = 1
    REFUSED = 2
    STOPPED = 3
    INTERRUPTED = 130


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what the user gave.

    Args:
        where: file, key or JSON path, for instance ``train.json -> loss#alpha``.
        found: what stands there now.
        expected: what should stand there.
        mend: what the user can do about it.
    """

    where: str
    found: str
    expected: str
    mend: str = ""

    def __str__(self) -> str:
        sentence = f"{self.where}: expected {self.expected}, found {self.found}"
        return f"{sentence}; {self.mend}" if self.mend else sentence


class SamFedError(Exception):
    """Base of the errors that a command turns into a message and an exit code, without a traceback."""

    exit_code = ExitCode.STOPPED


class Refused(SamFedError, ValueError):
    """Bad input, found before any work was done; carries every problem, not just the first, and each once."""

    exit_code = ExitCode.REFUSED

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(dict.fromkeys(problems))
        count = len(self.problems)
        head = "refused: 1 problem" if count == 1 else f"refused: {count} problems"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))


class Stopped(SamFedError, RuntimeError):
    """Work stopped half-way with the last good state kept.

    Args:
        reason: what happened.
        resume: what to do or to type to go on from there.
    """

    exit_code = ExitCode.STOPPED

    def __init__(self, reason: str, resume: str = "") -> None:
        self.reason, self.resume = reason, resume
        super().__init__(f"stopped: {reason}" + (f"\n  to go on: {resume}" if resume else ""))


class Problems:
    """A list of problems that grows while input is checked and is refused once, at the end.

    Example::

        problems = Problems()
        if alpha < 0:
            problems.add("train.json -> loss#alpha", found=repr(alpha), expected="a number >= 0")
        problems.refuse_if_any()
    """

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def add(self, where: str, *, found: str, expected: str, mend: str = "") -> None:
        self._problems.append(Problem(where=where, found=found, expected=expected, mend=mend))

    def extend(self, problems: Iterable[Problem]) -> None:
        self._problems.extend(problems)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Takes over what is refused inside its block, which ends there."""
        try:
            yield
        except Refused as refused:
            self.extend(refused.problems)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._problems)

    def __len__(self) -> int:
        return len(self._problems)

    def refuse_if_any(self) -> None:
        """Raises :class:`Refused` with everything collected so far; does nothing when there is nothing."""
        if self._problems:
            raise Refused(self._problems)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """How to mend a misspelt name: ``did you mean 'x'?``, or an empty string when none of ``known`` is close."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""
