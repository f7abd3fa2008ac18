"""How reports look and spell: numbers, the style of figures, pages of Jinja, and the notice on the method."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from samfed_monai.core.words import counted, uncapitalised
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
"""How HD95 and empty masks are counted where a run says nothing of it (docs/method.md)."""


def as_score(value: float | None, digits: int = 3) -> str:
    """A Dice or IoU, or with one digit a distance in pixels; a dash if there is none."""
    return MISSING if value is None else f"{value:.{digits}f}"


def as_percent(value: float | None) -> str:
    """A share as a whole percentage."""
    return MISSING if value is None else f"{round(100 * value)} %"


def as_difference(value: float, digits: int = 3) -> str:
    """A difference with its sign; what rounds to nothing has a plus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def as_bytes(count: float) -> str:
    """Bytes in decimal units: ``1.2 MB``."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB" if count < 999.5 else f"{count:,.0f} GB"


def as_seconds(seconds: float) -> str:
    """A duration: ``0.4 s``, ``4 min 12 s``, ``1 h 03 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds else "0 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def as_ranges(numbers: Iterable[int]) -> str:
    """Whole numbers with those in a row as a range: ``1, 3–5``."""
    runs = groupby(enumerate(sorted(set(numbers))), key=lambda place: place[1] - place[0])
    spans = [[number for _, number in found] for _, found in runs]
    return ", ".join(f"{of[0]}–{of[-1]}" if len(of) > 1 else str(of[0]) for of in spans)


def shortened(names: Sequence[str], most: int) -> list[str]:
    """Names of at most ``most`` characters for the labels of a figure, the middle of a longer one left out.

    Args:
        names: all of one figure.
        most: characters; as many more as it takes to keep different names different.
    """
    for room in range(most, max(map(len, names), default=0)):
        head, tail = room // 2, (room - 1) // 2
        short = [name if len(name) <= room else f"{name[:head]}…{name[len(name) - tail :]}" for name in names]
        if len(set(short)) == len(set(names)):
            return short
    return list(names)


def environment() -> Environment:
    """Jinja with autoescaping on and the spellings of this module as filters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"score": as_score, "bytes": as_bytes, "seconds": as_seconds}
    made.filters |= {"percent": as_percent, "difference": as_difference, "mean": fmean, "data_url": data_url}
    made.globals |= {"counted": counted, "colour_of": colour_of, "uncapitalised": uncapitalised}
    return made


def sentences(template: str, **values: Any) -> list[str]:
    """The items of a list that a template writes, a line each, without its line breaks.

    Args:
        template: name of a file of ``templates`` whose items begin with ``- `` at the start of a line.
        values: what it shows.
    """
    text = environment().get_template(template).render(**values)
    return [" ".join(item.split()) for item in f"\n{text}".split("\n- ")[1:]]


def data_url(content: bytes, kind: str = "png") -> str:
    """A picture's bytes as a URL that needs no file."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# Okabe & Ito, "Color Universal Design" (2008), without black and yellow, which white paper would swallow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("-", "--", ":", "-.")
INK, FAINT, GRID = "#22252a", "#6b7078", "#e6e6e3"
"""Colours of a figure's writing and lines."""


@dataclass(frozen=True)
class Picture:
    """A figure of a report.

    Args:
        name: file name without ending.
        title: heading.
        text: what one sees, one or two sentences.
        png: its bytes.
    """

    name: str
    title: str
    text: str
    png: bytes


def subplots(columns: int = 1, *, width: float = 8.6, height: float = 3.4) -> Any:
    """A figure and its axes in a row, without pyplot, which would keep global state.

    Args:
        columns: how many axes.
        width, height: of the row, inches.
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
    """Takes the frame away and leaves a hairline grid along one axis."""
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
    """Colour and dashes of the line with this index: both differ, so that print in grey still works."""
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index // len(PALETTE) % len(DASHES)]}


def png(figure: Figure) -> bytes:
    """PNG bytes without a date or a version in them: the same figure is the same file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return stream.getvalue()
