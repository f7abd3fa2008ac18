"""One pass over all files: each is read once, hashed, decoded and measured, by a pool of threads."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from samfed_monai.bars import progress_bar
from samfed_monai.data.orientation import misfit
from samfed_monai.data.paths import confine
from samfed_monai.data.reading import ORIENTATION, Picture, decode_image, decode_mask, read_bytes
from samfed_monai.errors import Problem, Refused
from samfed_monai.io import sha256_bytes


@dataclass(frozen=True)
class Facts:
    """What is known of one image and its mask after looking at every byte of both.

    Args:
        image: path relative to the data root.
        sha256: of the image file; ``""`` if it cannot be read.
        height: pixels, after EXIF orientation; 0 if it does not decode.
        width: pixels.
        mode: Pillow's name of the stored pixels (``RGB``, ``I;16``, ``CMYK``, ...).
        turned: whether the file's EXIF asks for an orientation other than upright.
        mean_rgb: mean colour, 0 to 255 each.
        label: path of the mask, if any, with ``label_sha256`` as above.
        mask_values: distinct stored grey levels of the mask, ascending.
        foreground: share of foreground pixels in [0, 1]; ``None`` without a readable mask.
        misfit: how much better the mask would fit the picture transposed or turned (:func:`~.orientation.misfit`).
        problems: what is wrong with either file.
    """

    image: str
    sha256: str = ""
    height: int = 0
    width: int = 0
    mode: str = ""
    turned: bool = False
    mean_rgb: tuple[float, float, float] = (0.0, 0.0, 0.0)
    label: str | None = None
    label_sha256: str | None = None
    mask_values: tuple[int, ...] = ()
    foreground: float | None = None
    misfit: float = 0.0
    problems: tuple[Problem, ...] = ()


def survey(
    pairs: Iterable[tuple[str, str | None]],
    data_root: str | Path,
    *,
    threshold: int | None = None,
    progress: bool = True,
) -> list[Facts]:
    """Facts of every pair, in order; nothing is raised for a bad file, its facts carry the problem.

    Args:
        pairs: image and mask (or ``None``), relative to ``data_root``.
        data_root: folder that nothing may lie outside of.
        threshold: as in :func:`~.reading.read_mask`.
        progress: whether to show a progress bar.
    """
    pairs = list(pairs)
    workers = min(16, (os.cpu_count() or 1) + 2)
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda pair: look(pair[0], pair[1], data_root, threshold), pairs)
        return list(progress_bar(found, total=len(pairs), desc="reading images", unit="image", show=progress))


def look(image: str, label: str | None, data_root: str | Path, threshold: int | None) -> Facts:
    """Facts of one image and its mask."""
    problems: list[Problem] = []
    facts: dict = {"image": image, "label": label}
    picture = mask = None
    try:
        content = read_bytes(confine(data_root, image, where=image))
        facts["sha256"] = sha256_bytes(content)
        picture, stored = decode_image(content, image)
        facts |= _image_facts(picture, stored)
    except Refused as refused:
        problems += refused.problems
    if label is not None:
        try:
            content = read_bytes(confine(data_root, label, where=label))
            facts["label_sha256"] = sha256_bytes(content)
            mask, values, _ = decode_mask(content, label, threshold)
            facts |= {"mask_values": tuple(values), "foreground": float(mask.mean())}
        except Refused as refused:
            problems += [_missing_mask(problem, image, label, data_root) for problem in refused.problems]
    if picture is not None and mask is not None:
        problem = _size_problem(picture, mask, image, str(label), facts["turned"])
        problems += [problem] if problem else []
        facts["misfit"] = 0.0 if problem else misfit(picture, mask)
    return Facts(**facts, problems=tuple(problems))


def _image_facts(picture: Picture, stored: Image.Image) -> dict:
    height, width = picture.shape[:2]
    step = max(1, min(height, width) // 128)
    red, green, blue = (float(value) for value in picture[::step, ::step].reshape(-1, 3).mean(axis=0))
    turned = stored.getexif().get(ORIENTATION, 1) not in (0, 1)
    return {"height": height, "width": width, "mode": stored.mode, "turned": turned, "mean_rgb": (red, green, blue)}


def _missing_mask(problem: Problem, image: str, label: str, data_root: str | Path) -> Problem:
    if (Path(data_root) / label).exists():
        return problem
    mend = "add the mask, or list the image without a label"
    return Problem(label, found="no such file", expected=f"the mask of {image}", mend=mend)


def _size_problem(picture: Picture, mask: Picture, image: str, label: str, turned: bool) -> Problem | None:
    expected, found = picture.shape[:2], mask.shape
    if expected == found:
        return None
    size = "{1} x {0}".format(*expected)
    if found == expected[::-1]:
        mend = "turn the mask by a quarter, or transpose it back; look which in the data report's overlays"
        if turned:
            mend = "the image's EXIF turns it, the mask's does not: save both upright, without EXIF"
        return Problem(
            label, found="a transposed mask, {1} x {0}".format(*found), expected=f"{size} as {image}", mend=mend
        )
    mend = "resize the mask with nearest-neighbour interpolation, or find the right one"
    return Problem(label, found="{1} x {0} pixels".format(*found), expected=f"{size} as {image}", mend=mend)
