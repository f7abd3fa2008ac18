"""The official archives of the ISIC challenges 2016, 2017 and 2018, as they unpack.

Images are ``ISIC_0000000.jpg``; masks are ``ISIC_0000000_segmentation.png`` (2016 spells ``_Segmentation``) in a folder
of their own. Superpixels, attribute maps and text files lie beside them and are not images.
"""

from __future__ import annotations

import re
from pathlib import Path

from samfed_monai.core.errors import Problems, refused
from samfed_monai.data.sources.found import Found, list_images, relative

IMAGE = re.compile(r"(ISIC_\d{7}(?:_downsampled)?)\.jpe?g", re.IGNORECASE)
MASK = re.compile(r"(ISIC_\d{7}(?:_downsampled)?)_segmentation\.png", re.IGNORECASE)


def find_isic(root: str | Path) -> list[Found]:
    """All images under a folder, with their masks wherever under it they lie.

    Args:
        root: folder that one year's archives were unpacked into. An image's origin is the archive's folder.

    Raises:
        Refused: no ISIC image at all, or one image in two places (fault 22: two years in one folder).
    """
    root = Path(root)
    problems = Problems()
    files = list_images(root) if root.is_dir() else []
    images = _by_id(files, IMAGE, root, problems)
    masks = _by_id(files, MASK, root, problems)
    problems.refuse_if_any()
    if not images:
        archives = sorted(path.name for path in root.glob("*.zip"))
        hint = (
            "unpack them with --unpack" if archives else "for images/ and masks/ folders use `samfed prepare folders`"
        )
        found = f"no ISIC image, but the archives {archives}" if archives else "no file such as ISIC_0000000.jpg"
        raise refused(root, found=found, expected="the official layout, unpacked", hint=hint)
    return [
        Found(
            relative(path, root),
            relative(masks[name], root) if name in masks else None,
            path.relative_to(root).parts[0] if len(path.relative_to(root).parts) > 1 else "",
        )
        for name, path in sorted(images.items())
    ]


def _by_id(files: list[Path], pattern: re.Pattern[str], root: Path, problems: Problems) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        name = match[1].upper().replace("_DOWNSAMPLED", "_downsampled")
        there = found.setdefault(name, path)
        if there != path:
            hint = (
                "move one of the two folders out of DIR if it is a copy; of two years' archives give one year's folder"
            )
            problems.add(
                relative(path, root), found=f"{name} also as {relative(there, root)}", expected="each once", hint=hint
            )
    return found
