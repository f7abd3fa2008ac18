"""Reads ``federation.csv``, one row per round and site, without being strict about the order of its columns."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_ALIASES = {"validation_dice": "dice", "val_dice": "dice", "validation_iou": "iou", "validation_hd95": "hd95"}
_PREFIXES = ("term_", "term.", "terms.", "terms_", "term#", "loss_")
_TAKEN_IN = ("", "ok", "done", "received", "accepted", "aggregated", "trained")
_NOT_A_TERM = ("n", "dice", "iou", "hd95", "seconds", "up_bytes", "down_bytes", "reliability", "agreement")


@dataclass(frozen=True)
class RoundRow:
    """What one site did in one round.

    Args:
        round: counted from 0.
        site: name.
        status: as the controller recorded it.
        reason: why the update was skipped, or empty.
        values: every numeric column: ``dice`` (validation), ``n``, ``seconds``, ``up_bytes``, ``down_bytes``,
            ``reliability``, ``agreement`` and the means of the loss terms under their own names.
    """

    round: int
    site: str
    status: str = ""
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)

    @property
    def skipped(self) -> bool:
        return bool(self.reason) or self.status.lower() not in _TAKEN_IN

    @property
    def terms(self) -> dict[str, float]:
        """Means of the loss terms, by name."""
        return {name: value for name, value in self.values.items() if name not in _NOT_A_TERM}


def read_federation(path: str | Path) -> list[RoundRow]:
    """Rows of a ``federation.csv`` in the order of rounds; a missing file has none, as in a run without rounds."""
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [_row(cells) for cells in csv.DictReader(stream)]
    return sorted(rows, key=lambda row: (row.round, row.site))


def series(rows: Iterable[RoundRow], name: str) -> dict[str, list[tuple[int, float]]]:
    """Site to (round, value) of one column, without the rows that lack it."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if name in row.values:
            lines.setdefault(row.site, []).append((row.round, row.values[name]))
    return lines


def _row(cells: dict[str, str]) -> RoundRow:
    text = {"round", "site", "status", "reason"}
    numbers = {_plain(name): _number(cell) for name, cell in cells.items() if name and name not in text}
    return RoundRow(
        round=int(cells["round"]),
        site=cells["site"],
        status=cells.get("status") or "",
        reason=cells.get("reason") or "",
        values={name: value for name, value in numbers.items() if value is not None},
    )


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return _ALIASES.get(name, name)


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
