"""Output and records of a command: progress bars, ``run.log``, ``run.json``, the folders of rounds."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from tqdm import tqdm

from samfed_monai.core.errors import SamFedError, Terminated, machine_failure
from samfed_monai.core.io import PRIVATE, read_json
from samfed_monai.core.text import printable
from samfed_monai.core.validators import require, schema_problems

NAME = "run.log"
PACKAGE = "samfed_monai"
_MOST_COLLECTED = 10_000  # records kept until the folder is known; a run logs a few dozen before that

_EXPECTED = (SamFedError, KeyboardInterrupt, Terminated)  # shown as a message, without a traceback


def is_first(record: logging.LogRecord) -> bool:
    """Filters log records: false for those of Ignite's engines about errors that the command itself reports.

    An engine logs "Engine run is terminating due to exception" for every exception, including Ctrl-C, SIGTERM, a
    refusal or a full disk. The record is kept for unexpected errors.
    """
    error = sys.exc_info()[1]
    expected = isinstance(error, _EXPECTED) or (error is not None and machine_failure(error) is not None)
    return not (expected and record.name.startswith("ignite.engine."))


class PrintableFormatter(logging.Formatter):
    """Escapes control characters in records (:func:`samfed_monai.core.text.printable`)."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


_USER = re.compile(r"(?<=://)[^/\s]+@")  # user and password in a URL


COMMAND = "SAMFED_COMMAND"
"""Environment variable with the command line that started this process through FLARE."""


def command_line() -> str:
    """Returns the command line of this process, or its :data:`COMMAND`, without users and passwords in URLs."""
    return os.environ.get(COMMAND) or _USER.sub("", shlex.join(sys.argv))


class RunLog:
    """Collects log records of this package, and warnings of others, and writes them once the run's folder is known.

    Records before :meth:`into` are held back, so that a command that is refused, because the folder belongs to another
    run, leaves no file there. If the file cannot be written (full disk), the run continues, and ``logging`` reports it
    once on standard error. Records below INFO are dropped; those of the audit are in ``audit.jsonl``.

    The file is private (mode 0600), because it includes the logs of sites in the same process, which name files. On
    NVIDIA FLARE the server's file has no site logs.
    """

    def __init__(self) -> None:
        self._collected = MemoryHandler(_MOST_COLLECTED, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        self._collected.setLevel(logging.INFO)
        self._collected.addFilter(lambda record: not record.name.startswith(f"{PACKAGE}.audit"))
        self._other_records = MemoryHandler(0, target=self._collected)  # forwards each record
        self._other_records.setLevel(logging.WARNING)
        self._other_records.addFilter(lambda record: record.name.partition(".")[0] != PACKAGE and is_first(record))
        self._file: logging.FileHandler | None = None

    def into(self, folder: str | Path) -> None:
        """Appends the collected records, and all later ones, to ``run.log`` in the folder."""
        path = Path(folder) / NAME
        with suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, PRIVATE))
        self._file = logging.FileHandler(path, encoding="utf-8", delay=True)
        self._file.setFormatter(PrintableFormatter("%(asctime)s %(levelname)-7s %(message)s"))
        self._collected.setTarget(self._file)
        self._collected.flush()
        self._collected.capacity = 1  # write each record at once, so that the log of a killed run is complete

    @contextmanager
    def kept(self, title: str = "") -> Iterator[RunLog]:
        """Collects records inside the block; an error that ends the block is the last record.

        Args:
            title: a first record, only for this file, such as the command.
        """
        if title:
            self._add(logging.INFO, title)
        package, root = logging.getLogger(PACKAGE), logging.getLogger()
        package.addHandler(self._collected)
        root.addHandler(self._other_records)
        try:
            yield self
        except BaseException as error:
            trace = "".join(traceback.format_exception(error)).rstrip()
            self._add(logging.ERROR, str(error) or type(error).__name__ if isinstance(error, _EXPECTED) else trace)
            raise
        finally:
            package.removeHandler(self._collected)
            root.removeHandler(self._other_records)
            self._collected.close()
            if self._file is not None:
                self._file.close()

    def _add(self, level: int, text: str) -> None:
        self._collected.handle(logging.LogRecord(PACKAGE, level, "", 0, text, (), None))


LOG_SECONDS = 30.0
"""Seconds between two lines of a :class:`LogBar`."""


@contextmanager
def muted(*names: str) -> Iterator[None]:
    """Silences log records below ERROR of the named loggers, or of all loggers without names, inside the block."""
    disabled, levels = logging.root.manager.disable, {each: each.level for each in map(logging.getLogger, names)}
    if not names:
        logging.disable(logging.WARNING)
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silences warnings of libraries inside the block; for their log records see :func:`muted`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class LogBar(tqdm):
    """A progress bar for files: every state is a new line, since a line in a file cannot be redrawn."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Writes the state; skips the empty text with which tqdm clears a bar."""
        text = str(self) if msg is None else msg
        if text:
            self.fp.write(f"{text}\n")
        return bool(text)

    def close(self) -> None:
        """Writes the last state if it is not written yet, then closes the bar without further output."""
        if not self.disable and self.last_print_n != self.n:
            self.display()
        self.leave = False
        super().close()


def progress_bar(of: Iterable[Any] | None = None, *, show: bool = True, **options: Any) -> tqdm:
    """Returns a tqdm bar on a terminal, and a :class:`LogBar` elsewhere.

    Args:
        of: the iterable; with ``None``, call ``update``.
        show: whether to show a bar.
        options: arguments of ``tqdm.tqdm``.

    Example::

        for record in progress_bar(records, desc="soft masks", unit="image"):
            look(record)
    """
    hidden = {} if show else {"disable": True}  # without the argument, tqdm reads TQDM_DISABLE
    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(of, **hidden, **options)
    intervals = {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS, "ascii": True}
    return LogBar(of, **hidden, **intervals | options)


RESTORE_RESULTS = "run the command of this run again (run.log shows it): no round is repeated, the file is made again"
"""How to get a damaged ``results.json`` back."""
NO_ROUNDS = "restore the folder from a copy, or run again in a new output_dir; here, results.json would be replaced"
"""How to go on with a finished run whose rounds were deleted."""
_RESTORE_RUN = "restore the file from a copy; else copy rounds/NNN/global.safetensors, for --start-from or --model"


def run_record(folder: str | Path) -> dict[str, Any]:
    """Content of a run's ``run.json``; empty if there is none.

    Raises:
        Refused: values in it are of other types.
    """
    path = Path(folder) / "run.json"
    record: dict[str, Any] = read_json(path, name=str(path), hint=_RESTORE_RUN) if path.is_file() else {}
    schema = read_json(Path(__file__).with_name("run.schema.json"))
    require(replace(each, hint=_RESTORE_RUN) for each in schema_problems(record, schema, str(path)))
    return record


def round_folders(rounds: str | Path) -> dict[int, Path]:
    """Returns the folders of all rounds, intact or not, by number in ascending order.

    Rounds being written (``.NNN.<pid>.tmp``) and damaged rounds (``NNN.torn``) are left out.

    Args:
        rounds: ``<run>/rounds``, which may be missing.
    """
    rounds = Path(rounds)
    if not rounds.is_dir():
        return {}
    folders = {int(path.name): path for path in rounds.iterdir() if path.name.isdecimal() and path.is_dir()}
    return dict(sorted(folders.items()))
