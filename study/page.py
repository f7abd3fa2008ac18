"""A page of ``docs/results``: sections, each the comparison of a collection of runs with its title and command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samfed_monai.core.errors import Problems
from samfed_monai.core.io import read_json, write_bytes, write_text
from samfed_monai.reports.compare import Table, comparison_table
from samfed_monai.reports.compare_forms import TITLE, headlines, reading, to_markdown, verdicts
from samfed_monai.reports.figures import comparison_figure
from samfed_monai.reports.run_data import RunData
from samfed_monai.reports.style import CAVEATS
from study.notes import notes_on_teachers
from study.record import SUFFIX, read_record, runs_in


@dataclass(frozen=True)
class Section:
    """One comparison of a page.

    Args:
        title: heading; empty for a page of one comparison.
        table: the comparison.
        command: command line that made its runs, or ``None``.
    """

    title: str
    table: Table
    command: str | None = None

    @property
    def slug(self) -> str:
        """The title as a part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def provenance(self) -> list[str]:
        """Data list, versions and seeds, as lines of Markdown below the title."""
        lines = provenance(self.table)
        return [f"### {self.title}", "", *lines, ""] if self.title else lines


def read_sections(given: Iterable[str], commands: Iterable[str] = ()) -> list[Section]:
    """Sections of ``TITLE=DIR`` words.

    Args:
        given: title and folder of runs, as ``samfed compare`` leaves it (``DIR/<row>/seed-<n>/``), or a record of
            runs (``FILE.jsonl``).
        commands: ``TITLE=COMMAND``, for sections whose ``DIR/comparison.json`` names none, or not the one to show.

    Raises:
        Refused: a word without ``=``, a title twice or unknown, a folder without runs, or runs that cannot be compared.
    """
    problems = Problems()
    folders = _pairs(given, "--section", "DIR", problems)
    shown = _pairs(commands, "--section-command", "COMMAND", problems)
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


def sections_page(
    sections: Sequence[Section],
    *,
    title: str = TITLE,
    command: str | None = None,
    caveats: Iterable[str] = (),
    figures: Sequence[str] = (),
) -> str:
    """The page in Markdown; the same sections and arguments give the same bytes.

    Args:
        sections: comparisons; a title becomes a heading.
        title: heading of the page.
        command: command line that made all runs, shown on top; a section's own stands below its heading.
        caveats: sentences, beside the marks that every table carries.
        figures: path of each section's figure relative to the page; empty for none.
    """
    tables = [section.table for section in sections]
    parts = [f"# {title}", "", *(["```", command, "```", ""] if command else [])]
    for index, section in enumerate(sections):
        parts += [f"## {section.title}", ""] if section.title else []
        parts += answers(
            section.table, command=section.command, figure=figures[index] if index < len(figures) else None
        )
    parts += ["## How to read the tables", "", *(f"- {line}" for line in reading(tables)), ""]
    parts += [*row_notes(tables), "## Caveats", ""]
    parts += [*(f"- {caveat}" for caveat in [*CAVEATS, *caveats]), "", "## Provenance", ""]
    for section in sections:
        parts += section.provenance()
    return "\n".join(parts) + "\n"


def answers(table: Table, *, command: str | None = None, figure: str | None = None) -> list[str]:
    """Lines of Markdown: the command, the answers on top, the verdicts, the tables, the figure."""
    parts = ["```", command, "```", ""] if command else []
    parts += [f"- {name}: **{value}** ({small})" for name, value, small in headlines(table)]
    parts += [*(f"- {text}" for text in verdicts(table)), "", to_markdown(table)]
    return [*parts, *([f"![Average test Dice of every row and seed]({figure})", ""] if figure else [])]


def row_notes(tables: Sequence[Table]) -> list[str]:
    """What each row is, as lines of Markdown; a row of several tables once."""
    notes = {row.name: row.note for table in tables for row in table.rows if row.note}
    return [*(f"- `{name}`: {note}" for name, note in notes.items()), ""] if notes else []


def provenance(table: Table) -> list[str]:
    """Data list, versions and seeds, as lines of Markdown."""
    parts = [f"- data list: `{table.datalist or 'unknown'}` (SHA-256)"]
    parts += [f"- {name}: {', '.join(found)}" for name, found in table.versions.items()]
    return [*parts, *dict.fromkeys(f"- {row.name}: seeds {', '.join(map(str, row.seeds))}" for row in table.rows)]


def write_page(
    page: str | Path,
    sections: Sequence[Section],
    *,
    title: str = TITLE,
    command: str | None = None,
    caveats: Iterable[str] = (),
) -> None:
    """Writes :func:`sections_page` to ``page``, and every section's figure beside it."""
    names = write_figures(page, sections)
    text = sections_page(sections, title=title, command=command, caveats=caveats, figures=names)
    write_text(page, text)


def write_figures(page: str | Path, sections: Sequence[Section]) -> list[str]:
    """Writes every section's figure beside a page as ``<page>[-<section>].png``; returns the files' names."""
    names = []
    for slug, section in zip(unique_slugs(sections), sections, strict=True):
        path = Path(page).with_name("-".join(filter(None, (Path(page).stem, slug))) + ".png")
        write_bytes(path, comparison_figure(section.table).png)
        names.append(path.name)
    return names


def unique_slugs(sections: Sequence[Section]) -> list[str]:
    """A part of a file name for each section; equal ones get a number."""
    slugs: list[str] = []
    for section in sections:
        slug = section.slug
        slugs.append(slug if slug not in slugs else f"{slug}-{len(slugs) + 1}")
    return slugs


def _command_of(folder: Path) -> str | None:
    path = folder / "comparison.json"
    command = read_json(path).get("command") if path.is_file() else None
    return command if isinstance(command, str) else None


def _pairs(words: Iterable[str], option: str, what: str, problems: Problems) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        title, equals, value = (part.strip() for part in word.partition("="))
        if not (title and equals and value):
            problems.add(option, found=repr(word), expected=f"TITLE={what}")
        elif title in pairs:
            problems.add(option, found=f"{title!r} twice", expected="each title once")
        else:
            pairs[title] = value
    return pairs
