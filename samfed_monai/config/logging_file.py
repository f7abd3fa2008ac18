"""A bundle's ``logging.conf``: MONAI applies it before anything else is looked at, so it may only write to the console.

Python's ``fileConfig`` evaluates the fields ``class`` and ``args``, and a handler can open files and sockets. What
arrives with a bundle, or from a server, gets none of that.
"""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from pathlib import Path

from samfed_monai.errors import Problem

_ALLOWED = {
    "class": {"StreamHandler", "logging.StreamHandler", "Formatter", "logging.Formatter", ""},
    "args": {"", "()", "(sys.stdout,)", "(sys.stderr,)"},
    "kwargs": {"", "{}"},
}


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
            for field, allowed in _ALLOWED.items():
                value = parser.get(section, field, raw=True, fallback="").strip()
                if value not in allowed:
                    expected = f"one of {sorted(allowed - {''})}: a bundle logs to the console and nowhere else"
                    mend = "start the run with --logging_file and a file of your own, or delete this entry"
                    yield Problem(f"{path.name} -> {section}#{field}", found=repr(value), expected=expected, mend=mend)
