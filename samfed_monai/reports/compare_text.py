"""A comparison as plain text, Markdown, CSV and JSON content: the same table, the same digits."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samfed_monai.reports.caveats import title_of
from samfed_monai.reports.compare import Cell, Row, Table
from samfed_monai.reports.numbers import MISSING, as_percent

HEADS = {
    "dice": "Dice",
    "difference": "vs dp_only",
    "gap": "Gap closed",
    "iou": "IoU",
    "hd95": "HD95 px",
}
DICE_HEADS = {"worst": "Worst site", "last": "Last model"}


@dataclass(frozen=True)
class Block:
    """A part of a comparison that fits on a page: headings, and spelt cells by variant."""

    title: str
    heads: list[str]
    rows: dict[str, list[str]]


def blocks(table: Table) -> list[Block]:
    """The comparison in two parts: over all test images, and Dice site by site."""
    sites = {f"site:{site}": site for site in table.sites}
    return [
        Block(title, list(heads.values()), {row.variant: [_spell(row, key) for key in heads] for row in table.rows})
        for title, heads in (
            ("All test images", {"seeds": "Seeds", **HEADS}),
            ("Dice by site", {**sites, **DICE_HEADS}),
        )
    ]


def spell(key: str, cell: Cell | None) -> str:
    """A cell: its mean, and its spread if there are at least two seeds."""
    if cell is None or cell.mean is None:
        return MISSING
    digits, sign = (1, "") if key == "hd95" else (3, "+" if key == "difference" else "")
    mean = f"{cell.mean:{sign}.{digits}f}"
    return mean if cell.spread is None else f"{mean} ± {cell.spread:.{digits}f}"


def to_text(table: Table) -> str:
    """Aligned columns for a terminal, and the notes below."""
    parts = []
    for block in blocks(table):
        lines = [[block.title, *block.heads], *([variant, *cells] for variant, cells in block.rows.items())]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        head, *body = [_aligned(line, widths) for line in lines]
        parts.append("\n".join([head, "─" * (sum(widths) + 2 * len(widths) - 2), *body]))
    return "\n\n".join([*parts, *table.notes]) + "\n"


def to_markdown(table: Table) -> str:
    """Markdown tables; the SAM-Fed row is bold, and notes follow as a list."""
    parts = []
    for block in blocks(table):
        lines = [_piped([block.title, *block.heads]), _piped(["---", *["---:"] * len(block.heads)])]
        for variant, cells in block.rows.items():
            cells = [f"**{cell}**" for cell in cells] if variant == "samfed" else cells
            lines.append(_piped([f"{title_of(variant)} (`{variant}`)", *cells]))
        parts.append("\n".join(lines))
    notes = "\n".join(f"- {note}" for note in table.notes)
    return "\n\n".join([*parts, *([notes] if notes else [])]) + "\n"


def to_csv(table: Table) -> str:
    """One line per variant, mean and spread in columns of their own, at full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    keys = [*(key for key in HEADS if key != "gap"), *(f"site:{site}" for site in table.sites), *DICE_HEADS]
    writer.writerow(
        ["variant", "seeds", *(f"{key}_{part}" for key in keys for part in ("mean", "spread")), "gap_closed"]
    )
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


def _spell(row: Row, key: str) -> str:
    if key == "seeds":
        return str(len(row.seeds))
    return as_percent(row.gap) if key == "gap" else spell(key, row.cells.get(key))


def _json_row(row: Row) -> dict[str, Any]:
    cells = {
        key: {"mean": cell.mean, "spread": cell.spread, "by_seed": {str(s): v for s, v in cell.by_seed.items()}}
        for key, cell in row.cells.items()
    }
    return {"variant": row.variant, "title": row.title, "seeds": row.seeds, "gap_closed": row.gap, "cells": cells}


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    rest = (f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([f"{cells[0]:<{widths[0]}}", *rest])


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _blank(value: float | None) -> str:
    return "" if value is None else repr(value)
