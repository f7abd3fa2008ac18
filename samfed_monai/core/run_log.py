"""What a command shows and keeps: progress bars, ``run.log`` with times, ``run.json``, a folder for each round."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from tqdm import tqdm

from samfed_monai.core.errors import SamFedError, Terminated, machine_failure, refused
from samfed_monai.core.io import PRIVATE, read_json
from samfed_monai.core.words import printable

NAME = "run.log"
PACKAGE = "samfed_monai"
_BEFORE = 10_000  # records that wait for a folder; a run logs some tens before it has one

_EXPECTED = (SamFedError, KeyboardInterrupt, Terminated)  # in a sentence, by whoever catches them


def is_news(record: logging.LogRecord) -> bool:
    """A filter of records: false for what Ignite's engines say of an error that ends a command in a sentence anyway.

    An engine logs "Engine run is terminating due to exception" for whatever passes through it: Ctrl-C, SIGTERM, a
    refusal, a full disk. It is kept for an unexpected error.
    """
    error = sys.exc_info()[1]
    expected = isinstance(error, _EXPECTED) or (error is not None and machine_failure(error) is not None)
    return not (expected and record.name.startswith("ignite.engine."))


class PrintableFormatter(logging.Formatter):
    """Records with control characters made visible, see :func:`samfed_monai.core.words.printable`."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


_USER = re.compile(r"(?<=://)[^/\s]+@")  # of an address, with the password


def command_line() -> str:
    """This process's command as it can be kept and shown: without the user and password of an address."""
    return _USER.sub("", shlex.join(sys.argv))


class RunLog:
    """Keeps records of this package, and warnings of others, and writes them once a folder is known.

    Records that come before :meth:`into` wait: a command that is refused its folder, because it is another run's,
    leaves nothing in it. A file that cannot be written (a full disk) ends no run: ``logging`` reports it once on
    standard error. Records below INFO are not kept, and the audit's are in ``audit.jsonl``.

    The file is its owner's alone (mode 0600): where sites work in the same process, their logs, which name files, are
    in it. A server on NVIDIA FLARE has no site's log.
    """

    def __init__(self) -> None:
        self._waiting = MemoryHandler(_BEFORE, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        self._waiting.setLevel(logging.INFO)
        self._waiting.addFilter(lambda record: not record.name.startswith(f"{PACKAGE}.audit"))
        self._others = MemoryHandler(0, target=self._waiting)  # hands each record on
        self._others.setLevel(logging.WARNING)
        self._others.addFilter(lambda record: record.name.partition(".")[0] != PACKAGE and is_news(record))
        self._file: logging.FileHandler | None = None

    def into(self, folder: str | Path) -> None:
        """Appends what was kept, and from now on everything, to ``run.log`` of the folder."""
        path = Path(folder) / NAME
        with suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, PRIVATE))
        self._file = logging.FileHandler(path, encoding="utf-8", delay=True)
        self._file.setFormatter(PrintableFormatter("%(asctime)s %(levelname)-7s %(message)s"))
        self._waiting.setTarget(self._file)
        self._waiting.flush()
        self._waiting.capacity = 1  # one record at a time: a killed run has its last line

    @contextmanager
    def kept(self, title: str = "") -> Iterator[RunLog]:
        """Listens for the time of a block; the error that ends it is the last record.

        Args:
            title: a first record for this file alone, for instance the command.
        """
        if title:
            self._add(logging.INFO, title)
        package, root = logging.getLogger(PACKAGE), logging.getLogger()
        package.addHandler(self._waiting)
        root.addHandler(self._others)
        try:
            yield self
        except BaseException as error:
            trace = "".join(traceback.format_exception(error)).rstrip()
            text = str(error) or type(error).__name__ if isinstance(error, _EXPECTED) else trace
            self._add(logging.ERROR, text)
            raise
        finally:
            package.removeHandler(self._waiting)
            root.removeHandler(self._others)
            self._waiting.close()
            if self._file is not None:
                self._file.close()

    def _add(self, level: int, text: str) -> None:
        self._waiting.handle(logging.LogRecord(PACKAGE, level, "", 0, text, (), None))


LOG_SECONDS = 30.0
"""Between two lines of a log."""


class LogBar(tqdm):
    """A bar whose every state is a line of its own: a file has no line that could be drawn again."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Writes the state; tqdm asks for an empty one to wipe a bar away, of which a log has no need."""
        text = str(self) if msg is None else msg
        if text:
            self.fp.write(f"{text}\n")
        return bool(text)

    def close(self) -> None:
        """Writes the last state, if it was not, and lets tqdm do the rest silently."""
        if not self.disable and self.last_print_n != self.n:
            self.display()
        self.leave = False
        super().close()


def progress_bar(of: Iterable[Any] | None = None, *, show: bool = True, **options: Any) -> tqdm:
    """tqdm on a terminal, :class:`LogBar` elsewhere.

    Args:
        of: what is gone through; with ``None``, call ``update``.
        show: whether there is a bar at all.
        options: of ``tqdm.tqdm``.

    Example::

        for record in progress_bar(records, desc="soft masks", unit="image"):
            look(record)
    """
    hidden = {} if show else {"disable": True}  # without the argument, tqdm reads TQDM_DISABLE
    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(of, **hidden, **options)
    seldom = {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS, "ascii": True}
    return LogBar(of, **hidden, **seldom | options)


_OBJECTS = ((), ("config",), ("config", "client"), ("config", "sites"), ("hashes",))


def run_record(folder: str | Path) -> dict[str, Any]:
    """Content of a run's ``run.json``; empty where it has none.

    Raises:
        Refused: what should be an object in it is none.
    """
    path = Path(folder) / "run.json"
    record: dict[str, Any] = read_json(path) if path.is_file() else {}
    for place in _OBJECTS:
        content: Any = record
        for key in place:
            content = content.get(key) or {}
        if not isinstance(content, dict):
            where, hint = " -> ".join((str(path), *place)), "restore the file from a copy"
            raise refused(where, found=type(content).__name__, expected="an object", hint=hint)
    return record


def round_folders(rounds: str | Path) -> dict[int, Path]:
    """The folders of the rounds that are there, intact or not, by number, in order; empty where there is no folder.

    What else lies there is left out: a round that is being written (``.NNN.<pid>.tmp``) or was set aside as damaged
    (``NNN.torn``).

    Args:
        rounds: ``<run>/rounds``.
    """
    rounds = Path(rounds)
    if not rounds.is_dir():
        return {}
    found = {int(path.name): path for path in rounds.iterdir() if path.name.isdecimal() and path.is_dir()}
    return dict(sorted(found.items()))
