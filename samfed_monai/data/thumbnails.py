"""Small pictures for the data report: decoded afresh and encoded without any metadata (fault 60)."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from samfed_monai.data.reading import Picture

SIDE = 184
OUTLINE = (255, 214, 10)  # a yellow that is seen on skin and on mucosa


def overlay(picture: Picture, mask: Picture | None, *, side: int = SIDE) -> Picture:
    """The picture, scaled to fit a square, with the mask's outline drawn two pixels wide.

    Args:
        picture: (H, W, 3) in 0..255.
        mask: (H, W) in {0, 1}, or ``None``.
        side: longest side of the result in pixels.
    """
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    if mask is not None:
        shape = np.asarray(Image.fromarray(mask * 255).resize(size, Image.Resampling.BOX)) > 127
        small[outline(shape)] = OUTLINE
    return small


def outline(shape: np.ndarray) -> np.ndarray:
    """Foreground pixels within two steps of the background; the picture's own edge counts as background."""
    inner = shape
    for _ in range(2):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return shape & ~inner


def data_uri(picture: Picture) -> str:
    """The picture as a JPEG inside a ``data:`` address; the pixels are all that it carries."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
