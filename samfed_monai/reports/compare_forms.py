"""Writes a comparison as text, Markdown, JSON and a page, with a verdict from paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samfed_monai.core.io import PUBLIC, write_bytes, write_json, write_page, write_text
from samfed_monai.core.text import counted
from samfed_monai.reports.compare import Runs, Table, comparison_table
from samfed_monai.reports.figures import comparison_figure
from samfed_monai.reports.rows import LEVEL as CONFIDENCE
from samfed_monai.reports.rows import TEACHER, VARIANTS, Cell, Group, PairedTest, Row, as_p
from samfed_monai.reports.style import CAVEATS, MISSING, as_difference, as_percent, environment, sentences

LEADS, LEVEL, TRAILS = "leads", "within the spread", "trails"


def outcome_of(difference: Cell) -> str:
    """Names a paired difference: it counts only if its mean is larger than its spread over seeds."""
    mean, spread = difference.mean, difference.spread
    if mean is None:
        return "no seed in common"
    if spread is None:
        return "one seed"
    if abs(mean) <= spread:
        return LEVEL
    return LEADS if mean > 0 else TRAILS


def standings(group: Group) -> list[tuple[Row, dict[str, Cell]]]:
    """Returns every other row with the differences method minus row, by column and paired by seed.

    Empty if the group has no row of the method.
    """
    hero = group.hero
    if hero is None:
        return []
    keys = (*AGAINST, *UNSEEN)
    return [
        (row, {key: hero.cells.get(key, Cell()).minus(row.cells.get(key, Cell())) for key in keys})
        for row in group.rows
        if row is not hero
    ]


def ahead(difference: Cell) -> int:
    """Returns the number of seeds in which the first of two rows is higher."""
    return sum(value > 0 for value in difference.by_seed.values())


def verdict(group: Group) -> str | None:
    """Says whether the method leads the strongest other method, by how much, and against which spread.

    If it leads, a second sentence names other methods within the spread. The result at the worst site and on unseen
    hospitals follows, if measured.

    The teacher, the oracle, ablations and sweeps of the method do not count as other methods. ``None`` without a row of
    the method, or if no other method has a seed in common with it.
    """
    rivals = {row.name for row in group.rivals}
    compared = [(row, cells) for row, cells in standings(group) if row.name in rivals and cells["dice"].n]
    if not compared:
        return None
    closest, cells = min(compared, key=lambda pair: pair[1]["dice"].mean or 0.0)
    cell, other = cells["dice"], f"{closest.title} (`{closest.name}`)"
    mean, method = as_difference(cell.mean or 0.0), group.mode.method
    if cell.spread is None:
        return f"One seed: {method}'s Dice is {mean} against the strongest other row, {other}; no spread, no verdict."
    result = f"Dice {mean} ± {cell.spread:.3f} against the strongest other row, {other}; "
    result += f"ahead in {ahead(cell)} of {counted(cell.n, 'seed')}."
    within = [row.title for row, each in compared if outcome_of(each["dice"]) == LEVEL and row is not closest]
    ties = f" Within the spread of: {', '.join(within)}." if within else ""
    elsewhere = _also_sentence("At the worst site", cells["worst"])
    elsewhere += _also_sentence("On hospitals that took no part", cells["unseen"])
    return {
        LEADS: f"{method} leads, by more than the spread: {result}{ties}{elsewhere}",
        LEVEL: f"{method} neither leads nor trails beyond the spread: {result}{elsewhere}",
        TRAILS: f"{method} does not lead: {result}{elsewhere}",
    }[outcome_of(cell)]


def _also_sentence(where: str, cell: Cell) -> str:
    if cell.mean is None or cell.spread is None:
        return ""
    word = {LEADS: "it leads", TRAILS: "it trails"}.get(outcome_of(cell), outcome_of(cell))
    return f" {where}: {as_difference(cell.mean)} ± {cell.spread:.3f}, {word}."


HEADS = {"dice": "Dice", "worst": "Worst site", "hd95": "HD95 px", "iou": "IoU"}
PARAMETERS = {"parameters": "M parameters"}
AGAINST = ("dice", "worst", "hd95")
UNSEEN = {"unseen": "All unseen"}
DIGITS = {"hd95": 1, "traffic": 2, "parameters": 2}


@dataclass(frozen=True)
class Block:
    """A table of a comparison that fits on a page.

    Args:
        title: heading of the rows' names.
        heads: headings of the other columns.
        rows: formatted cells by the row's name.
        titles: titles by the row's name.
        strong: rows to show in bold.
    """

    title: str
    heads: list[str]
    rows: dict[str, list[str]]
    titles: dict[str, str] = field(default_factory=dict)
    strong: frozenset[str] = frozenset()


def blocks(table: Table) -> list[Block]:
    """Returns the tables of every group (all test images, Dice by site, the method against other rows) and costs."""
    found = [block for group in table.groups for block in (*group_blocks(table, group), *_tests(table, group))]
    return [*found, *_costs_block(table)]


def _costs_block(table: Table) -> list[Block]:
    """Returns the table of costs per image of each network of one run; none if none was measured."""
    if table.costs is None:
        return []
    units = {"parameters": ("M parameters", 1e6, 2), "milliseconds": ("ms an image", 1, 0)}
    units["memory_bytes"] = ("MB an image", 1e6, 0)
    shown = {key: unit for key, unit in units.items() if any(key in each for each in table.costs["networks"].values())}
    rows = {
        name: [f"{cost[key] / unit:.{digits}f}" if key in cost else MISSING for key, (_, unit, digits) in shown.items()]
        for name, cost in table.costs["networks"].items()
    }
    titles = {TEACHER: "SAM teacher with all its views"}
    return [Block(f"What an image costs ({table.costs['run']})", [head for head, *_ in shown.values()], rows, titles)]


def _tests(table: Table, group: Group) -> list[Block]:
    """Returns the table of the tests per image of one group, with the size of both networks; none without tests."""
    if not group.tests:
        return []
    heads = ["Images", "Dice", f"{100 * CONFIDENCE:.0f} % interval", "better / worse", "p (Holm)"]
    size, rows = PARAMETERS if table.has("parameters") else {}, {}
    for test in group.tests:
        interval = f"{as_difference(test.low)} to {as_difference(test.high)}"
        both = [" / ".join(format_cell(key, row.cells.get(key)) for row in (test.row, test.other)) for key in size]
        dice = [as_difference(test.difference), interval, f"{test.better} / {test.worse}", as_p(test.holm)]
        rows[test.other.name] = [str(test.images), *dice, *both]
    titles = {test.other.name: test.other.title for test in group.tests}
    title = _capital(f"{table.label(group)}{group.tests[0].row.title} minus the row, image by image")
    return [Block(title, [*heads, *size.values()], rows, titles)]


def group_blocks(table: Table, group: Group) -> list[Block]:
    """Returns the tables of one group; headings name the group only if there are several."""
    hero, label = group.hero, table.label(group)
    titles = {row.name: row.title for row in group.rows}
    strong = frozenset({hero.name}) if hero else frozenset[str]()
    size = {key: head for key, head in (PARAMETERS | {"traffic": "MB a round"}).items() if table.has(key)}
    differences = {f"vs:{name}": f"vs {name}" for name in group.references}
    scores = {**HEADS, **differences, **({"gap": "Gap closed"} if group.mode.gap else {})} if table.scored else {}
    unseen = {f"unseen:{name}": f"{name} (unseen)" for name in table.unseen}
    unseen |= UNSEEN if len(unseen) > 1 else {}
    sites = {f"site:{site}": site for site in table.sites}
    by_site = {**sites, "dice": "Average", "worst": "Worst site", **unseen, "last": "Last model"}
    between = {f"between:{site}": site for site in table.sites if table.has(f"between:{site}")}
    between |= {"between": "All of them"} if len(between) > 1 else {}
    parts = (
        ("all test images" if table.scored else "what it costs", {"seeds": "Seeds", **scores, **size}),
        ("Dice by site", by_site if table.scored else {}),
        ("student and teacher, Dice between them", between),
    )
    made = list[Block]()
    for title, heads in parts:
        if heads:
            rows = {row.name: [_cell_text(row, key) for key in heads] for row in group.rows}
            made.append(Block(_capital(label + title), list(heads.values()), rows, titles, strong))
    against = standings(group) if table.scored else []
    if against:
        columns = {key: HEADS[key] for key in AGAINST} | (UNSEEN if table.unseen else {})
        rows = {row.name: _compared_cells(cells, columns) for row, cells in against}
        names = [*columns.values(), "Seeds ahead", group.mode.method]
        made.append(Block(f"{_capital(label)}{group.mode.method} minus the row", names, rows, titles))
    return made


def format_cell(key: str, cell: Cell | None) -> str:
    """Formats a cell: its mean, and its spread with at least two seeds; differences (``vs:``) have a sign.

    Parameters have no spread, as seeds do not change them.
    """
    if cell is None or cell.mean is None:
        return MISSING
    kind, _, base = key.partition(":")
    digits = DIGITS.get(base if kind == "vs" else key, 3)
    mean = as_difference(cell.mean, digits) if kind == "vs" else f"{cell.mean:.{digits}f}"
    return mean if cell.spread is None or key == "parameters" else f"{mean} ± {cell.spread:.{digits}f}"


UNSCORED = (
    "No site reported a test score, so no row can be called better. The tables show what each row costs, and how far "
    "its network and its teacher agree on the sites' own images (1 is full agreement): look at these images in each "
    "run's report.html. A few masks in the test split of one site would show which row is better."
)


def verdicts(table: Table) -> list[str]:
    """Returns the verdict and the tests per image of each group, with the group's name if there are several."""
    if not table.scored:
        return [UNSCORED]
    by_group = {
        table.label(group): [verdict(group), *map(PairedTest.sentence, group.tests), *group.untested]
        for group in table.groups
    }
    return [f"{label}{sentence}" for label, texts in by_group.items() for sentence in texts if sentence]


def to_text(table: Table) -> str:
    """Returns aligned columns for a terminal, followed by verdicts and notes."""
    parts = []
    for block in blocks(table):
        lines = [[block.title, *block.heads], *([name, *cells] for name, cells in block.rows.items())]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        head, *body = [_aligned(line, widths) for line in lines]
        parts.append("\n".join([head, "─" * (sum(widths) + 2 * len(widths) - 2), *body]))
    rows = [f"{row.name}: {row.note}" for row in table.rows if row.note and row.name not in VARIANTS]
    return "\n\n".join([*parts, *verdicts(table), *rows, *table.notes]) + "\n"


def to_markdown(table: Table) -> str:
    """Returns Markdown tables, the method's row in bold, followed by a list of notes."""
    parts = [block_markdown(block) for block in blocks(table)]
    notes = "\n".join(f"- {note}" for note in table.notes)
    return "\n\n".join([*parts, *([notes] if notes else [])]) + "\n"


def block_markdown(block: Block) -> str:
    """Returns one Markdown table."""
    lines = [piped([block.title, *block.heads]), piped(["---", *["---:"] * len(block.heads)])]
    for name, cells in block.rows.items():
        title = block.titles.get(name, name)
        shown = f"{title} (`{name}`)" if title != name else f"`{name}`"
        lines.append(piped([shown, *(f"**{cell}**" if name in block.strong else cell for cell in cells)]))
    return "\n".join(lines)


def to_json(table: Table) -> dict[str, Any]:
    """Returns the table as JSON content, with every seed's value."""
    return {
        "schema": 1,
        "datalist": table.datalist,
        "sites": table.sites,
        "unseen": table.unseen,
        "rows": [{**_json_row(row), "group": group.label} for group in table.groups for row in group.rows],
        "verdicts": verdicts(table),
        "paired": [{"group": group.label, **_json_test(test)} for group in table.groups for test in group.tests],
        "notes": table.notes,
        "convention": table.convention,
        "costs": table.costs,
        "versions": table.versions,
    }


def _cell_text(row: Row, key: str) -> str:
    if key == "seeds":
        return str(len(row.seeds))
    return as_percent(row.gap) if key == "gap" else format_cell(key, row.cells.get(key))


def _json_row(row: Row) -> dict[str, Any]:
    cells = {
        key: {"mean": cell.mean, "spread": cell.spread, "by_seed": {str(s): v for s, v in cell.by_seed.items()}}
        for key, cell in row.cells.items()
    }
    named = {"row": row.name, "variant": row.variant, "title": row.title, "note": row.note}
    return {**named, "seeds": row.seeds, "gap_closed": row.gap, "cells": cells}


def _json_test(test: PairedTest) -> dict[str, Any]:
    numbers = ("seeds", "images", "better", "worse", "difference", "low", "high", "p", "holm")
    return {"row": test.row.name, "other": test.other.name, **{name: getattr(test, name) for name in numbers}}


def _compared_cells(cells: Mapping[str, Cell], columns: Iterable[str]) -> list[str]:
    dice = cells["dice"]
    seeds = f"{ahead(dice)} of {dice.n}" if dice.n else MISSING
    return [*(format_cell(f"vs:{key}", cells[key]) for key in columns), seeds, outcome_of(dice)]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    rest = (f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([f"{cells[0]:<{widths[0]}}", *rest])


def piped(cells: Sequence[str]) -> str:
    """Returns one line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


TITLE = "Comparison"
OVER = {
    "dp_only": "public set",
    "no_sam": "no SAM",
    "self_training": "self-training",
    TEACHER: "SAM alone",
    "hssf": "HSSF",
    "local_only": "sites alone",
    "fedsam": "FedSAM",
    "local_sam": "SAM at every site alone",
}
"""Rows that the method has to beat, with their names in headlines."""


def write_comparison(output_dir: str | Path, runs: Runs, *, command: str | None = None, title: str = TITLE) -> Path:
    """Writes ``comparison.{html,md,json}`` and ``figures/comparison.png``.

    Args:
        output_dir: folder to write into.
        runs: run folders or ``results.json`` files, as for :func:`samfed_monai.reports.comparison_table`.
        command: command line that made the runs.
        title: heading of the page.

    Returns:
        Path of ``comparison.html``.

    Raises:
        Refused: as :func:`samfed_monai.reports.comparison_table`.
    """
    table, folder = comparison_table(runs), Path(output_dir)
    figure = comparison_figure(table) if table.scored else None
    if figure:
        write_bytes(folder / "figures" / "comparison.png", figure.png, mode=PUBLIC)
    write_json(folder / "comparison.json", {**to_json(table), "command": command}, mode=PUBLIC)
    command_lines = ["```", command, "```", ""] if command else []
    lines = [*(f"- {text}" for text in [*verdicts(table), *CAVEATS]), "", to_markdown(table)]
    write_text(folder / "comparison.md", "\n".join([f"# {title}", "", *command_lines, *lines]), mode=PUBLIC)
    shown = {
        "table": table,
        "title": title,
        "blocks": blocks(table),
        "headlines": headlines(table),
        "verdicts": verdicts(table),
        "rows": {row.name: row.note for row in table.rows if row.note},
        "figure": figure,
        "command": command,
        "caveats": [*CAVEATS, *table.notes],
        "reading": [line.replace("*", "") for line in reading([table])],
    }
    write_page(folder / "comparison.html", environment().get_template("comparison.html.j2").render(shown), mode=PUBLIC)
    return folder / "comparison.html"


def headlines(table: Table) -> list[tuple[str, str, str]]:
    """Returns the headlines (label, value, note) of the method against :data:`OVER`; none without its row."""
    lines = []
    for group in table.groups:
        hero = group.hero
        if hero is None or not hero.cells["dice"].n:
            continue
        label = "" if group is table.groups[0] else f"{group.label}: "
        dice = format_cell("dice", hero.cells["dice"])
        lines.append((f"{label}Dice, {group.mode.method}", dice, counted(len(hero.seeds), "seed")))
        for variant, other in OVER.items():
            if (cell := hero.cells["dice"].minus(group.dice_of(variant))).n:
                lines.append((f"{label}Dice over {other}", format_cell("vs:dice", cell), "paired by seed"))
        if hero.gap is not None:
            lines.append((f"{label}Gap closed", as_percent(hero.gap), "of dp_only to oracle"))
    return lines


def reading(tables: Sequence[Table]) -> list[str]:
    """Returns at most five lines on how to read the tables, with the convention of their runs."""
    first, *others = [table.convention for table in tables]
    return sentences(
        "reading.html.j2",
        columns={key for key in ("dice", "between") if any(table.has(key) for table in tables)},
        costs=any(table.costs for table in tables),
        paired=any(group.tests for table in tables for group in table.groups),
        convention=first if all(convention == first for convention in others) else None,
    )
