"""One colonoscopy-like image: a folded tube of mucosa with a polyp, in the look of its site."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from samfed_monai.core.seeds import derive_seed
from samfed_monai.data.synthetic_scene.texture import (
    Field,
    Range,
    Shape,
    fractal_noise,
    lamp_and_size,
    one_piece,
    outline_depth,
    photograph,
    ridges,
    sigmoid,
    smooth_noise,
)


@dataclass(frozen=True)
class ColonLook:
    """Distribution of a site's colonoscopy images; a pair is the range of a uniform draw per image.

    Args:
        mucosa: RGB of the bloodless mucosa under neutral light, each in [0, 1].
        blood: density of haemoglobin in the mucosa.
        light: RGB gain of lamp and camera (colour cast).
        exposure: gain of all channels.
        reach: how deep into the tube the lamp shines; small leaves the distance dark.
        lumen: distance of the tube's far end from the image's centre, in half diagonals; near 1 looks at the wall.
        folds: folds between the lumen and the image's edge.
        vessels: chance of visible vessels.
        stain: chance of yellow liquid.
        radius: polyp's mean radius as a fraction of the image's shorter side.
        bulge: height over radius; below 0.4 the polyp is flat.
        redness: haemoglobin of the polyp beyond the mucosa's; negative is paler.
        ragged: how far the polyp's border strays, as a fraction of its radius.
        glare: amount of specular highlights.
        margin: black border of the picture, as a fraction of its shorter side.
        corner: cut corners of the picture, likewise.
        box: chance of the green box that shows where the endoscope is (lower left).
        text: chance of printed patient data.
        blur: camera blur, deviation in pixels at 256 px.
        noise: deviation of the sensor noise, in [0, 1] intensities.
        quality: JPEG quality.
    """

    mucosa: tuple[float, float, float] = (1.00, 0.80, 0.66)
    blood: Range = (0.25, 0.55)
    light: tuple[float, float, float] = (1.0, 0.98, 0.92)
    exposure: Range = (0.85, 1.15)
    reach: Range = (1.2, 2.2)
    lumen: Range = (0.25, 1.1)
    folds: Range = (1.5, 4.0)
    vessels: float = 0.5
    stain: float = 0.2
    radius: Range = (0.10, 0.22)
    bulge: Range = (0.45, 1.0)
    redness: Range = (0.35, 0.75)
    ragged: Range = (0.0, 0.02)
    glare: Range = (0.2, 0.6)
    margin: Range = (0.02, 0.05)
    corner: Range = (0.12, 0.22)
    box: float = 0.0
    text: float = 0.0
    blur: Range = (0.4, 0.9)
    noise: Range = (0.006, 0.014)
    quality: int = 92


PUBLIC = ColonLook()

# Red and bright with big polyps, green box and print; brown, dark, in a wide frame; rosy, blurred, smaller and flatter;
# greenish-pale, close to the wall, with much glare.
SITES = (
    ColonLook(
        mucosa=(1.0, 0.74, 0.62), light=(1.04, 0.97, 0.93), blood=(0.35, 0.7), exposure=(0.9, 1.2), reach=(1.6, 3.0),
        radius=(0.16, 0.34), bulge=(0.5, 1.1), redness=(0.35, 0.8), glare=(0.4, 1.0), margin=(0.0, 0.015), box=0.5,
        text=0.8, corner=(0.18, 0.3), ragged=(0.0, 0.04), quality=94,
    ),
    ColonLook(
        mucosa=(0.95, 0.80, 0.58), light=(1.03, 0.96, 0.74), blood=(0.12, 0.4), exposure=(0.55, 0.85), reach=(0.7, 1.4),
        lumen=(0.1, 0.8), radius=(0.12, 0.28), margin=(0.07, 0.11), stain=0.5, vessels=0.3, glare=(0.4, 1.0),
        redness=(0.3, 0.7), noise=(0.01, 0.022), quality=86,
    ),
    ColonLook(
        mucosa=(0.97, 0.80, 0.80), light=(0.98, 0.90, 1.03), blood=(0.3, 0.6), exposure=(0.75, 1.0),
        radius=(0.10, 0.20), bulge=(0.25, 0.6), redness=(0.3, 0.65), blur=(1.0, 1.8), margin=(0.03, 0.06),
        corner=(0.22, 0.3), text=0.3, vessels=0.7, glare=(0.1, 0.5), noise=(0.012, 0.025), quality=80,
    ),
    ColonLook(
        mucosa=(0.92, 0.90, 0.74), light=(0.92, 1.0, 0.88), blood=(0.1, 0.3), exposure=(0.7, 1.0), lumen=(0.7, 1.4),
        folds=(1.0, 2.5), radius=(0.12, 0.28), bulge=(0.25, 0.8), redness=(0.3, 0.65), glare=(0.6, 1.3),
        corner=(0.03, 0.1), margin=(0.0, 0.03), vessels=0.9, stain=0.35, blur=(0.3, 0.6), quality=90,
    ),
)  # fmt: skip


def look_of(index: int, seed: int) -> ColonLook:
    """Look of the site number ``index`` (from 0): the four written down here, then variations of them by ``seed``."""
    look = SITES[index % len(SITES)]
    if index < len(SITES):
        return look
    rng = np.random.default_rng(derive_seed(seed, "colon-look", index))
    drawn = lamp_and_size(look.light, look.radius, rng, gains=(0.92, 1.08), limits=(0.08, 0.38))
    return replace(look, **drawn, box=float(rng.uniform(0, 0.5)))


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


_BLOOD = (0.15, 1.00, 1.05)  # relative absorption in R, G, B
_STAIN = (0.10, 0.25, 1.10)
_DISTANCE = (0.05, 0.16, 0.22)  # light from far away has passed more mucosa: redder and darker


@dataclass(frozen=True)
class Tube:
    """The wall seen from inside, all (H, W).

    Args:
        away: distance from the tube's far end in the image, in shorter sides; small is far down the tube.
        depth: distance from the lamp, about 0.4 (near) to 5.
        shade: light that folds leave, about 0.3 to 1.2.
        towards: unit vector (down, right) that leads away from the far end, to the lamp.
    """

    away: Field
    depth: Field
    shade: Field
    towards: tuple[Field, Field]


def render_colon(
    rng: np.random.Generator, shape: Shape, look: ColonLook
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Renders one image of a site and the polyp's outline.

    Args:
        rng: source of randomness; the same state gives the same image.
        shape: (H, W) in pixels.
        look: the site's look.

    Returns:
        image (H, W, 3) uint8 and mask (H, W) uint8 in {0, 255}, never empty. The mask ends where the frame or the box
        covers the polyp.
    """
    frame = draw_frame(rng, shape, look)
    tube = _tube(rng, shape, look)
    radius = float(rng.uniform(*look.radius)) * min(shape)
    centre = _place(rng, tube, frame, radius)
    inside = _polyp(rng, shape, centre, radius, float(rng.uniform(*look.ragged)))
    mask = one_piece((inside > 0) & frame.visible)
    body = sigmoid(inside / np.float32(max(0.05 * radius, 0.7)))
    bulge = float(rng.uniform(*look.bulge))
    blood, stain = _pigments(rng, shape, look, inside, body, radius)
    light, facing = _light(rng, tube, look, centre, inside, body, radius, bulge)
    glare = _glare(rng, shape, look, facing, light, body)
    image = np.stack(
        [
            np.float32(look.mucosa[channel] * look.light[channel])
            * np.exp(-_BLOOD[channel] * blood - _STAIN[channel] * stain - _DISTANCE[channel] * tube.depth)
            * light
            for channel in range(3)
        ],
        axis=-1,
    )
    image = 1 - np.exp(np.float32(-1.25) * image)  # a camera compresses what is bright
    image += glare[..., None] * (1.05 - np.minimum(image, 1))
    return photograph(rng, frame.over(image), blur=look.blur, noise=look.noise), mask.astype(np.uint8) * 255


def _tube(rng: np.random.Generator, shape: Shape, look: ColonLook) -> Tube:
    height, width = shape
    short = min(shape)
    way, off = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(*look.lumen)) * float(np.hypot(height, width)) / 2
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    rows -= np.float32(height / 2 + off * np.sin(way))
    columns -= np.float32(width / 2 + off * np.cos(way))
    aspect, tilt = float(rng.uniform(1.0, 1.5)) ** 0.5, float(rng.uniform(0, np.pi))
    along = (columns * np.cos(tilt) + rows * np.sin(tilt)) / np.float32(aspect)
    across = (rows * np.cos(tilt) - columns * np.sin(tilt)) * np.float32(aspect)
    turn = np.arctan2(across, along)
    bent = (
        1 + 0.10 * np.cos(3 * turn + np.float32(rng.uniform(0, 2 * np.pi))) + 0.10 * smooth_noise(rng, shape, short / 2)
    )
    away = np.hypot(along, across) / np.float32(short) * bent.astype(np.float32)
    depth = np.float32(0.42) / (away + np.float32(0.085))
    # Folds are rings in the logarithm of the distance: evenly spaced down the tube, crowded towards its end.
    phase = np.log(away + np.float32(0.06)) * np.float32(rng.uniform(*look.folds) / 2)
    phase += 0.09 * fractal_noise(rng, shape, short / 2, 2, 0.4) + np.float32(rng.uniform(0, 1))
    step = phase - np.floor(phase)
    tall = np.clip(0.5 + 0.6 * smooth_noise(rng, shape, short / 1.6), 0, 1.2) * sigmoid(6 * (away - 0.1))
    behind = np.exp(-(1 - step) / np.float32(rng.uniform(0.1, 0.3)))
    crest = np.exp(-step / np.float32(rng.uniform(0.10, 0.2)))
    shade = ndimage.gaussian_filter(1 + tall * (0.22 * crest - 0.55 * behind), short / 170, truncate=2)
    shade += 0.04 * fractal_noise(rng, shape, short / 9, 3)
    length = np.sqrt(rows**2 + columns**2) + np.float32(1e-3)
    return Tube(away, depth.astype(np.float32), shade.astype(np.float32), (rows / length, columns / length))


def _place(rng: np.random.Generator, tube: Tube, frame: Frame, radius: float) -> tuple[float, float]:
    """Centre (row, column) of the polyp: on the visible wall, not down the lumen, not under the frame's edge."""
    height, width = tube.away.shape
    spare = min(0.6 * radius, 0.2 * min(height, width))
    candidates = rng.uniform((spare, spare), (height - spare, width - spare), (24, 2))
    best, good = (height / 2, width / 2), -1.0
    for row, column in candidates.tolist():
        reach = int(0.7 * radius)
        around = frame.visible[
            max(0, int(row) - reach) : int(row) + reach + 1, max(0, int(column) - reach) : int(column) + reach + 1
        ]
        score = min(float(around.mean()), 0.95) + min(float(tube.away[int(row), int(column)]), 0.3)
        if frame.visible[int(row), int(column)] and score > good:
            best, good = (row, column), score
    return best


def _polyp(rng: np.random.Generator, shape: Shape, centre: tuple[float, float], radius: float, ragged: float) -> Field:
    """Depth inside the polyp's outline in pixels; computed around it only, far away it is -2 radii."""
    reach = 2.2 * radius
    top, left = (max(0, int(middle - reach)) for middle in centre)
    bottom, right = (min(side, int(middle + reach) + 1) for middle, side in zip(centre, shape, strict=True))
    inside = np.full(shape, -2 * radius, np.float32)
    middle = (centre[0] - top, centre[1] - left)
    part = outline_depth(rng, (bottom - top, right - left), middle, radius, ragged, octaves=2)
    inside[top:bottom, left:right] = np.maximum(part, -2 * radius)
    return inside


def _pigments(
    rng: np.random.Generator, shape: Shape, look: ColonLook, inside: Field, body: Field, radius: float
) -> tuple[Field, Field]:
    """Haemoglobin of mucosa and polyp, and yellow liquid that lies on the mucosa."""
    short = min(shape)
    blood = float(rng.uniform(*look.blood)) * (1 + 0.18 * fractal_noise(rng, shape, short / 4, 4, 0.55))
    if rng.random() < look.vessels:
        strength = float(rng.uniform(0.12, 0.35))
        net = ridges(rng, shape, short / 5, 11.0) * sigmoid(4 * smooth_noise(rng, shape, short / 4))
        blood += strength * (net + 0.5 * ridges(rng, shape, short / 11, 8.0)) * (1 - body)
    pits = smooth_noise(rng, shape, max(2.0, radius / 7))
    blood += body * (float(rng.uniform(*look.redness)) + 0.05 * pits + 0.06 * smooth_noise(rng, shape, radius / 2))
    rim = np.exp(-np.square(inside / np.float32(0.10 * radius)))
    blood += float(rng.uniform(0.0, 0.12)) * rim
    stain = np.zeros(shape, np.float32)
    if rng.random() < look.stain:
        stain = (
            float(rng.uniform(0.2, 0.7)) * sigmoid(3 * fractal_noise(rng, shape, short / 3, 3) - 1) * (1 - 0.7 * body)
        )
    return np.maximum(blood, 0).astype(np.float32), stain.astype(np.float32)


def _light(
    rng: np.random.Generator,
    tube: Tube,
    look: ColonLook,
    centre: tuple[float, float],
    inside: Field,
    body: Field,
    radius: float,
    bulge: float,
) -> tuple[Field, Field]:
    """Light on every point, and how much its surface faces the camera, in [0, 1]."""
    rows, columns = np.ogrid[0 : inside.shape[0], 0 : inside.shape[1]]
    profile = 1 - np.square(1 - np.clip(inside / np.float32(radius), 0, 1))
    height = ndimage.gaussian_filter(np.float32(bulge * radius) * profile, 0.05 * radius, truncate=2)
    down, right = np.gradient(height)
    upright = 1 / np.sqrt(1 + down**2 + right**2)
    # The lamp sits beside the lens: what turns towards it, away from the far end, gets a little more light.
    lamp = np.float32(0.4) * (down * tube.towards[0] + right * tube.towards[1]) * upright
    relief = np.clip(0.45 + 0.55 * upright - np.clip(lamp, -0.3, 0.3), 0.15, 1.3)
    # A polyp that stands up throws a shadow down the tube.
    dy, dx = (rows - np.float32(centre[0])).astype(np.float32), (columns - np.float32(centre[1])).astype(np.float32)
    side = 0.5 - 0.5 * (dy * tube.towards[0] + dx * tube.towards[1]) / (np.sqrt(dy**2 + dx**2) + 1)
    shadow = np.exp(np.minimum(inside, 0) / np.float32(0.2 * radius)) * (1 - body) * side * np.float32(min(bulge, 1))
    near = tube.depth * (1 - np.float32(0.12 * bulge) * body)
    fall = 1 / (1 + np.square(near / np.float32(rng.uniform(*look.reach))))
    wall = tube.shade * (1 - 0.85 * body) + np.float32(0.85) * body
    square = (rows / inside.shape[0] - 0.5) ** 2 + (columns / inside.shape[1] - 0.5) ** 2
    vignette = 1 - np.float32(rng.uniform(0.3, 0.9)) * square.astype(np.float32)
    light = np.float32(1.25 * rng.uniform(*look.exposure)) * fall * wall * relief * (1 - 0.5 * shadow) * vignette
    return light.astype(np.float32), (upright * np.clip(tube.shade, 0, 1)).astype(np.float32)


def _glare(rng: np.random.Generator, shape: Shape, look: ColonLook, facing: Field, light: Field, body: Field) -> Field:
    """Specular highlights in [0, 1]: wet flecks in clusters where a lit surface faces the lamp, more on the polyp."""
    short = min(shape)
    amount = float(rng.uniform(*look.glare))
    fine = smooth_noise(rng, shape, max(2.0, short / 34)) + 0.4 * smooth_noise(rng, shape, max(1.5, short / 80))
    where = smooth_noise(rng, shape, short / 4) + 0.7 * body
    threshold = 4.3 - 0.45 * amount - 0.75 * np.clip(where, -1, 2.2)
    flecks = sigmoid(14 * (fine - threshold)) * np.clip((facing - 0.55) * 4, 0, 1)
    return (flecks * np.clip(light * 2 - 0.2, 0, 1)).astype(np.float32)
