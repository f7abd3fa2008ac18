"""Writes a comparison: Markdown, CSV, JSON, a figure and a page; and a page for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from samfed_monai.io import atomic_write, write_json, write_text
from samfed_monai.reports.caveats import CAVEATS, TEACHER
from samfed_monai.reports.compare import Table, comparison_table
from samfed_monai.reports.compare_figure import comparison_figure
from samfed_monai.reports.compare_text import blocks, spell, to_csv, to_json, to_markdown
from samfed_monai.reports.html import environment
from samfed_monai.reports.numbers import as_percent

TITLE = "Comparison"

READING = (
    "Dice, IoU and HD95 are means over all test images of all sites, site columns are Dice. The model is the one that "
    "was best on validation; *last model* is the average Dice of the last one. Numbers are mean ± sample standard "
    "deviation over seeds. *vs dp_only* is the difference in Dice to the dp_only run with the same seed. *Gap closed* "
    "is (row − dp_only) / (oracle − dp_only)."
)


def write_comparison(
    output_dir: str | Path,
    runs: Sequence[str | Path],
    *,
    command: str | None = None,
    caveats: Iterable[str] = (),
    title: str = TITLE,
) -> Path:
    """Writes ``comparison.{html,md,csv,json}`` and ``figures/comparison.png``.

    Args:
        output_dir: folder to write into.
        runs: run folders or ``results.json`` files, as :func:`samfed_monai.reports.comparison_table` takes them.
        command: command line that made the runs.
        caveats: what a reader must know, beside the marks that every table carries.
        title: heading of the page.

    Returns:
        Path of ``comparison.html``.

    Raises:
        Refused: as ``comparison_table``.
    """
    table, folder = comparison_table(runs), Path(output_dir)
    figure = comparison_figure(table)
    with atomic_write(folder / "figures" / "comparison.png") as stream:
        stream.write(figure.light)
    write_text(folder / "comparison.csv", to_csv(table))
    write_json(folder / "comparison.json", {**to_json(table), "command": command})
    page = comparison_page(runs, title=title, command=command, caveats=caveats, figure="figures/comparison.png")
    write_text(folder / "comparison.md", page)
    html = (
        environment()
        .get_template("comparison.html.j2")
        .render(
            table=table,
            title=title,
            blocks=blocks(table),
            headlines=headlines(table),
            figure=figure,
            command=command,
            caveats=_all_caveats(table, caveats),
            reading=READING.replace("*", ""),
        )
    )
    write_text(folder / "comparison.html", html)
    return folder / "comparison.html"


def write_page(
    page: str | Path,
    runs: Sequence[str | Path],
    *,
    command: str | None = None,
    caveats: Iterable[str] = (),
    title: str = TITLE,
) -> None:
    """Writes :func:`comparison_page` to ``page``, and its figure beside it as ``<name>.png``."""
    path = Path(page)
    figure = path.with_suffix(".png")
    with atomic_write(figure) as stream:
        stream.write(comparison_figure(comparison_table(runs)).light)
    write_text(path, comparison_page(runs, title=title, command=command, caveats=caveats, figure=figure.name))


def comparison_page(
    runs: Sequence[str | Path],
    *,
    title: str = TITLE,
    command: str | None = None,
    caveats: Iterable[str] = (),
    figure: str | None = None,
) -> str:
    """A page of documentation in Markdown; the same runs and arguments give the same bytes.

    Args:
        runs: run folders or ``results.json`` files.
        title: heading.
        command: command line that made the runs, shown on top.
        caveats: sentences, beside the marks that every table carries.
        figure: path of the figure relative to the page, or ``None``.
    """
    table = comparison_table(runs)
    parts = [f"# {title}", ""]
    parts += ["```", command, "```", ""] if command else []
    parts += [f"- {name}: **{value}** ({small})" for name, value, small in headlines(table)]
    parts += ["", to_markdown(table)]
    parts += [f"![Average test Dice of every variant and seed]({figure})", ""] if figure else []
    parts += [READING, "", "## Caveats", ""]
    parts += [f"- {caveat}" for caveat in [*CAVEATS, *caveats]]
    parts += ["", "## Provenance", "", f"- data list: `{table.datalist or 'unknown'}` (SHA-256)"]
    parts += [f"- {name}: {', '.join(found)}" for name, found in table.versions.items()]
    parts += [f"- {row.variant}: seeds {', '.join(map(str, row.seeds))}" for row in table.rows]
    return "\n".join(parts) + "\n"


def headlines(table: Table) -> list[tuple[str, str, str]]:
    """The answers on top: how SAM-Fed stands to what it has to beat, by seed; none without its row."""
    variants = {row.variant: row for row in table.rows}
    if "samfed" not in variants:
        return []
    row = variants["samfed"]
    found = [("Dice, SAM-Fed", spell("dice", row.cells["dice"]), f"{len(row.seeds)} seeds")]
    for other, small in (
        ("dp_only", "over public set"),
        ("no_sam", "over no SAM"),
        (TEACHER, "over SAM alone"),
    ):
        cell = table.difference("samfed", other)
        if cell.n:
            found.append((f"Dice {small}", spell("difference", cell), "paired by seed"))
    if row.gap is not None:
        found.append(("Gap closed", as_percent(row.gap), "of dp_only to oracle"))
    return found


def _all_caveats(table: Table, caveats: Iterable[str]) -> list[str]:
    return [*CAVEATS, *caveats, *table.notes]
