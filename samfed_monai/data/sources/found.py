"""What a source hands over, and how images find their masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samfed_monai.data.checks import stem
from samfed_monai.data.reading import SUFFIXES
from samfed_monai.errors import Problem, Problems, Refused

logger = logging.getLogger(__name__)

MASK_ENDINGS = ("_segmentation", "_mask")


@dataclass(frozen=True)
class Found:
    """An image on disk: path, mask and origin, before anybody has looked inside.

    Args:
        image: path relative to the data root, with forward slashes.
        label: its mask, or ``None``.
        origin: folder it was found under (site, or part of an archive), for partitions by folder.
        group: sequence or patient, if known.
    """

    image: str
    label: str | None = None
    origin: str = ""
    group: str | None = None

    def with_group(self, group: str | None) -> Found:
        return replace(self, group=group)


def list_images(folder: Path) -> list[Path]:
    """Image files under a folder, subfolders included, sorted; hidden files and folders are not looked at."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)
    )


def pair_up(folder: Path, root: Path, origin: str) -> list[Found]:
    """Images of ``folder/images`` with their masks in ``folder/masks``, matched by stem.

    A mask may also be called ``<stem>_segmentation`` or ``<stem>_mask``. Masks without an image are logged, the first
    two by name.

    Raises:
        Refused: there is no ``images`` folder, or nothing in it, or an image has two masks.
    """
    images = list_images(folder / "images")
    if not images:
        expected, mend = "images (" + ", ".join(sorted(SUFFIXES)) + ")", "put the site's images there"
        raise Refused([Problem(str(folder / "images"), found="no images", expected=expected, mend=mend)])
    stems = {stem(path.name) for path in images}
    masks: dict[str, Path] = {}
    problems = Problems()
    for path in list_images(folder / "masks"):
        there = masks.setdefault(mask_stem(path), path)
        if there != path and mask_stem(path) in stems:
            found, mend = f"the same image's mask in {relative(there, root)}", "delete or rename one of them"
            problems.add(relative(path, root), found=found, expected="one mask for each image", mend=mend)
    problems.refuse_if_any()
    warn_of_lonely(folder / "masks", [path for name, path in masks.items() if name not in stems])
    return [
        Found(
            relative(path, root), relative(masks[stem(path.name)], root) if stem(path.name) in masks else None, origin
        )
        for path in images
    ]


def warn_of_lonely(folder: Path, masks: Sequence[Path]) -> None:
    """Logs how many masks of a folder belong to no image, and what the first two are called."""
    if masks:
        names = " and ".join(sorted(path.name for path in masks)[:2])
        logger.warning("%s: %d mask(s) belong to no image and are left out, such as %s", folder, len(masks), names)


def mask_stem(path: Path) -> str:
    """The stem of the image that a mask belongs to."""
    name = stem(path.name)
    for ending in MASK_ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def relative(path: Path, root: Path) -> str:
    """``path`` relative to ``root`` with forward slashes."""
    return path.relative_to(root).as_posix()
