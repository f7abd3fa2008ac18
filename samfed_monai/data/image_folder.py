"""A folder of images without labels, to segment: every image found, read once, and given a name of its own."""

from __future__ import annotations

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.progress import progress_bar
from samfed_monai.data.reading import SUFFIXES, read_image


def image_folder(folder: str | Path, *, progress: bool = True) -> list[dict[str, Any]]:
    """Records of all images below a folder, in the order of their names; every image is decoded once to check it.

    Args:
        folder: searched with its sub-folders; hidden files and files of other kinds are passed over. Links that lead
            out of the folder are refused.
        progress: whether to show a progress bar.

    Returns:
        ``{"image": absolute path, "id": path below the folder without its suffix}`` of each image.

    Raises:
        Refused: no such folder, no image in it, two images of one name, unreadable images; all of them at once.

    Example::

        "data": {"_target_": "samfed_monai.data.image_folder.image_folder", "folder": "@dataset_dir"}
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise Refused([Problem(str(folder), found="no such folder", expected="a folder of images")])
    paths = _images(root)
    problems = Problems()
    if not paths:
        problems.add(str(folder), found="no image", expected=f"files that end in {', '.join(sorted(SUFFIXES))}")
    problems.extend(_twins(paths, root))
    problems.extend(_unreadable(paths, root, progress))
    problems.refuse_if_any()
    return [{"image": str(path.resolve()), "id": _name(path, root)} for path in paths]


def image_names(folder: str | Path) -> list[str]:
    """The ``id`` of each record of :func:`image_folder`, of a folder that nobody has checked; no image is read."""
    root = Path(folder).expanduser()
    return [_name(path, root) for path in _images(root)] if root.is_dir() else []


def _images(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if _is_image(path, root))


def _is_image(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.suffix.lower() in SUFFIXES and path.is_file()


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _twins(paths: list[Path], root: Path) -> list[Problem]:
    """Fault 22: two images that differ only in their suffix would share one mask."""
    named: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        named[_name(path, root)].append(path.name)
    mend = "rename one of them: both masks would have the same name"
    return [
        Problem(name, found=" and ".join(files), expected="one image of that name", mend=mend)
        for name, files in named.items()
        if len(files) > 1
    ]


def _unreadable(paths: list[Path], root: Path, progress: bool) -> list[Problem]:
    inside = root.resolve()

    def check(path: Path) -> list[Problem]:
        if not path.resolve().is_relative_to(inside):
            return [Problem(str(path), found="a link that leads out of the folder", expected="a file in the folder")]
        try:
            read_image(path)
        except Refused as refused:
            return refused.problems
        return []

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = progress_bar(pool.map(check, paths), total=len(paths), desc="reading", unit="image", show=progress)
        return [problem for problems in found for problem in problems]
