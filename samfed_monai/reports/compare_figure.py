"""Dice of every row and seed on one axis, each group between its floor and its ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samfed_monai.reports.compare import Table
from samfed_monai.reports.rows import CEILING, FLOOR, TEACHER, Cell, Group, Row
from samfed_monai.reports.style import Picture, Theme, picture, quiet, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def comparison_figure(table: Table) -> Picture:
    """One line per row: a dot per seed, the mean as a tick, the spread as a bar; groups below each other.

    A row that would squeeze all others into one corner is an arrow at the edge: one below a tenth of the best, and a
    teacher alone that is farther from the rows that were trained than those are from each other.
    """
    groups = [(group, [row for row in group.rows if row.cells["dice"].n]) for group in table.groups]
    span = _span([row for _, rows in groups for row in rows])
    lines: list[Row | Group] = []
    for group, rows in groups:
        lines += [group, *rows] if len(groups) > 1 else rows

    def draw(theme: Theme) -> Figure:
        figure, (ax,) = subplots(theme, height=1.1 + 0.42 * len(lines))
        quiet(ax, theme, grid="x")
        place_of = {id(line): len(lines) - 1 - index for index, line in enumerate(lines)}
        for group, rows in groups:
            _bounds(ax, group, [place_of[id(row)] for row in rows], theme)
            for row in rows:
                _row(ax, row, place_of[id(row)], group.hero, theme, span)
        names = [line.label if isinstance(line, Group) else line.title for line in lines]
        ax.set_yticks([place_of[id(line)] for line in lines], names)
        ax.tick_params(axis="y", labelcolor=theme.ink)
        for label, line in zip(ax.get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if isinstance(line, Group) else "normal")
        ax.set_ylim(-0.6, len(lines) - 0.4)
        ax.set_xlabel("average test Dice", fontsize=9)
        return figure

    text = (
        "A dot is a seed, the tick their mean, the bar their standard deviation; dotted lines are dp_only and oracle; "
        "an arrow is a row far outside. Behind a mean stand parameters and milliseconds of one image, where they were "
        "measured."
    )
    return picture("comparison", "Average test Dice", text, draw)


def _span(rows: list[Row]) -> tuple[float, float]:
    """Lowest and highest mean that are drawn to scale."""
    means = [row.cells["dice"].mean or 0.0 for row in rows]
    least, most = 0.1 * max(means, default=0.0), 1.0
    trained = [mean for row, mean in zip(rows, means, strict=True) if row.variant != TEACHER and mean >= least]
    if len(trained) > 1:
        room = max(trained) - min(trained)
        least, most = max(least, min(trained) - room), max(trained) + room
    return least, most


def _bounds(ax: Axes, group: Group, places: list[int], theme: Theme) -> None:
    for variant in (FLOOR, CEILING):
        row = group.of(variant)
        if row is not None and row.cells["dice"].mean is not None:
            x, ends = row.cells["dice"].mean, [min(places) - 0.5, max(places) + 0.5]
            ax.plot([x, x], ends, color=theme.faint, linewidth=1, linestyle=(0, (2, 3)), zorder=1)


def _cost(row: Row) -> str:
    """What one image costs the row's network, to stand behind its mean; empty where nobody measured it."""
    parameters, milliseconds = (row.cells.get(key, Cell()).mean for key in ("parameters", "milliseconds"))
    return "" if parameters is None or milliseconds is None else f"   {parameters:.1f} M, {milliseconds:.0f} ms"


def _row(ax: Axes, row: Row, place: int, hero: Row | None, theme: Theme, span: tuple[float, float]) -> None:
    cell = row.cells["dice"]
    mean, spread = cell.mean or 0.0, cell.spread or 0.0
    known = {TEACHER: theme.faint, FLOOR: theme.ink, CEILING: theme.ink}
    color = theme.palette[1] if row is hero else known.get(row.variant, theme.palette[0])
    if not span[0] <= mean <= span[1]:
        edge, arrow = (0.01, "<") if mean < span[0] else (0.99, ">")
        ax.plot([edge], [place], marker=arrow, color=color, markersize=6, transform=ax.get_yaxis_transform())
    else:
        ax.plot([mean - spread, mean + spread], [place, place], color=color, linewidth=5, alpha=0.25, zorder=2)
        ax.scatter(list(cell.by_seed.values()), [place] * cell.n, s=20, color=color, alpha=0.8, linewidths=0, zorder=3)
        ax.plot([mean, mean], [place - 0.24, place + 0.24], color=color, linewidth=2.2, zorder=4)
    ax.annotate(
        f"{mean:.3f}{_cost(row)}",
        (1.01, place),
        xycoords=("axes fraction", "data"),
        va="center",
        color=color,
        fontsize=9,
    )
