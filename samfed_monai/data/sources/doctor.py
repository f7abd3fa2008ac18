"""Errors in a site's folders, found before files are listed: nearly right names, swapped folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samfed_monai.core.errors import Problem, Refused, closest
from samfed_monai.data.reading import decode_image, decode_mask, read_bytes

NEAR_MISSES = {
    "images": {"image", "img", "imgs", "picture", "pictures", "photo", "photos", "frames", "jpegimages", "original"},
    "masks": {
        *("mask", "label", "labels", "seg", "segs", "segmentation", "segmentations", "segmentationclass", "gt"),
        *("groundtruth", "groundtruths", "annotation", "annotations", "lesions", "target", "targets", "maskimages"),
    },
}
"""Names of folders, letters alone, that other data sets use for ``images`` and ``masks``."""
LOOKED_AT = 4  # files of each folder that are opened to see what they are
BLACK_AND_WHITE = 2
_ALIKE = 0.8  # ratio of difflib's, of which "maks" has 0.89 with "masks"


def near_miss(folder: Path, wanted: str) -> str | None:
    """The subfolder that is probably meant to be called ``wanted`` (fault 66): ``labels``, ``Masks``, ``imgs``, …

    Args:
        folder: of a site.
        wanted: ``images`` or ``masks``.

    Returns:
        Its name, or ``None`` where there is none, or where ``wanted`` itself is there.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if wanted in names:
        return None
    others = {name for key, names in NEAR_MISSES.items() if key != wanted for name in (key, *names)}
    for name in names:
        letters = "".join(letter for letter in name.casefold() if letter.isalnum())
        meant = letters == wanted or letters in NEAR_MISSES[wanted]
        if meant or (letters not in others and closest(letters, [wanted], _ALIKE)):
            return name
    return None


def swapped(folder: Path, images: Sequence[Path], masks: Sequence[Path]) -> Problem | None:
    """Fault 63: that ``images`` holds black and white pictures, and ``masks`` none, as far as a few of each tell.

    Args:
        folder: of a site.
        images: files below its ``images``.
        masks: files below its ``masks``.
    """
    if not images or not masks:
        return None
    drawn = [_is_mask(path) for path in images[:LOOKED_AT]]
    seen = [_is_mask(path) for path in masks[:LOOKED_AT]]
    if not all(answer is True for answer in drawn) or not all(answer is False for answer in seen):
        return None
    return Problem(
        str(folder),
        found="masks in the folder 'images', and pictures in the folder 'masks'",
        expected="pictures in 'images', masks in 'masks'",
        hint="the two folders are swapped: exchange their names",
    )


def _is_mask(path: Path) -> bool | None:
    """Whether a file has black and white pixels and no others; ``None`` where it cannot be read."""
    try:
        content = read_bytes(path)
        decode_image(content, path.name)
    except Refused:
        return None
    try:
        return len(decode_mask(content, path.name, None)[1]) == BLACK_AND_WHITE
    except Refused:
        return False
