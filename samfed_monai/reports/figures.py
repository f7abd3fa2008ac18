"""Figures: scores, teacher and loss terms of one run; Dice of every row and seed of a comparison."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING, Any

from samfed_monai.reports.compare import Table
from samfed_monai.reports.rows import CEILING, FLOOR, TEACHER, Cell, Group, Row
from samfed_monai.reports.run_data import TERM, RunData, series
from samfed_monai.reports.style import FAINT, INK, PALETTE, Picture, line_style, png, quiet, shortened, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines = dict[str, list[tuple[int, float]]]
Ends = tuple[float, float | None]

LEAST_SPAN = 0.1
"""Smallest range of an axis of Dice or trust: seeds of one run differ by about 0.01."""
TRUST = {
    "reliability": "Reliability of the teacher",
    "agreement": "Share of pixels that agree",
    "sure_agreement": "Dice with the student's sure pixels",
    "trust": "Trust in the teacher's label",
}
RELIABILITY = "Reliability is 1 where teacher, student and its moving average agree, and scales SAM's weight."
EXPERTS = (
    "Share of all assignments of tokens that went to each local expert, mean over the layers; "
    "expert least is the smallest share of any expert in any layer."
)


def run_figures(run: RunData) -> list[Picture]:
    """Returns the figures that the run has data for, in the order of the report."""
    return [figure for figure in (curves(run), *term_figures(run)) if figure is not None]


def curves(run: RunData) -> Picture | None:
    """Plots the validation Dice at every site over the rounds, of the global model or of its own."""
    lines = series(run.rounds, "dice")
    if not lines:
        return None
    best = run.results["models"].get("best", {}).get("round")
    figure, (ax,) = subplots(height=3.9)
    _site_lines(ax, lines, run.sites)
    average = _average(lines, {site: run.results["sites"][site]["validation"]["n"] for site in run.sites})
    marker = "o" if len(average) == 1 else None
    ax.plot(*zip(*average, strict=True), color=INK, linewidth=2.6, marker=marker, zorder=4, solid_capstyle="round")
    if best is not None:
        ax.axvline(best + 1, color=FAINT, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
        text = " best: the start " if best < 0 else f" best: round {best + 1} "
        style = {"ha": "right" if 2 * (best + 1) > sum(ax.get_xlim()) else "left", "color": FAINT, "fontsize": 9}
        ax.annotate(text, (best + 1, 0.02), xycoords=("data", "axes fraction"), **style)
    ax.set_ylabel("Dice")
    _legend(figure, list(lines), run.sites)
    what = "each site's own model on its" if run.own_models else "the global model on every site's"
    text = f"Dice of {what} validation images; the thick line is the average over images."
    return Picture("curves", "Validation by round", text, png(figure))


def term_figures(run: RunData) -> list[Picture]:
    """Plots means of a round at every site: trust in the teacher (docs/method.md), loss terms, experts (pFedSAM)."""
    names = dict.fromkeys(name for row in run.rounds for name in row.values if name.startswith(TERM))
    terms = {name.removeprefix(TERM): series(run.rounds, name) for name in names}
    trust = {title: terms.pop(name) for name, title in TRUST.items() if name in terms}
    experts = {name: terms.pop(name) for name in sorted(terms) if name.startswith("expert_")}
    losses = {name: lines for name, lines in terms.items() if any(y for line in lines.values() for _, y in line)}
    figures = (
        ("reliability", "Trust in the teacher", RELIABILITY, trust, None),
        ("losses", "Loss terms", "Means over a round, before weights and ramps.", losses, (0.0, None)),
        ("experts", "Local experts in use", EXPERTS, experts, (0.0, 1.0)),
    )
    return [
        Picture(name, title, text, png(panels(lines, run.sites, ends)))
        for name, title, text, lines, ends in figures
        if lines
    ]


def panels(by_name: Mapping[str, Lines], sites: list[str], ends: Ends | None = (0.0, None)) -> Figure:
    """Plots a small panel of lines for each name.

    Args:
        by_name: lines by name; ``sam_kd`` is shown as SAM kd.
        sites: all sites, in the order of their colours.
        ends: limits of the axes; the lower one is ignored if a value is below it. ``None``: from the lines, widened.
    """
    figure, axes = subplots(len(by_name), height=2.9, width=max(8.6, 2.2 * len(by_name)))
    for ax, (name, lines) in zip(axes, by_name.items(), strict=True):
        _site_lines(ax, lines, sites)
        title = " ".join("SAM" if word == "sam" else word for word in name.split("_"))
        ax.set_title(fill(title, width=max(16, 88 // len(by_name))), loc="left", fontsize=10, color=INK)
        if ends is not None:
            lowest = min(value for line in lines.values() for _, value in line)
            ax.set_ylim(ends[0] if lowest >= ends[0] else None, ends[1])
    _legend(figure, list(dict.fromkeys(site for lines in by_name.values() for site in lines)), sites)
    return figure


def _legend(figure: Figure, sites_shown: list[str], sites: list[str]) -> None:
    """Adds a legend of the sites below a figure."""
    from matplotlib.lines import Line2D

    all_sites = list(dict.fromkeys([*sites, *sites_shown]))
    handles = [Line2D([], [], **line_style(all_sites.index(site)), linewidth=1.6) for site in sites_shown]
    look: dict[str, Any] = {"loc": "outside lower left", "ncols": 4, "frameon": False, "fontsize": 9, "labelcolor": INK}
    figure.legend(handles, shortened(sites_shown, 22), **look)


def _site_lines(ax: Axes, lines: Lines, sites: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    all_sites = list(dict.fromkeys([*sites, *lines]))
    for site, line in lines.items():
        rounds, values = zip(*((number + 1, value) for number, value in line), strict=True)
        marker, style = "o" if len(rounds) == 1 else None, line_style(all_sites.index(site))
        ax.plot(rounds, values, **style, linewidth=1.6, marker=marker, markersize=4)
    ax.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    if len(numbers := {number + 1 for line in lines.values() for number, _ in line}) == 1:
        ax.set_xticks(list(numbers))
    ax.set_xlabel("round", fontsize=9)
    ax.margins(x=0.02)
    low, high = ax.get_ylim()
    margin = max(0.0, LEAST_SPAN - (high - low)) / 2  # so that noise does not look like a collapse
    ax.set_ylim(low - margin, high + margin)


def _average(lines: Lines, weights: Mapping[str, int]) -> list[tuple[int, float]]:
    # rounds count from 1 on every picture, as in the log, and from 0 in files
    sums, images = defaultdict[int, float](float), Counter[int]()
    for site, line in lines.items():
        for number, value in line:
            weight = weights.get(site, 1) or 1
            sums[number] += weight * value
            images[number] += weight
    return [(number + 1, sums[number] / images[number]) for number in sorted(sums)]


def comparison_figure(table: Table) -> Picture:
    """Plots one line per row: a dot per seed, the mean as a tick, the spread as a bar; groups below each other.

    Outliers are drawn as an arrow at the edge: rows below a tenth of the best, and a teacher alone that is farther from
    the trained rows than these are from each other.
    """
    groups = [(group, [row for row in group.rows if row.cells["dice"].n]) for group in table.groups]
    span = _span([row for _, rows in groups for row in rows])
    lines: list[Row | Group] = []
    for group, rows in groups:
        lines += [group, *rows] if len(groups) > 1 else rows

    figure, (ax,) = subplots(height=1.1 + 0.42 * len(lines))
    quiet(ax, grid="x")
    place_of = {id(line): len(lines) - 1 - index for index, line in enumerate(lines)}
    for group, rows in groups:
        places = [place_of[id(row)] for row in rows]
        for mean in (group.dice_of(FLOOR).mean, group.dice_of(CEILING).mean):
            if mean is not None:
                extent = [min(places) - 0.5, max(places) + 0.5]
                ax.plot([mean, mean], extent, color=FAINT, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        for row, place in zip(rows, places, strict=True):
            _draw_row(ax, row, place, group.hero, span)
    names = [line.label if isinstance(line, Group) else line.title for line in lines]
    ax.set_yticks([place_of[id(line)] for line in lines], names)
    ax.tick_params(axis="y", labelcolor=INK)
    for label, line in zip(ax.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if isinstance(line, Group) else "normal")
    ax.set_ylim(-0.6, len(lines) - 0.4)
    ax.set_xlabel("average test Dice", fontsize=9)
    text = (
        "A dot is a seed, the tick their mean, the bar their standard deviation; dotted lines are dp_only and oracle; "
        "an arrow marks a row far outside. After each mean: the parameters of its network."
    )
    return Picture("comparison", "Average test Dice", text, png(figure))


ROOM = 0.05
"""Smallest margin of Dice on both sides of the trained rows: a teacher is seldom farther off, and differences of 0.001
look small."""


def _span(rows: list[Row]) -> tuple[float, float]:
    """Returns the lowest and highest mean that are drawn to scale."""
    means = [row.cells["dice"].mean or 0.0 for row in rows]
    least, most = 0.1 * max(means, default=0.0), 1.0
    trained = [mean for row, mean in zip(rows, means, strict=True) if row.variant != TEACHER and mean >= least]
    if len(trained) > 1:
        room = max(max(trained) - min(trained), ROOM)
        least, most = max(least, min(trained) - room), max(trained) + room
    return least, most


def _draw_row(ax: Axes, row: Row, place: int, hero: Row | None, span: tuple[float, float]) -> None:
    cell = row.cells["dice"]
    mean, spread = cell.mean or 0.0, cell.spread or 0.0
    colours = {TEACHER: FAINT, FLOOR: INK, CEILING: INK}
    color = PALETTE[1] if row is hero else colours.get(row.variant, PALETTE[0])
    if not span[0] <= mean <= span[1]:
        edge, arrow = (0.01, "<") if mean < span[0] else (0.99, ">")
        ax.plot([edge], [place], marker=arrow, color=color, markersize=6, transform=ax.get_yaxis_transform())
    else:
        ax.plot([mean - spread, mean + spread], [place, place], color=color, linewidth=5, alpha=0.25, zorder=2)
        ax.scatter(list(cell.by_seed.values()), [place] * cell.n, s=20, color=color, alpha=0.8, linewidths=0, zorder=3)
        ax.plot([mean, mean], [place - 0.24, place + 0.24], color=color, linewidth=2.2, zorder=4)
    parameters = row.cells.get("parameters", Cell()).mean
    text = f"{mean:.3f}" if parameters is None else f"{mean:.3f}   {parameters:.1f} M"
    ax.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center", color=color, fontsize=9)
