"""What lies on the skin and is not skin: hair, rulers, ink, bubbles, gel reflections, coloured patches."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from samfed_monai.data.synthetic_scene.noise import Field, Shape, sigmoid, smooth_noise

_FINE = 3  # lines are drawn this much finer and averaged, because PIL's are not anti-aliased


class _Canvas:
    """A grey canvas that is drawn finer than the image and read as coverage in [0, 1]."""

    def __init__(self, shape: Shape) -> None:
        self.image = Image.new("L", (shape[1] * _FINE, shape[0] * _FINE))
        self.pen = ImageDraw.Draw(self.image)

    def line(self, points: np.ndarray, width: float, ink: float = 1.0) -> None:
        """Draws through (N, 2) points given as (column, row) in image pixels."""
        fine = [(float(x) * _FINE, float(y) * _FINE) for x, y in points]
        self.pen.line(fine, fill=int(255 * ink), width=max(1, round(width * _FINE)), joint="curve")

    def coverage(self) -> Field:
        return np.asarray(self.image.reduce(_FINE), dtype=np.float32) / np.float32(255)


def draw_hairs(rng: np.random.Generator, shape: Shape, count: int) -> Field:
    """Coverage of ``count`` curved hairs, long and short, growing roughly one way."""
    canvas = _Canvas(shape)
    size = np.array([shape[1], shape[0]], dtype=float)
    main = rng.uniform(0, 2 * np.pi)
    steps = np.linspace(0, 1, 14)[:, None]
    for _ in range(count):
        turn = main + rng.normal(0, 0.5)
        length = size.max() * rng.choice([rng.uniform(0.15, 0.4), rng.uniform(0.5, 1.2)])
        way = length * np.array([np.cos(turn), np.sin(turn)])
        bend = length * rng.normal(0, 0.16) * np.array([-np.sin(turn), np.cos(turn)])
        start = rng.uniform(-0.1, 1.1, 2) * size - 0.4 * way
        curl = rng.normal(0, 0.5)
        points = start + steps * way + (4 * steps * (1 - steps) + curl * steps**3) * bend
        canvas.line(points, width=size.min() / 256 * rng.uniform(0.5, 1.6), ink=rng.uniform(0.45, 1.0))
    return canvas.coverage()


def draw_ruler(rng: np.random.Generator, shape: Shape) -> Field:
    """Coverage of a millimetre scale: along an edge of the image, or a printed bar near the bottom."""
    canvas = _Canvas(shape)
    height, width = shape
    step = width * rng.uniform(0.025, 0.05)
    thick = width / 256 * 0.8
    if rng.random() < 0.5:  # along an edge
        turn, start, count, low = rng.normal(0, 0.05), np.array([0.0, height * rng.uniform(0.0, 0.08)]), 60, 0.0
    else:
        turn, count, low = rng.normal(0, 0.12), int(rng.integers(9, 16)), 1.0
        start = np.array([width * rng.uniform(0.15, 0.5), height * rng.uniform(0.8, 0.93)])
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    for tick in range(count):
        foot = start + tick * step * along
        size = step * (1.3 if tick % 5 == 0 else 0.7)
        canvas.line(np.stack([foot, foot + (size if not low else -size) * across]), thick)
    if low:
        canvas.line(np.stack([start, start + (count - 1) * step * along]), thick)
    coverage = canvas.coverage()
    return coverage if low or rng.random() < 0.5 else coverage[:, ::-1]


def draw_ink(rng: np.random.Generator, shape: Shape, centre: tuple[float, float], clear: float) -> Field:
    """Coverage of pen scribbles at least ``clear`` pixels from ``centre`` (row, column)."""
    canvas = _Canvas(shape)
    for _ in range(int(rng.integers(1, 4))):
        turn, away = rng.uniform(0, 2 * np.pi), clear * rng.uniform(1.2, 1.7)
        middle = np.array([centre[1] + away * np.cos(turn), centre[0] + away * np.sin(turn)])
        long, wide = min(shape) * rng.uniform(0.05, 0.13), min(shape) * rng.uniform(0.015, 0.04)
        steps = np.linspace(-1, 1, 40)
        zigzag = np.stack([wide * rng.normal(0, 1, 40), long * steps], axis=1)
        spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        canvas.line(middle + zigzag @ spin, width=min(shape) / 256 * 1.2, ink=rng.uniform(0.6, 1.0))
    return canvas.coverage()


def draw_bubbles(rng: np.random.Generator, shape: Shape) -> tuple[Field, Field]:
    """Bright rims and dark rims of a few air bubbles in the immersion fluid, each in [0, 1]."""
    bright, dark = _Canvas(shape), _Canvas(shape)
    for _ in range(int(rng.integers(2, 14))):
        x, y = rng.uniform(0, shape[1]) * _FINE, rng.uniform(0, shape[0]) * _FINE
        size = min(shape) * _FINE * rng.uniform(0.006, 0.022) * rng.choice([1.0, 1.0, 2.2])
        ink = int(255 * rng.uniform(0.3, 0.9))
        dark.pen.ellipse((x - size, y - size, x + size, y + size), outline=ink, width=max(2, round(size / 4)))
        size *= 0.8
        start = float(rng.uniform(0, 360))
        bright.pen.arc((x - size, y - size, x + size, y + size), start, start + 150, fill=ink, width=_FINE)
    return bright.coverage(), dark.coverage()


def draw_gel(rng: np.random.Generator, shape: Shape) -> Field:
    """Specular glare in [0, 1]: small flecks, more of them towards one side."""
    columns = np.linspace(-1, 1, shape[1], dtype=np.float32) * (1 if rng.random() < 0.5 else -1)
    flecks = smooth_noise(rng, shape, 2.0) * sigmoid(4 * smooth_noise(rng, shape, min(shape) / 6))
    glare = sigmoid(8 * (columns[None] + 0.25 * smooth_noise(rng, shape, min(shape) / 4) - 1.05))
    return np.clip(sigmoid(6 * (flecks + 0.4 * columns[None] - 2.4)) + 0.8 * glare, 0, 1)


def draw_patch(rng: np.random.Generator, shape: Shape, centre: tuple[float, float], clear: float) -> Field | None:
    """Coverage of a round sticker that enters from the side, or ``None`` where it would touch the lesion."""
    canvas = _Canvas(shape)
    turn = rng.uniform(0, 2 * np.pi)
    radius = min(shape) * rng.uniform(0.25, 0.4)
    row, column = shape[0] / 2 + shape[0] * 0.62 * np.sin(turn), shape[1] / 2 + shape[1] * 0.62 * np.cos(turn)
    if np.hypot(row - centre[0], column - centre[1]) < radius + 1.7 * clear:
        return None
    box = [(column - radius) * _FINE, (row - radius) * _FINE, (column + radius) * _FINE, (row + radius) * _FINE]
    canvas.pen.ellipse(box, fill=255)
    return canvas.coverage()
