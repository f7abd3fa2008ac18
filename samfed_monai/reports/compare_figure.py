"""Dice of every variant and seed on one axis, between the floor and the ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samfed_monai.reports.caveats import TEACHER
from samfed_monai.reports.compare import CEILING, FLOOR, Table
from samfed_monai.reports.style import Picture, Theme, picture, quiet, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def comparison_figure(table: Table) -> Picture:
    """One row per variant: a dot per seed, the mean as a tick, the spread as a bar."""
    rows = [row for row in table.rows if row.cells["dice"].mean is not None]

    def draw(theme: Theme) -> Figure:
        figure, (ax,) = subplots(theme, height=1.1 + 0.42 * len(rows))
        quiet(ax, theme, grid="x")
        for row in rows:
            if row.variant in (FLOOR, CEILING):
                ax.axvline(row.cells["dice"].mean, color=theme.faint, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        for place, row in enumerate(reversed(rows)):
            cell = row.cells["dice"]
            mean, spread = cell.mean or 0.0, cell.spread or 0.0
            color = {"samfed": theme.palette[1], TEACHER: theme.faint, FLOOR: theme.ink, CEILING: theme.ink}.get(
                row.variant, theme.palette[0]
            )
            ax.plot([mean - spread, mean + spread], [place, place], color=color, linewidth=5, alpha=0.25, zorder=2)
            ax.scatter(
                list(cell.by_seed.values()), [place] * cell.n, s=20, color=color, alpha=0.8, linewidths=0, zorder=3
            )
            ax.plot([mean, mean], [place - 0.24, place + 0.24], color=color, linewidth=2.2, zorder=4)
            ax.annotate(
                f"{mean:.3f}", (1.01, place), xycoords=("axes fraction", "data"), va="center", color=color, fontsize=9
            )
        ax.set_yticks(range(len(rows)), [row.title for row in reversed(rows)])
        ax.tick_params(axis="y", labelcolor=theme.ink)
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.set_xlabel("average test Dice", fontsize=9)
        return figure

    text = (
        "A dot is a seed, the tick their mean, the bar their standard deviation; dotted lines are dp_only and oracle."
    )
    return picture("comparison", "Average test Dice", text, draw)
