"""Reads ``federation.csv``, one row per round and site, without being strict about the order of its columns."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

TERM = "term_"


@dataclass(frozen=True)
class RoundRow:
    """What one site did in one round.

    Args:
        round: counted from 0.
        site: name.
        status: ``ok``, or what kept the update out.
        reason: why it was kept out, or empty.
        values: the numeric columns: ``dice`` and the other validation scores, ``n``, ``seconds``, ``up_bytes``, …
        terms: means of the round that begin with ``term_``, without that: the loss terms, ``reliability`` and
            ``agreement``.
    """

    round: int
    site: str
    status: str = "ok"
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)

    @property
    def skipped(self) -> bool:
        return self.status != "ok"


def read_federation(path: str | Path) -> list[RoundRow]:
    """Rows of a ``federation.csv`` in the order of rounds; a missing file has none, as in a run without rounds."""
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [_row(cells) for cells in csv.DictReader(stream)]
    return sorted(rows, key=lambda row: (row.round, row.site))


def series(rows: Iterable[RoundRow], name: str) -> dict[str, list[tuple[int, float]]]:
    """Site to (round, value) of one column or term, without the rows that lack it."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        value = row.terms.get(name, row.values.get(name))
        if value is not None:
            lines.setdefault(row.site, []).append((row.round, value))
    return lines


def _row(cells: dict[str, str]) -> RoundRow:
    text = ("round", "site", "status", "reason")
    numbers = {name: _number(cell) for name, cell in cells.items() if name and name not in text}
    found = {name: value for name, value in numbers.items() if value is not None}
    return RoundRow(
        round=int(cells["round"]),
        site=cells["site"],
        status=cells.get("status") or "ok",
        reason=cells.get("reason") or "",
        values={name: value for name, value in found.items() if not name.startswith(TERM)},
        terms={name.removeprefix(TERM): value for name, value in found.items() if name.startswith(TERM)},
    )


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
