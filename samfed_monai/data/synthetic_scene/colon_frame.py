"""What lies over a colonoscopy picture: the black frame, the box with the endoscope's shape, printed patient data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from samfed_monai.data.synthetic_scene.colon_look import ColonLook
from samfed_monai.data.synthetic_scene.noise import Field, Shape

_BACKGROUND = (0.02, 0.02, 0.025)
_BOX = (0.02, 0.30, 0.12)
_SCOPE = (0.75, 0.95, 0.55)


@dataclass(frozen=True)
class Frame:
    """An overlay.

    Args:
        visible: where the mucosa can be seen, (H, W) bool; masks end where it ends.
        cover: (H, W, 4): colour and opacity of everything that lies over the mucosa.
    """

    visible: NDArray[np.bool_]
    cover: Field

    def over(self, image: Field) -> Field:
        """The overlay on top of an (H, W, 3) image."""
        opacity = self.cover[..., 3:]
        return image * (1 - opacity) + self.cover[..., :3] * opacity


def draw_frame(rng: np.random.Generator, shape: Shape, look: ColonLook) -> Frame:
    """Draws one frame of a site.

    Args:
        rng: source of randomness.
        shape: (H, W) in pixels.
        look: the site's ranges of margin and corners, its chances of box and print.
    """
    height, width = shape
    short = min(shape)
    margin, corner = float(rng.uniform(*look.margin)) * short, float(rng.uniform(*look.corner)) * short
    page = Image.new("L", (width, height))
    left, top, right, bottom = 1.6 * margin, margin, width - 1 - 1.6 * margin, height - 1 - margin
    cut = (
        *((left + corner, top), (right - corner, top), (right, top + corner), (right, bottom - corner)),
        *((right - corner, bottom), (left + corner, bottom), (left, bottom - corner), (left, top + corner)),
    )
    ImageDraw.Draw(page).polygon(cut, fill=255)
    visible = np.asarray(page) > 0
    cover = np.zeros((height, width, 4), np.float32)
    cover[~visible] = (*_BACKGROUND, 1)
    if rng.random() < look.box:
        rows, columns = slice(height - int(0.33 * height), height), slice(0, int(rng.uniform(0.24, 0.33) * width))
        visible[rows, columns] = False
        cover[rows, columns] = _scope(rng, cover[rows, columns].shape[:2])
    if rng.random() < look.text:
        _print(rng, cover, short)
    return Frame(visible, cover)


def _scope(rng: np.random.Generator, shape: Shape) -> Field:
    """The green box with the endoscope as a bright curve."""
    box = Image.new("RGB", (shape[1], shape[0]), tuple(int(255 * value) for value in _BOX))
    steps = np.linspace(0, 1, 24)
    bend, turn = rng.uniform(0.2, 0.4), rng.uniform(3.0, 6.0)
    columns = shape[1] * (0.5 + bend * np.sin(turn * steps + rng.uniform(0, 2)))
    points = list(zip(columns.tolist(), (shape[0] * (0.95 - 0.8 * steps)).tolist(), strict=True))
    pen = ImageDraw.Draw(box)
    pen.line(points, fill=tuple(int(255 * value) for value in _SCOPE), width=max(1, shape[0] // 14), joint="curve")
    filled = np.ones((*shape, 4), np.float32)
    filled[..., :3] = np.asarray(box, np.float32) / 255
    return filled


def _print(rng: np.random.Generator, cover: Field, short: int) -> None:
    """Lines of small bright marks at the upper left, as unreadable as print is at this size."""
    step, top = max(3, short // 42), int(0.27 * short)
    for line in range(int(rng.integers(2, 5))):
        row = top + 2 * line * step
        marks = rng.random((step, int(rng.integers(4, 11)) * step)) < 0.45
        marks[:, ::step] = False
        part = cover[row : row + step, 3 : 3 + marks.shape[1]]
        part[marks[: part.shape[0], : part.shape[1]]] = (0.9, 0.9, 0.88, 0.8)
