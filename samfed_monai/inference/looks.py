"""One page of images with their masks' outlines, most doubtful first, which any browser shows from the file alone."""

from __future__ import annotations

import base64
import heapq
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samfed_monai.core.words import printable
from samfed_monai.data.classes import colour_of
from samfed_monai.data.reading import png_of
from samfed_monai.handlers.mask_writer import MaskFolder
from samfed_monai.metrics.quality import DOUBTFUL
from samfed_monai.reports.overlays import outlined
from samfed_monai.reports.style import PRIVACY, data_url, environment

if TYPE_CHECKING:
    from samfed_monai.inference.assessment import Assessment

LONGEST_SIDE = 448
"""Pixels of a picture on the page, about 25 kB as JPEG."""
MOST = 1000
"""Pictures on one page, which is then some 30 MB: more than anyone looks through, and what a phone still opens."""
_MARK = b'<meta name="generator" content="samfed infer --page">'


@dataclass(frozen=True)
class Look:
    """One picture on the page.

    Args:
        area: a row of :data:`samfed_monai.reports.overlays.COLUMNS`.
        assessed: how far the mask is to be trusted.
        picture: the picture as a JPEG, and the outlines as a PNG that is transparent elsewhere: URLs with the content.
        outline: likewise.
        size: width and height of both, in pixels.
        seconds: since the beginning of its video.
    """

    area: Mapping[str, Any]
    assessed: Assessment
    picture: str
    outline: str
    size: tuple[int, int]
    seconds: float | None = None

    @property
    def rank(self) -> tuple[float, str]:
        """Expected Dice and name: the most doubtful first."""
        return self.assessed.expected_dice, self.area["name"]


def look_of(
    picture: NDArray[np.uint8],
    mask: NDArray[Any],
    area: Mapping[str, Any],
    assessed: Assessment,
    seconds: float | None = None,
) -> Look:
    """A picture (H, W, 3) uint8 and its mask (H, W), bool or values of classes, at :data:`LONGEST_SIDE` at most."""
    small = Image.fromarray(picture)
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80, optimize=True)
    photo = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    lines = outlined(np.zeros((small.height, small.width, 3), np.uint8), _shrunk(mask, small.size))
    layer = np.dstack([lines, np.where(lines.any(axis=-1), 255, 0).astype(np.uint8)])
    url = data_url(png_of(layer))
    return Look(area, assessed, photo, url, small.size, seconds)


def _shrunk(mask: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The mask at another size (width, height); what is smaller than a pixel there does not vanish."""
    if mask.dtype != bool:
        small = np.zeros(size[::-1], mask.dtype)
        for number in range(1, int(mask.max()) + 1):
            small[_shrunk(mask == number, size)] = number
        return small
    shares = np.array(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX))
    shrunk: NDArray[np.bool_] = (shares > 0) & (shares >= min(128, shares.max()))
    return shrunk


class LooksPage:
    """Collects pictures and writes ``--page``; of more than :data:`MOST` it shows the most doubtful.

    Args:
        path: the HTML file.
        labels: what the foreground is called, or the classes from the first on.
    """

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self.path, self.labels = path, list(labels)
        self.total = self.doubtful = 0
        self._worst: list[tuple[float, int, Look]] = []  # a heap, the least doubtful first

    def add(self, look: Look) -> None:
        """Takes over a picture; the least doubtful one leaves if they are too many."""
        self.total += 1
        self.doubtful += look.assessed.doubtful
        entry = (-look.assessed.expected_dice, -self.total, look)
        (heapq.heappushpop if len(self._worst) == MOST else heapq.heappush)(self._worst, entry)

    @property
    def looks(self) -> list[Look]:
        """The pictures that are shown, most doubtful first."""
        return sorted((look for _, _, look in self._worst), key=lambda look: look.rank)

    def html(self, template: str = "looks.html.j2") -> str:
        """The page, or the part of it that another template makes."""
        looks = self.looks
        several = len(self.labels) > 1
        shown = {
            "page": self,
            "looks": looks,
            "flags": sorted({flag for look in looks for flag in look.assessed.flags}),
            "below": max((look.assessed.doubtful_below for look in looks), default=DOUBTFUL),
            "calibrated": all(look.assessed.lower_bound is not None for look in looks),
            "colours": {name: f"rgb{colour_of(n)}" for n, name in enumerate(self.labels, start=1)} if several else {},
            "timed": any(look.seconds is not None for look in looks),
            "privacy": PRIVACY,
        }
        return printable(environment().get_template(template).render(shown))

    def write(self) -> None:
        """Writes the page, unless it is there already."""
        MaskFolder(self.path.parent).write(self.path.name, self.html().encode())

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a file is such a page."""
        return path.is_file() and _MARK in path.read_bytes()[:400]
