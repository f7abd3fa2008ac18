"""Tables as CSV (UTF-8, comma, LF) that a spreadsheet can open without running what a file was called.

A spreadsheet takes a cell that begins with one of :data:`FORMULA` for a formula, and names of images and sites come
from outside. Such texts are written with an apostrophe before them, as OWASP advises ("CSV Injection"), and read
without it; numbers are left as they are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

FORMULA = ("=", "+", "-", "@", "\t", "\r")
_QUOTE = "'"


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any] | Sequence[Any]]) -> str:
    """The table's text, its heads first.

    Args:
        columns: heads.
        rows: cells in their order, or by head: what a row does not have stays empty, what has no column is left out.
    """
    text = io.StringIO(newline="")
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # Python would leave a bare CR unquoted
    for row in (columns, *rows):
        cells = [row.get(column, "") for column in columns] if isinstance(row, Mapping) else row
        returns = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (quoted if returns else plain).writerow([_harmless(cell) for cell in cells])
    return text.getvalue()


def from_csv(stream: TextIO) -> list[dict[str, str]]:
    """The rows of :func:`to_csv`'s text by head, cells as they were given."""
    return [{_given(name): _given(cell) for name, cell in row.items()} for row in csv.DictReader(stream)]


def _harmless(cell: Any) -> Any:
    return _QUOTE + cell if isinstance(cell, str) and cell.lstrip(_QUOTE).startswith(FORMULA) else cell


def _given(cell: Any) -> Any:
    quoted = isinstance(cell, str) and cell.startswith(_QUOTE) and cell.lstrip(_QUOTE).startswith(FORMULA)
    return cell[1:] if quoted else cell
