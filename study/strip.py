"""Joins pictures side by side in one small file, for the README.

``samfed infer samfed_skin IMAGES… --output-dir masks --overlays looks`` draws the outlines, and
``python -m study.strip docs/lesions.jpg looks/ISIC_0014572.png …`` joins the pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

SIDE, GAP = 300, 4  # pixels


def strip(pictures: Iterable[Image.Image], side: int = SIDE, gap: int = GAP) -> Image.Image:
    """Joins pictures in a row of squares on white, each cropped around its centre; ``side`` and ``gap`` in pixels."""
    squares = []
    for picture in pictures:
        short = min(picture.size)
        left, top = (picture.width - short) // 2, (picture.height - short) // 2
        square = picture.convert("RGB").crop((left, top, left + short, top + short))
        squares.append(square.resize((side, side), Image.Resampling.LANCZOS))
    row = Image.new("RGB", (len(squares) * (side + gap) - gap, side), "white")
    for number, square in enumerate(squares):
        row.paste(square, (number * (side + gap), 0))
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m study.strip", description="Joins pictures side by side in one JPEG."
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+")
    given = parser.parse_args()
    strip(map(Image.open, given.pictures)).save(given.output, quality=85, optimize=True)
