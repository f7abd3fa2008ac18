"""How numbers are spelt in reports and tables."""

from __future__ import annotations

from collections.abc import Mapping

MISSING = "–"
DEFAULT_CONVENTION = {"hd95": "max of directed", "empty": "diagonal"}
"""How HD95 and empty masks are counted where a run says nothing of it (docs/method.md)."""

_HD95 = {
    "max of directed": "HD95 is the larger of the two directed 95th percentiles (MONAI)",
    "pooled": "HD95 is the 95th percentile of both directions pooled (MedPy)",
}
_EMPTY = {
    "diagonal": "an image with one empty mask counts with the image's diagonal.",
    "skipped": "images with an empty mask are left out of it.",
}


def as_score(value: float | None, digits: int = 3) -> str:
    """A Dice or IoU, or a dash where there is none."""
    return MISSING if value is None else f"{value:.{digits}f}"


def as_pixels(value: float | None) -> str:
    """A distance in pixels, without its unit."""
    return MISSING if value is None else f"{value:.1f}"


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


def as_percent(value: float | None) -> str:
    """A share as a whole percentage."""
    return MISSING if value is None else f"{round(100 * value)} %"


def as_difference(value: float, digits: int = 3) -> str:
    """A difference with its sign; what rounds to nothing has a plus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def told_convention(convention: Mapping[str, str] | None) -> str:
    """A sentence on how HD95 and empty masks are counted."""
    found = {**DEFAULT_CONVENTION, **(convention or {})}
    return f"{_HD95[found['hd95']]}, in pixels at the evaluation size; {_EMPTY[found['empty']]}"
