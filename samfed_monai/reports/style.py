"""Style of reports: formats of numbers, figures, Jinja templates, and the notice on the method."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from samfed_monai.core.text import counted, uncapitalised
from samfed_monai.data.classes import colour_of

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CAVEATS = (
    "This is a re-implementation of SAM-Fed (arXiv 2511.14302), whose code is not public.",
    "The agreement rule is our reading of it: we had the abstract and summaries of the paper, not its method section.",
)
PRIVACY = "This file shows images and their ids: treat it as you treat the images."

MISSING = "–"
DEFAULT_CONVENTION = {"hd95": "max of directed", "empty": "diagonal"}
"""Convention for HD95 and empty masks of runs that do not record it (docs/method.md)."""


def as_score(value: float | None, digits: int = 3) -> str:
    """Formats a Dice or IoU, or, with one digit, a distance in pixels; a dash for ``None``."""
    return MISSING if value is None else f"{value:.{digits}f}"


def as_percent(value: float | None) -> str:
    """Formats a share as a whole percentage."""
    return MISSING if value is None else f"{round(100 * value)} %"


def as_difference(value: float, digits: int = 3) -> str:
    """Formats a difference with its sign; zero after rounding has a plus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def as_bytes(count: float) -> str:
    """Formats bytes in decimal units: ``1.2 MB``."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB" if count < 999.5 else f"{count:,.0f} GB"


def as_seconds(seconds: float) -> str:
    """Formats a duration: ``0.4 s``, ``4 min 12 s``, ``1 h 03 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds else "0 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def as_ranges(numbers: Iterable[int]) -> str:
    """Formats integers, consecutive ones as ranges: ``1, 3–5``."""
    groups = groupby(enumerate(sorted(set(numbers))), key=lambda place: place[1] - place[0])
    spans = [[number for _, number in members] for _, members in groups]
    return ", ".join(f"{span[0]}–{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)


def shortened(names: Sequence[str], length: int) -> list[str]:
    """Shortens the labels of a figure to ``length`` characters by leaving out their middle.

    Args:
        names: all labels of one figure.
        length: number of characters; more are used if different names would become equal.
    """
    for width in range(length, max(map(len, names), default=0)):
        head, tail = width // 2, (width - 1) // 2
        short = [name if len(name) <= width else f"{name[:head]}…{name[len(name) - tail :]}" for name in names]
        if len(set(short)) == len(set(names)):
            return short
    return list(names)


def environment() -> Environment:
    """Returns a Jinja environment with autoescaping and the formats of this module as filters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {"score": as_score, "bytes": as_bytes, "seconds": as_seconds}
    jinja.filters |= {"percent": as_percent, "difference": as_difference, "mean": fmean, "data_url": data_url}
    jinja.globals |= {"counted": counted, "colour_of": colour_of, "uncapitalised": uncapitalised}
    return jinja


def sentences(template: str, **values: Any) -> list[str]:
    """Renders a template that writes a list, and returns its items, each as one line.

    Args:
        template: name of a file of ``templates`` whose items start with ``- `` at the start of a line.
        values: variables of the template.
    """
    text = environment().get_template(template).render(**values)
    return [" ".join(item.split()) for item in f"\n{text}".split("\n- ")[1:]]


def data_url(content: bytes, kind: str = "png") -> str:
    """Returns a picture's bytes as a ``data:`` URL."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# Okabe & Ito, "Color Universal Design" (2008), without black, and without yellow, which is hard to see on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("-", "--", ":", "-.")
INK, FAINT, GRID = "#22252a", "#6b7078", "#e6e6e3"
"""Colours of a figure's text and lines."""


@dataclass(frozen=True)
class Picture:
    """A figure of a report.

    Args:
        name: file name without suffix.
        title: heading.
        text: caption of one or two sentences.
        png: its bytes.
    """

    name: str
    title: str
    text: str
    png: bytes


def subplots(columns: int = 1, *, width: float = 8.6, height: float = 3.4) -> Any:
    """Returns a figure and its axes in a row, without pyplot and its global state.

    Args:
        columns: number of axes.
        width, height: size of the row in inches.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 10, "font.family": "sans-serif"}):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(wspace=0.07)  # type: ignore[union-attr, call-arg]
        axes = figure.subplots(1, columns, squeeze=False).ravel()
    for ax in axes:
        quiet(ax)
    return figure, axes


def quiet(ax: Axes, *, grid: str = "y") -> None:
    """Removes the frame and draws a thin grid along one axis."""
    ax.set_facecolor("white")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(GRID)
    ax.grid(False)
    ax.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.tick_params(colors=FAINT, length=0, labelsize=9)
    for label in (ax.xaxis.label, ax.yaxis.label, ax.title):
        label.set_color(FAINT)


def line_style(index: int) -> dict[str, Any]:
    """Returns the colour and dashes of line number ``index``."""
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index // len(PALETTE) % len(DASHES)]}


def png(figure: Figure) -> bytes:
    """Returns PNG bytes without date or version, so that the same figure gives the same file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return stream.getvalue()
