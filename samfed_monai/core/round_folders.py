"""A run's folder: its record ``run.json``, and one folder for each round, ``<run>/rounds/NNN``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import read_json

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
            raise Refused([Problem(where, found=type(content).__name__, expected="an object", hint=hint)])
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
