"""A comparison as plain text, Markdown, CSV and JSON content: the same table, the same digits."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from samfed_monai.reports.compare import Cell, Row, Table
from samfed_monai.reports.numbers import MISSING, as_percent

HEADS = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95 px",
    "worst": "Worst site",
    "difference": "vs dp_only",
    "last": "Dice, last model",
}


def columns(table: Table) -> dict[str, str]:
    """Column key to heading, sites first, in the order of every rendering (seeds and gap stand apart)."""
    return {**{f"site:{site}": site for site in table.sites}, **HEADS}


def spell(key: str, cell: Cell | None) -> str:
    """A cell: its mean, and its spread if there are at least two seeds."""
    if cell is None or cell.mean is None:
        return MISSING
    digits, sign = (1, "") if key == "hd95" else (3, "+" if key == "difference" else "")
    mean = f"{cell.mean:{sign}.{digits}f}"
    return mean if cell.spread is None else f"{mean} ± {cell.spread:.{digits}f}"


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Headings and spelt rows."""
    keys = columns(table)
    heads = ["Variant", "Seeds", *keys.values(), "Gap closed"]
    return heads, [
        [row.title, str(len(row.seeds)), *(spell(key, row.cells.get(key)) for key in keys), as_percent(row.gap)]
        for row in table.rows
    ]


def to_text(table: Table) -> str:
    """Aligned columns for a terminal, and the notes below."""
    heads, rows = grid(table)
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [_aligned(heads, widths), "─" * (sum(widths) + 2 * len(widths) - 2)]
    lines += [_aligned(row, widths) for row in rows]
    return "\n".join([*lines, *([""] if table.notes else []), *table.notes]) + "\n"


def to_markdown(table: Table) -> str:
    """A Markdown table; the SAM-Fed row is bold, and notes follow as a list."""
    heads, rows = grid(table)
    lines = [_piped(heads), _piped(["---", *["---:"] * (len(heads) - 1)])]
    for row, cells in zip(table.rows, rows, strict=True):
        lines.append(_piped([f"**{cell}**" for cell in cells] if row.variant == "samfed" else cells))
    return "\n".join([*lines, *([""] if table.notes else []), *(f"- {note}" for note in table.notes)]) + "\n"


def to_csv(table: Table) -> str:
    """One line per variant, mean and spread in columns of their own, at full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    keys = columns(table)
    writer.writerow(["variant", "seeds", *(f"{key}_{part}" for key in keys for part in ("mean", "spread")), "gap_closed"])
    for row in table.rows:
        cells = [row.cells.get(key, Cell()) for key in keys]
        numbers = [value for cell in cells for value in (cell.mean, cell.spread)]
        writer.writerow([row.variant, " ".join(map(str, row.seeds)), *map(_blank, numbers), _blank(row.gap)])
    return stream.getvalue()


def to_json(table: Table) -> dict[str, Any]:
    """The table with every seed's value, for other programs."""
    return {
        "schema": 1,
        "datalist": table.datalist,
        "sites": table.sites,
        "rows": [_json_row(row) for row in table.rows],
        "notes": table.notes,
        "versions": table.versions,
    }


def _json_row(row: Row) -> dict[str, Any]:
    cells = {
        key: {"mean": cell.mean, "spread": cell.spread, "by_seed": {str(s): v for s, v in cell.by_seed.items()}}
        for key, cell in row.cells.items()
    }
    return {"variant": row.variant, "title": row.title, "seeds": row.seeds, "gap_closed": row.gap, "cells": cells}


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = [f"{cell:<{width}}" if not index else f"{cell:>{width}}" for index, (cell, width) in enumerate(zip(cells, widths, strict=True))]
    return "  ".join([first, *rest]).rstrip()


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _blank(value: float | None) -> str:
    return "" if value is None else repr(value)
