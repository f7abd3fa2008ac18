"""A bundle's ``logging.conf``: MONAI applies it before anything else is looked at, so it may only write to the console.

Python's ``fileConfig`` evaluates the fields ``class``, ``args`` and ``kwargs`` and, from 3.12 on, ``defaults`` of a
formatter, and a handler can open files and sockets. What arrives with a bundle, or from a server, gets none of that.
"""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from pathlib import Path

from samfed_monai.errors import Problem

_OPTIONS = {
    **dict.fromkeys(("loggers", "handlers", "formatters"), frozenset({"keys"})),
    "logger": frozenset({"level", "handlers", "qualname", "propagate"}),
    "handler": frozenset({"class", "level", "formatter", "args", "kwargs"}),
    "formatter": frozenset({"class", "format", "datefmt", "style", "validate"}),
}
"""Options by kind of section: ``handler_console`` is a ``handler``."""

_VALUES = {
    "class": {"StreamHandler", "logging.StreamHandler", "Formatter", "logging.Formatter", ""},
    "args": {"", "()", "(sys.stdout,)", "(sys.stderr,)"},
    "kwargs": {"", "{}"},
}
_WHY = "a bundle logs to the console and nowhere else"
_MEND = "start the run with --logging_file and a file of your own, or delete this entry"


def check_logging(bundle_root: Path) -> Iterator[Problem]:
    """Everything in a bundle's logging configuration that does more than write to the console."""
    for path in sorted((bundle_root / "configs").glob("logging*")):
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
        except (configparser.Error, UnicodeDecodeError, OSError) as error:
            found = str(error).splitlines()[0]
            yield Problem(path.name, found=found, expected="a logging configuration", mend="delete the file")
            continue
        for section in parser.sections():
            for option, value in parser.items(section, raw=True):
                expected = _expected(section, option, value.strip())
                if expected:
                    where = f"{path.name} -> {section}#{option}"
                    yield Problem(where, found=repr(value.strip()), expected=f"{expected}: {_WHY}", mend=_MEND)


def _expected(section: str, option: str, value: str) -> str:
    """What should stand there instead; empty where the option and its value may."""
    options = _OPTIONS.get(section.partition("_")[0], frozenset())
    if option not in options:
        return f"none but the options {sorted(options)}"
    allowed = _VALUES.get(option, {value})
    return "" if value in allowed else f"one of {sorted(allowed - {''})}"
