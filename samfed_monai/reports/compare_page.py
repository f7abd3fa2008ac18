"""Writes comparisons: Markdown, CSV, JSON, a figure and a page; and pages for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from samfed_monai.core.io import write_bytes, write_json, write_text
from samfed_monai.reports.compare import Runs, Table, comparison_table
from samfed_monai.reports.compare_figure import comparison_figure
from samfed_monai.reports.compare_text import blocks, spell, to_csv, to_json, to_markdown, verdicts
from samfed_monai.reports.html import environment
from samfed_monai.reports.published import CITATION, MARK, SCALE, SITES, published_cells, published_markdown
from samfed_monai.reports.rows import TEACHER
from samfed_monai.reports.sections import Section, unique_slugs
from samfed_monai.reports.style import CAVEATS, as_percent, told_convention

TITLE = "Comparison"

READING = (
    "Dice, IoU and HD95 are means over all test images of all sites, site columns are Dice; *unseen* hospitals took"
    " no part and count in no average; *all unseen* is all of their images. The model is the one that was best on "
    "validation; *last model* is the average Dice of the last one. Numbers are mean ± sample standard deviation "
    "over seeds. *vs* columns are the difference in average Dice to that row's run with the same seed. *Gap closed*"
    " is (row − dp_only) / (oracle − dp_only), with the two rows of the same setting. What is *minus the row* is "
    "paired by seed; the method *leads* or *trails* where the mean difference is larger than its standard deviation "
    "over seeds. *MB a round* are megabytes in both directions, all sites together. "
)
COSTS = (
    "*M parameters* and *ms an image* are of the largest network at a site, and of the teacher with all its views: one "
    "image by itself, on one thread of the machine that ran the row. "
)
OVER = {
    "dp_only": "public set",
    "no_sam": "no SAM",
    TEACHER: "SAM alone",
    "hssf": "HSSF",
    "local_only": "sites alone",
    "fedsam": "FedSAM",
    "local_sam": "SAM at every site alone",
}


def write_comparison(
    output_dir: str | Path,
    runs: Runs,
    *,
    command: str | None = None,
    caveats: Iterable[str] = (),
    title: str = TITLE,
    published: str | None = None,
) -> Path:
    """Writes ``comparison.{html,md,csv,json}`` and ``figures/comparison.png``.

    Args:
        output_dir: folder to write into.
        runs: run folders or ``results.json`` files, as :func:`samfed_monai.reports.comparison_table` takes them.
        command: command line that made the runs.
        caveats: what a reader must know, beside the marks that every table carries.
        title: heading of the page.
        published: ``polyp`` or ``skin``: published rows in a table of their own.

    Returns:
        Path of ``comparison.html``.

    Raises:
        Refused: as ``comparison_table``.
    """
    table, folder = comparison_table(runs), Path(output_dir)
    figure, caveats = comparison_figure(table), list(caveats)
    write_bytes(folder / "figures" / "comparison.png", figure.light)
    write_text(folder / "comparison.csv", to_csv(table))
    write_json(folder / "comparison.json", {**to_json(table), "command": command})
    section, figures = Section("", table, command), ["figures/comparison.png"]
    page = sections_page([section], title=title, caveats=caveats, published=published, figures=figures)
    write_text(folder / "comparison.md", page)
    html = (
        environment()
        .get_template("comparison.html.j2")
        .render(
            table=table,
            title=title,
            blocks=blocks(table),
            headlines=headlines(table),
            verdicts=verdicts(table),
            published=published_cells(published) if published else None,
            published_heads=["Mode", "Method", "Dice", "HD95 px", *SITES[published]] if published else [],
            published_about=[MARK, SCALE, CITATION],
            figure=figure,
            command=command,
            caveats=[*CAVEATS, *caveats, *table.notes],
            reading=reading([table]).replace("*", ""),
        )
    )
    write_text(folder / "comparison.html", html)
    return folder / "comparison.html"


def write_page(
    page: str | Path,
    sections: Sequence[Section],
    *,
    title: str = TITLE,
    command: str | None = None,
    caveats: Iterable[str] = (),
    published: str | None = None,
) -> None:
    """Writes :func:`sections_page` to ``page``, and every section's figure beside it."""
    names = write_figures(page, sections)
    text = sections_page(sections, title=title, command=command, caveats=caveats, published=published, figures=names)
    write_text(page, text)


def write_figures(page: str | Path, sections: Sequence[Section]) -> list[str]:
    """Writes every section's figure beside a page as ``<page>[-<section>].png``; returns the files' names."""
    names = []
    for slug, section in zip(unique_slugs(sections), sections, strict=True):
        path = Path(page).with_name("-".join(filter(None, (Path(page).stem, slug))) + ".png")
        write_bytes(path, comparison_figure(section.table).light)
        names.append(path.name)
    return names


def comparison_page(
    runs: Runs,
    *,
    title: str = TITLE,
    command: str | None = None,
    caveats: Iterable[str] = (),
    figure: str | None = None,
    published: str | None = None,
) -> str:
    """A page of one comparison in Markdown; the same runs and arguments give the same bytes."""
    section, figures = Section("", comparison_table(runs)), [figure] if figure else []
    return sections_page([section], title=title, command=command, caveats=caveats, published=published, figures=figures)


def sections_page(
    sections: Sequence[Section],
    *,
    title: str = TITLE,
    command: str | None = None,
    caveats: Iterable[str] = (),
    published: str | None = None,
    figures: Sequence[str] = (),
) -> str:
    """A page of documentation in Markdown; the same sections and arguments give the same bytes.

    Args:
        sections: comparisons; a title becomes a heading.
        title: heading of the page.
        command: command line that made all runs, shown on top; a section's own stands below its heading.
        caveats: sentences, beside the marks that every table carries.
        published: ``polyp`` or ``skin``: published rows in a table of their own.
        figures: path of each section's figure relative to the page; empty for none.
    """
    tables = [section.table for section in sections]
    parts = [f"# {title}", "", *_fenced(command)]
    for index, section in enumerate(sections):
        parts += [f"## {section.title}", ""] if section.title else []
        parts += _fenced(section.command)
        parts += [f"- {name}: **{value}** ({small})" for name, value, small in headlines(section.table)]
        parts += [f"- {text}" for text in verdicts(section.table)]
        parts += ["", to_markdown(section.table)]
        if index < len(figures):
            parts += [f"![Average test Dice of every row and seed]({figures[index]})", ""]
    if published:
        parts += ["## Published numbers", "", published_markdown(published)]
    parts += ["## How to read the tables", ""] if any(section.title for section in sections) or published else []
    parts += [reading(tables), "", *_row_notes(tables), "## Caveats", ""]
    parts += [f"- {caveat}" for caveat in [*CAVEATS, *caveats]]
    parts += ["", "## Provenance", ""]
    for section in sections:
        parts += provenance(section)
    return "\n".join(parts) + "\n"


def headlines(table: Table) -> list[tuple[str, str, str]]:
    """The answers on top: how the method stands to what it has to beat, by seed; none without its row."""
    found = []
    for group in table.groups:
        hero = group.hero
        if hero is None:
            continue
        before = "" if group is table.groups[0] else f"{group.label}: "
        dice = spell("dice", hero.cells["dice"])
        found.append((f"{before}Dice, {group.mode.method}", dice, f"{len(hero.seeds)} seeds"))
        for variant, other in OVER.items():
            row = group.of(variant)
            if row is not None and (cell := hero.cells["dice"].minus(row.cells["dice"])).n:
                found.append((f"{before}Dice over {other}", spell("vs:dice", cell), "paired by seed"))
        if hero.gap is not None:
            found.append((f"{before}Gap closed", as_percent(hero.gap), "of dp_only to oracle"))
    return found


def reading(tables: Sequence[Table]) -> str:
    """How to read the tables, with the convention that their runs followed."""
    text = READING + (COSTS if any(table.has("milliseconds") for table in tables) else "")
    conventions = [table.convention for table in tables]
    first = conventions[0]
    if first is None or any(convention != first for convention in conventions):
        return text + "HD95 is not counted alike in all rows (see the notes)."
    return text + told_convention(first)


def provenance(section: Section) -> list[str]:
    """Data list, versions and seeds of a section, as lines of Markdown."""
    table = section.table
    parts = [f"### {section.title}", ""] if section.title else []
    parts += [f"- data list: `{table.datalist or 'unknown'}` (SHA-256)"]
    parts += [f"- {name}: {', '.join(found)}" for name, found in table.versions.items()]
    seeds = dict.fromkeys(f"- {row.name}: seeds {', '.join(map(str, row.seeds))}" for row in table.rows)
    return [*parts, *seeds, *([""] if section.title else [])]


def _row_notes(tables: Sequence[Table]) -> list[str]:
    notes = {row.name: row.note for table in tables for row in table.rows if row.note}
    return [*(f"- `{name}`: {note}" for name, note in notes.items()), ""] if notes else []


def _fenced(command: str | None) -> list[str]:
    return ["```", command, "```", ""] if command else []
