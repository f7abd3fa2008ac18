"""The page of ablations: sweeps of the method compared with its default, on one or several collections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import write_text
from samfed_monai.reports.compare_forms import LEADS, Block, block_markdown, format_cell, outcome_of
from samfed_monai.reports.rows import CEILING, FLOOR, TEACHER, Cell, Row
from samfed_monai.reports.style import CAVEATS, MISSING, as_difference
from study.page import Section, write_figures

TITLE = "Ablations"
OTHERS = "Variants"
MARK = "The agreement rule is our reading of the paper's abstract and of summaries of it."
READING = (
    "Average test Dice of the model that was best on validation, mean ± sample standard deviation over seeds, for "
    "every collection. *vs* columns are the difference to the first row's run with the same seed; *mean difference*"
    " is their mean over the collections; *its teacher* is the Dice of the row's SAM alone. **Bold** is the best of a"
    " table in that column, among the rows that a federation could have run (not the teacher alone, the public set "
    "alone or the oracle). A row *leads* or *trails* the first one where the mean difference is larger than its "
    "standard deviation over seeds."
)
_NO_CANDIDATES = (TEACHER, FLOOR, CEILING)
_FEW = 6


@dataclass(frozen=True)
class Line:
    """One row of a sweep on all collections.

    Args:
        row: the row, from the first collection that has it.
        dice: Dice by collection.
        teacher: Dice of the row's teacher alone, by collection.
        differences: Dice minus the default's, paired by seed, by collection.
    """

    row: Row
    dice: list[Cell]
    teacher: list[Cell]
    differences: list[Cell]

    @property
    def mean_difference(self) -> float | None:
        """Mean over collections; ``None`` if a collection has no seed in common with the default."""
        means = [cell.mean for cell in self.differences]
        return fmean(mean for mean in means if mean is not None) if all(m is not None for m in means) else None


def sweeps(sections: Sequence[Section], default: str = "samfed", *others: str) -> dict[str, list[Line]]:
    """Lines of each sweep by title; the default comes first, then rows in the order of the row files.

    Args:
        sections: the collections.
        default: name of the reference row.
        others: rows that replace ``default`` in sweeps that include one of them.

    Raises:
        Refused: a collection lacks the default row.
    """
    missing = [section for section in sections if all(row.name != default for row in section.table.rows)]
    if missing:
        expected = f"a row {default!r}, which the others are compared with"
        hint = "run it as well, or choose another row with --default"
        raise Refused([Problem(s.title or "runs", found="no such row", expected=expected, hint=hint) for s in missing])
    rows: dict[str, Row] = {}
    for section in sections:
        for row in section.table.rows:
            rows.setdefault(row.name, row)
    by_title: dict[str, list[Row]] = {}
    for row in sorted((row for row in rows.values() if row.name != default), key=_order):
        by_title.setdefault(row.sweep or OTHERS, []).append(row)
    found = {}
    for title, listed in by_title.items():
        base = next((row for row in listed if row.name in others), rows[default])
        compared = [base, *(row for row in listed if row is not base)]
        found[title] = [_line(row, sections, base.name) for row in compared]
    return found


def candidates(lines: Sequence[Line]) -> list[Line]:
    """Lines that can be the best: the default, and all rows that a federation could run."""
    return [line for index, line in enumerate(lines) if index == 0 or line.row.variant not in _NO_CANDIDATES]


def best_of(lines: Sequence[Line]) -> Line | None:
    """The line with the highest mean difference to the default; the default itself counts with 0."""
    scored = [(line.mean_difference, line) for line in candidates(lines)]
    known = [(mean, line) for mean, line in scored if mean is not None]
    return max(known, key=lambda pair: pair[0])[1] if known else None


def verdict(lines: Sequence[Line], sections: Sequence[Section]) -> str:
    """The best row and its lead; the difference of each row if there are few, or if none was run on all collections."""
    best, default = best_of(lines), lines[0]
    others = candidates(lines)[1:]
    incomplete = others and all(line.mean_difference is None for line in others)
    if incomplete or (len(sections) == 1 and len(lines) <= _FEW):
        return " ".join(_listed(index, lines, section) for index, section in enumerate(sections)).strip()
    if best is None or best is default:
        average = ", on average over the collections" if len(sections) > 1 else ""
        return f"No row is better than {_named(default.row)}{average}."
    texts = [
        f"{section.title or 'Dice'} {format_cell('vs:dice', cell)} ({outcome_of(cell)})"
        for section, cell in zip(sections, best.differences, strict=True)
    ]
    beats = sum(outcome_of(cell) == LEADS for cell in best.differences)
    beyond = f"beyond the spread on {beats} of {len(sections)}" if len(sections) > 1 else ""
    return f"Best: {_named(best.row)}, against the default: {'; '.join(texts)}{'; ' + beyond if beyond else ''}."


def block(title: str, lines: Sequence[Line], sections: Sequence[Section]) -> Block:
    """The table of one sweep, with the best cells in bold."""
    default = lines[0].row.name
    teachers = len({cell.mean for line in lines for cell in line.teacher[:1]}) > 1
    extra = ["its teacher"] if teachers else []
    heads = [head for s in sections for head in (s.title or "Dice", f"vs {default}", *extra)]
    average = len(sections) > 1
    eligible = candidates(lines)
    tops = [max((line.dice[i].mean or 0.0 for line in eligible), default=0.0) for i in range(len(sections))]
    best = best_of(lines)
    rows = {}
    for line in lines:
        cells = []
        for index, (dice, difference) in enumerate(zip(line.dice, line.differences, strict=True)):
            top = line in eligible and dice.mean is not None and dice.mean == tops[index]
            cells += [f"**{format_cell('dice', dice)}**" if top else format_cell("dice", dice)]
            cells += [MISSING if line.row.name == default else format_cell("vs:dice", difference)]
            cells += [format_cell("dice", line.teacher[index])] if teachers else []
        if average:
            mean = line.mean_difference
            text = MISSING if mean is None or line.row.name == default else as_difference(mean)
            cells.append(f"**{text}**" if line is best and text != MISSING else text)
        rows[line.row.name] = cells
    titles = {line.row.name: line.row.title for line in lines}
    return Block(title, [*heads, *(["Mean difference"] if average else [])], rows, titles)


def write_ablation(
    page: str | Path,
    sections: Sequence[Section],
    *,
    defaults: Sequence[str] = ("samfed",),
    title: str | None = None,
    command: str | None = None,
    caveats: Iterable[str] = (),
) -> None:
    """Writes the page in Markdown, and the sections' figures next to it; the same arguments give the same bytes.

    Args:
        page: file of the page.
        sections: one per collection.
        defaults: see :func:`sweeps`.
        title: heading (default: :data:`TITLE`).
        command: command line that made all runs, shown on top.
        caveats: further caveats, as sentences.
    """
    found = sweeps(sections, *defaults)
    parts = [f"# {title or TITLE}", "", f"**{MARK}**", ""]
    for shown in [command, *(section.command for section in sections)]:
        parts += ["```", shown, "```", ""] if shown else []
    parts += [f"- {name}: {verdict(lines, sections)}" for name, lines in found.items()]
    for name, lines in found.items():
        parts += ["", f"## {name}", "", block_markdown(block("Average Dice", lines, sections)), ""]
        parts += [f"- `{line.row.name}`: {line.row.note}" for line in lines if line.row.note]
    parts += ["", READING, ""]
    for figure, section in zip(write_figures(page, sections), sections, strict=True):
        parts += [f"![{section.title}: average test Dice of every row and seed]({figure})", ""]
    parts += ["## Caveats", "", *(f"- {caveat}" for caveat in [*CAVEATS, *caveats])]
    notes = [
        f"{s.title}: {note}" if s.title else note
        for s in sections
        for note in s.table.notes
        if "gap closed" not in note
    ]
    parts += [*(f"- {note}" for note in notes), "", "## Provenance", ""]
    for section in sections:
        parts += section.provenance()
    write_text(page, "\n".join(parts) + "\n")


def _line(row: Row, sections: Sequence[Section], default: str) -> Line:
    dice, teacher, differences = [], [], []
    for section in sections:
        by_name = {found.name: found.cells for found in reversed(section.table.rows)}
        cells, base = (by_name.get(name, {}) for name in (row.name, default))
        dice.append(cells.get("dice", Cell()))
        teacher.append(cells.get("teacher", Cell()))
        differences.append(dice[-1].minus(base.get("dice", Cell())))
    return Line(row, dice, teacher, differences)


def _listed(index: int, lines: Sequence[Line], section: Section) -> str:
    """Dice of the default on a collection and the other rows' differences to it; empty if the default is not there."""
    if not lines[0].dice[index].n:
        return ""
    texts = [f"{_named(lines[0].row)} {format_cell('dice', lines[0].dice[index])}"]
    measured = (line for line in lines[1:] if line.differences[index].n)
    texts += [f"{_named(line.row)} {format_cell('vs:dice', line.differences[index])}" for line in measured]
    return f"{section.title + ': ' if len(lines[0].dice) > 1 else ''}{'; '.join(texts)}."


def _order(row: Row) -> tuple[int, int, str, int, str]:
    return (0, 0, "", row.place, row.name) if row.sweep else (1, *row.order)


def _named(row: Row) -> str:
    return f"`{row.name}`" if row.title == row.name else f"{row.title} (`{row.name}`)"
