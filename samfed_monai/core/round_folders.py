"""Where a run's rounds lie: one folder each, ``<run>/rounds/NNN``, named by its number."""

from __future__ import annotations

from pathlib import Path


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
