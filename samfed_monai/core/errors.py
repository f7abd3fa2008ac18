"""Errors as messages and exit codes: problems of the input are collected, then refused together."""

from __future__ import annotations

import difflib
import errno
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import PurePath

from samfed_monai.core.text import printable


class ExitCode(IntEnum):
    """Exit codes of every ``samfed`` command and bundle workflow."""

    DONE = 0
    FAILED = 1
    REFUSED = 2
    STOPPED = 3
    INTERRUPTED = 130


@dataclass(frozen=True)
class Problem:
    """One error in the user's input.

    Args:
        where: file, key or JSON path, for instance ``train.json -> loss#alpha``.
        found: the present value.
        expected: the values that are accepted.
        hint: how the user can fix it.
    """

    where: str
    found: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        sentence = f"{self.where}: expected {self.expected}, found {self.found}"
        return printable(f"{sentence}; {self.hint}" if self.hint else sentence, keep="")


def with_skip_hint(problem: Problem) -> Problem:
    """Returns the problem of an unreadable file with ``--skip-unreadable`` added to its hint."""
    return replace(problem, hint=f"{problem.hint or 'copy it again'}; or skip the file with --skip-unreadable")


class SamFedError(Exception):
    """Base of the errors that a command turns into a message and an exit code, without a traceback."""

    exit_code = ExitCode.STOPPED


class Refused(SamFedError, ValueError):
    """Bad input, found before any work was done; holds every problem, not just the first, without duplicates.

    Its text has one line for each problem; problems of one cause share a line (:func:`folded`).
    """

    exit_code = ExitCode.REFUSED

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(dict.fromkeys(problems))
        count = len(self.problems)
        head = "refused: 1 problem" if count == 1 else f"refused: {count} problems"
        super().__init__("\n".join([head, *(f"  - {line}" for line in folded(self.problems))]))


def refused(where: object, found: str, expected: str, hint: str = "") -> Refused:
    """Returns the error for a single problem; ``where`` may be a path."""
    return Refused([Problem(str(where), found, expected, hint)])


EXAMPLES = 3
"""Number of places that a line names when a cause has more."""
# the parts in which problems of one cause differ: quoted text, paths, file names, words with a digit
_NAMED = re.compile(r"'[^']*'|\"[^\"]*\"|[^\s,;:()\[\]]*[\d/\\][^\s,;]*|[^\s,;:()\[\]]+\.\w{1,5}\b")
_IS_PATH = re.compile(r"[/\\]|\.\w{1,5}\b")


def folded(problems: Iterable[Problem]) -> list[str]:
    """Returns the lines of a message, with one line for many problems of the same cause.

    Problems have the same cause if they differ only in names, paths and numbers, and their places only in files and
    numbers; keys of a configuration are never folded. A cause with more than :data:`EXAMPLES` places gets one line with
    the count and the first places. Causes are in the order of their first problems.
    """
    causes: dict[tuple[str, ...], dict[str, list[Problem]]] = {}
    for problem in problems:
        causes.setdefault(_cause(problem), {}).setdefault(problem.where, []).append(problem)
    lines = []
    for places in causes.values():
        all_problems = [problem for same_place in places.values() for problem in same_place]
        if len(places) <= EXAMPLES:
            lines += [str(problem) for problem in all_problems]
            continue
        *names, last = list(places)[:EXAMPLES]
        where = f"{len(all_problems)} times, such as {', '.join(names)} and {last}"
        is_same_text = len({(problem.found, problem.expected, problem.hint) for problem in all_problems}) == 1
        lines.append(str(replace(all_problems[0], where=where if is_same_text else f"{where}; the first")))
    return lines


def _cause(problem: Problem) -> tuple[str, ...]:
    parts = problem.where.split(" -> ")
    names = {name for part in parts for name in (part, PurePath(part).name, PurePath(part).stem) if len(name) > 1}
    texts = [problem.found, problem.expected, problem.hint]
    for name in sorted(names, key=len, reverse=True):
        texts = [text.replace(name, "*") for text in texts]
    place = ["*" if _IS_PATH.search(part) else re.sub(r"\d+", "*", part) for part in parts]
    return (*place, *(_NAMED.sub("*", text) for text in texts))


class Stopped(SamFedError, RuntimeError):
    """The work stopped half-way; the last good state is kept.

    Args:
        reason: what happened.
        resume: how to continue from that state, for instance a command.
        kept: the work that is kept, if the reason does not name it.
    """

    exit_code = ExitCode.STOPPED

    def __init__(self, reason: str, resume: str = "", kept: str = "") -> None:
        self.reason, self.resume, self.kept = reason, resume, kept
        text = "; ".join(filter(None, (reason, kept)))
        super().__init__(printable(f"stopped: {text}" + (f"\n  to continue: {resume}" if resume else "")))


class Terminated(BaseException):
    """The process received SIGTERM. Not an ``Exception``, so that ``except Exception`` does not swallow it."""


class Problems(list[Problem]):
    """A list of problems, collected while input is checked and raised together at the end.

    Example::

        problems = Problems()
        problems.unless(alpha >= 0, "train.json -> loss#alpha", alpha, "a number >= 0")
        problems.refuse_if_any()
    """

    def add(self, where: str, found: str, expected: str, hint: str = "") -> None:
        self.append(Problem(where, found, expected, hint))

    def unless(self, holds: bool, where: str, found: object, expected: str, hint: str = "") -> None:
        """Adds a problem unless ``holds``; ``found`` is the value itself, shown by its ``repr``."""
        if not holds:
            self.add(where, repr(found), expected, hint)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Catches :class:`Refused` raised inside the block and adds its problems."""
        try:
            yield
        except Refused as refused:
            self.extend(refused.problems)

    def refuse_if_any(self) -> None:
        """Raises :class:`Refused` with all collected problems; does nothing if there are none."""
        if self:
            raise Refused(self)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a hint for a misspelt name: ``did you mean 'x'?``, or an empty string if none of ``known`` is close."""
    close = closest(name, known)
    return f"did you mean {close!r}?" if close else ""


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Returns the name in ``known`` with the highest difflib ratio to ``name``, or ``None`` below ``cutoff``.

    Case is ignored, and hyphens count as underscores.
    """
    by_normalised_name = {_normalised(each): each for each in sorted(known, reverse=True)}
    matches = difflib.get_close_matches(_normalised(name), by_normalised_name, n=1, cutoff=cutoff)
    return by_normalised_name[matches[0]] if matches else None


def _normalised(name: str) -> str:
    return name.casefold().replace("-", "_")


# torch has no exception class for this on the CPU ("DefaultCPUAllocator: can't allocate memory: ... Error code 12
# (Cannot allocate memory)"); on a GPU the message is "out of memory"
_NO_MEMORY = re.compile("cannot allocate memory|can't allocate memory|out of memory|bad_alloc", re.IGNORECASE)
_NOT_MAPPED = re.compile("failed to map segment from shared object$")  # too little memory to load a library


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine, or a memory limit of the process, ran out of memory (fault 50)."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, SamFedError):
        return False
    if isinstance(error, ImportError):
        return (_NOT_MAPPED.search(str(error)) or _NO_MEMORY.search(str(error))) is not None
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def error_text(error: Exception) -> str:
    """Describes an exception of third-party code for a :class:`Problem`; out-of-memory errors are raised again."""
    if is_out_of_memory(error):
        raise error
    return f"{type(error).__name__}: {error}"


DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DRIVE_GONE = frozenset({errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.EHOSTDOWN})
AGAIN = "run the same command again"
"""How to continue after most stops: complete work is not repeated."""
WORK_KEPT = "completed work is kept"
_PLACES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "a path that this user may read and write"),
    errno.EROFS: "a writable path",
    errno.ENOENT: "a path that exists or can be created",
    errno.EEXIST: "a folder or a new path",
    errno.ELOOP: "a path without a loop of symbolic links",
    errno.ENAMETOOLONG: "a shorter name",
    errno.ENOTDIR: "a folder",
    errno.EISDIR: "a file",
    **dict.fromkeys((errno.ENOLCK, errno.ENOSYS), "a path on a disk with file locks"),  # of network file systems
}


_CONTEXT = 60  # characters shown on either side of one that cannot be encoded


def name_problems(names: Iterable[str], where: str = "name of a file or folder") -> list[Problem]:
    """Returns one problem for all names that are not UTF-8 or contain control characters, which no table can hold.

    Args:
        names: names or paths of files and folders.
        where: the place for the message.
    """
    unusual = [f"'{printable(name, keep='')}'" for name in names if {"Cc", "Cs"} & {*map(unicodedata.category, name)}]
    if not unusual:
        return []
    encoding = sys.getfilesystemencoding()
    hint = "rename it; `convmv -f cp1252 -t utf8 -r --notest FOLDER` renames all files of a folder"
    hint = hint if encoding == "utf-8" else f"set LC_ALL=C.UTF-8: this shell reads names as {encoding}"
    more = f" and {len(unusual) - EXAMPLES} more" if len(unusual) > EXAMPLES else ""
    return [Problem(where, ", ".join(unusual[:EXAMPLES]) + more, "UTF-8 without control characters", hint)]


# pathlib's own message, before Python 3.13; shutil.copytree keeps only the messages of the errors
_LOOP = re.compile(r"Symlink loop from (['\"])(.*)\1$")
_COPY = re.compile(r"\[Errno (\d+)\] [^:]*: '[^']*' -> '([^']*)'")


def machine_failure(error: BaseException) -> SamFedError | None:
    """Turns a failure of the machine (disk, memory, permissions, closed pipe, lost drive) into an error with a message.

    Args:
        error: the exception that a command raised.

    Returns:
        the :class:`SamFedError` to report; ``None`` if the machine is not the cause.
    """
    if is_out_of_memory(error):
        return Stopped("memory ran out", f"add memory, or lower batch_size or image_size, then {AGAIN}")
    if isinstance(error, UnicodeEncodeError):
        return Refused(name_problems([error.object[max(0, error.start - _CONTEXT) : error.end + _CONTEXT]]))
    if isinstance(error, OSError):
        return _file_failure(error)
    text = str(error) if isinstance(error, RuntimeError) else ""
    if loop := _LOOP.match(text):
        return _file_failure(OSError(errno.ELOOP, "", loop[2]))
    if text == "Could not determine home directory.":  # of pathlib
        return refused("a path with ~", "an unknown user", "~ or ~USER", "write ./~NAME for a file ~NAME")
    return None


def _file_failure(error: OSError) -> SamFedError | None:
    if isinstance(error, BrokenPipeError):
        return Stopped("the output was closed before the command ended")
    if isinstance(error, shutil.Error) and (copied := _COPY.search(str(error))):
        return machine_failure(OSError(int(copied[1]), "", copied[2]))
    place = str(error.filename2 or error.filename or "")  # the second is the target of a copy
    if error.errno in DISK_FULL:
        where = f" ({place})" if place else ""
        return Stopped(f"the disk is full{where}", f"make room, then {AGAIN}", WORK_KEPT)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return Stopped("too many files are open at once", f"raise the limit (ulimit -n 4096), then {AGAIN}")
    if error.errno in DRIVE_GONE and place:
        reason = f"{place} failed with {os.strerror(error.errno)!r}"
        return Stopped(reason, f"check that its drive is connected, then {AGAIN}", WORK_KEPT)
    if not place and str(error.strerror).startswith("No usable temporary directory"):
        return refused("TMPDIR", "no such folder", "a folder for temporary files that this user may write", "set it")
    if error.errno in _PLACES and place:
        return refused(place, os.strerror(error.errno), _PLACES[error.errno])
    return None


BUG_NOTE = "this looks like a bug in samfed rather than an error in your input; the traceback above says where"
"""The line below the traceback of an unexpected error."""


def reported(error: SamFedError | KeyboardInterrupt, kept: str | None = None) -> int:
    """Writes the error that ended a command to standard error and returns the exit code; ``kept`` is for Ctrl-C."""
    text = str(error) if isinstance(error, SamFedError) else f"interrupted: {kept or WORK_KEPT}\n  to continue: {AGAIN}"
    sys.stderr.write(f"{text}\n")
    return int(error.exit_code if isinstance(error, SamFedError) else ExitCode.INTERRUPTED)
