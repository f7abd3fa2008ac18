"""A page of ``docs/results``, in sections; each compares the runs of one collection."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samfed_monai.core.errors import Problems
from samfed_monai.core.io import read_json, write_bytes, write_text
from samfed_monai.reports.compare import Table, comparison_table
from samfed_monai.reports.compare_forms import (
    OVER,
    TITLE,
    format_cell,
    headlines,
    piped,
    reading,
    to_markdown,
    verdicts,
)
from samfed_monai.reports.figures import comparison_figure
from samfed_monai.reports.rows import CEILING
from samfed_monai.reports.run_data import RunData
from samfed_monai.reports.style import CAVEATS, MISSING
from study.notes import notes_on_teachers
from study.record import SUFFIX, read_record, runs_in


@dataclass(frozen=True)
class Section:
    """One comparison of a page.

    Args:
        title: heading; empty for a page of one comparison.
        table: the comparison.
        command: command line that made its runs, if known.
    """

    title: str
    table: Table
    command: str | None = None

    def provenance(self) -> list[str]:
        """Data list, versions and seeds, as lines of Markdown."""
        parts = [f"### {self.title}", ""] if self.title else []
        parts += [f"- data list: `{self.table.datalist or 'unknown'}` (SHA-256)"]
        parts += [f"- {name}: {', '.join(found)}" for name, found in self.table.versions.items()]
        parts += dict.fromkeys(f"- {row.name}: seeds {', '.join(map(str, row.seeds))}" for row in self.table.rows)
        return [*parts, *([""] if self.title else [])]


def read_sections(given: Iterable[str], commands: Iterable[str] = ()) -> list[Section]:
    """Reads sections from ``TITLE=DIR`` arguments.

    Args:
        given: title and folder of runs, as ``samfed compare`` writes it (``DIR/<row>/seed-<n>/``), or a record of
            runs (``FILE.jsonl``).
        commands: ``TITLE=COMMAND``; replaces the command of ``DIR/comparison.json``.

    Raises:
        Refused: an argument without ``=``, a repeated or unknown title, a folder without runs, or runs that cannot be
            compared.
    """
    problems = Problems()
    folders = pairs_of(given, "--section", "TITLE=DIR", problems)
    shown = pairs_of(commands, "--section-command", "TITLE=COMMAND", problems)
    for title in shown.keys() - folders.keys():
        problems.add("--section-command", found=repr(title), expected=f"a section's title: {', '.join(folders)}")
    sections = []
    for title, folder in folders.items():
        with problems.collected():
            command = shown.get(title) or _command_of(Path(folder))
            runs = read_record(folder) if folder.endswith(SUFFIX) else [RunData.read(each) for each in runs_in(folder)]
            table = comparison_table(runs)
            sections.append(Section(title, replace(table, notes=[*notes_on_teachers(runs), *table.notes]), command))
    problems.refuse_if_any()
    return sections


def write_page(
    page: str | Path,
    sections: Sequence[Section],
    *,
    title: str | None = None,
    command: str | None = None,
    caveats: Iterable[str] = (),
) -> None:
    """Writes a page of comparisons in Markdown, and the sections' figures next to it.

    The same sections and arguments give the same bytes.

    Args:
        page: file of the page.
        sections: comparisons; their titles become headings.
        title: heading of the page (default: :data:`~samfed_monai.reports.compare_forms.TITLE`).
        command: command line that made all runs, shown on top; that of a section is below its heading.
        caveats: further caveats, as sentences.
    """
    tables = [section.table for section in sections]
    parts = [f"# {title or TITLE}", "", *_shown(command), *(in_short(sections) if len(sections) > 1 else [])]
    for section, figure in zip(sections, write_figures(page, sections), strict=True):
        parts += [f"## {section.title}", ""] if section.title else []
        parts += _shown(section.command)
        parts += [f"- {name}: **{value}** ({small})" for name, value, small in headlines(section.table)]
        parts += [*(f"- {text}" for text in verdicts(section.table)), "", to_markdown(section.table)]
        parts += [f"![Average test Dice of every row and seed]({figure})", ""]
    parts += ["## How to read the tables", "", *(f"- {line}" for line in reading(tables)), ""]
    if notes := {row.name: row.note for table in tables for row in table.rows if row.note}:
        parts += [*(f"- `{name}`: {note}" for name, note in notes.items()), ""]
    parts += ["## Caveats", "", *(f"- {caveat}" for caveat in [*CAVEATS, *caveats]), "", "## Provenance", ""]
    for section in sections:
        parts += section.provenance()
    write_text(page, "\n".join(parts) + "\n")


def in_short(sections: Iterable[Section]) -> list[str]:
    """Lines of a table of all sections: Dice of the method and of its references; none if no section has the method."""
    references = {**OVER, CEILING: "oracle"}
    heads, rows = (
        [
            "Setting",
            "Method",
            "Dice",
            "Worst site",
            "Unseen hospital",
            *(of[:1].upper() + of[1:] for of in references.values()),
        ],
        [],
    )
    for section in sections:
        for group in section.table.groups:
            if group.hero is not None:
                cells = [group.hero.cells.get(key) for key in ("dice", "worst", "unseen")]
                cells += [group.dice_of(name) for name in references]
                rows.append([section.title, f"`{group.hero.name}`", *(format_cell("dice", cell) for cell in cells)])
    if not rows:
        return []
    kept = [index for index in range(len(heads)) if any(row[index] != MISSING for row in rows)]
    lines = table([heads[index] for index in kept], [[row[index] for index in kept] for row in rows], texts=2)
    return ["## In short", "", *lines, "Average test Dice. Each setting has a section below.", ""]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> list[str]:
    """Lines of a Markdown table, and an empty line; columns after the first ``texts`` are right-aligned numbers."""
    sides = ["---"] * texts + ["---:"] * (len(heads) - texts)
    return [*map(piped, [heads, sides, *rows]), ""]


def _shown(command: str | None) -> list[str]:
    return ["```", command, "```", ""] if command else []


def write_figures(page: str | Path, sections: Sequence[Section]) -> list[str]:
    """Writes the figures of all sections next to the page as ``<page>[-<section>].png``; returns their names."""
    names = []
    for slug, section in zip(unique_slugs(sections), sections, strict=True):
        path = Path(page).with_name("-".join(filter(None, (Path(page).stem, slug))) + ".png")
        write_bytes(path, comparison_figure(section.table).png)
        names.append(path.name)
    return names


def unique_slugs(sections: Sequence[Section]) -> list[str]:
    """A part of a file name for each section; repeated ones get a number."""
    slugs: list[str] = []
    for section in sections:
        slug = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
        slugs.append(slug if slug not in slugs else f"{slug}-{len(slugs) + 1}")
    return slugs


def _command_of(folder: Path) -> str | None:
    path = folder / "comparison.json"
    command = read_json(path).get("command") if path.is_file() else None
    return command if isinstance(command, str) else None


def pairs_of(words: Iterable[str], option: str, form: str, problems: Problems) -> dict[str, str]:
    """Parses arguments of the form ``form``, such as ``TITLE=DIR``; adds errors to ``problems``."""
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not (name and equals and value):
            problems.add(option, found=repr(word), expected=form)
        elif name in pairs:
            problems.add(option, found=f"{name!r} twice", expected=f"each {form.partition('=')[0].lower()} once")
        else:
            pairs[name] = value
    return pairs
