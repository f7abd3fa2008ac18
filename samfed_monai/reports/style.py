"""One look for every figure: quiet axes, colours that colour-blind readers tell apart, a light and a dark theme."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito, "Color Universal Design" (2008), without black and yellow, which one of the two themes would swallow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# The same hues, lighter, in another order of the two blues.
PALETTE_ON_DARK = ("#56B4E9", "#EE7733", "#35C297", "#DDA0C4", "#5A94D6", "#F0C246")
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure's ground, writing and lines."""

    ground: str
    ink: str
    faint: str
    grid: str
    palette: tuple[str, ...]


LIGHT = Theme(ground="#ffffff", ink="#22252a", faint="#6b7078", grid="#e6e6e3", palette=PALETTE)
DARK = Theme(ground="#1b1e23", ink="#e4e4e1", faint="#9a9fa7", grid="#32363d", palette=PALETTE_ON_DARK)


@dataclass(frozen=True)
class Picture:
    """A figure of a report, rendered in both themes.

    Args:
        name: file name without ending.
        title: heading.
        text: what one sees, one or two sentences.
        light: PNG bytes; the file in ``figures/``.
        dark: PNG bytes for readers in dark mode, or empty.
    """

    name: str
    title: str
    text: str
    light: bytes
    dark: bytes = b""


def picture(name: str, title: str, text: str, draw: Callable[[Theme], Figure]) -> Picture:
    """Renders a drawing function in both themes."""
    return Picture(name, title, text, *(png(draw(theme), theme) for theme in (LIGHT, DARK)))


def subplots(theme: Theme, columns: int = 1, *, width: float = 8.6, height: float = 3.4, **kwargs: Any) -> Any:
    """A figure and its axes in a row, without pyplot, which would keep global state."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 10, "font.family": "sans-serif"}):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.ground)
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(wspace=0.07)  # type: ignore[union-attr, call-arg]
        axes = figure.subplots(1, columns, squeeze=False, **kwargs)[0]
    for ax in axes:
        quiet(ax, theme)
    return figure, axes


def quiet(ax: Axes, theme: Theme, *, grid: str = "y") -> None:
    """Takes the frame away and leaves a hairline grid along one axis."""
    ax.set_facecolor(theme.ground)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(theme.grid)
    ax.grid(False)
    ax.grid(axis=grid, color=theme.grid, linewidth=0.8)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.tick_params(colors=theme.faint, length=0, labelsize=9)
    for label in (ax.xaxis.label, ax.yaxis.label, ax.title):
        label.set_color(theme.faint)


def line_style(index: int, theme: Theme) -> dict[str, Any]:
    """Colour and dashes of the line with this index: both differ, so that print in grey still works."""
    return {
        "color": theme.palette[index % len(theme.palette)],
        "linestyle": DASHES[index // len(theme.palette) % len(DASHES)],
    }


def spread_labels(values: list[float], *, gap: float, top: float = float("inf")) -> list[float]:
    """Places for labels near ``values``, at least ``gap`` apart and not above ``top``, in the order given."""
    order = sorted(range(len(values)), key=values.__getitem__)
    places = [values[index] for index in order]
    for _ in range(50):
        for low, high in zip(range(len(places)), range(1, len(places)), strict=False):
            if (short := gap - (places[high] - places[low])) > 1e-9:
                places[low] -= short / 2
                places[high] += short / 2
    over = max(0.0, max(places, default=0.0) - top)
    places = [place - over for place in places]
    found = [0.0] * len(values)
    for place, index in zip(places, order, strict=True):
        found[index] = place
    return found


def png(figure: Figure, theme: Theme) -> bytes:
    """PNG bytes without a date or a version in them: the same figure is the same file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, facecolor=theme.ground, metadata={"Software": None})
    return stream.getvalue()
