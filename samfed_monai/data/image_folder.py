"""Unlabelled images to segment, from folders or single files: each is read once and gets a unique name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from samfed_monai.core.device import usable_cores
from samfed_monai.core.errors import Problem, Problems, Refused, name_problems
from samfed_monai.core.progress import progress_bar
from samfed_monai.data.reading import SUFFIXES, read_image

Sources = str | Path | Sequence[str | Path]
"""A folder of images, or several folders and images."""


def image_folder(folder: Sources, *, progress: bool = True) -> list[dict[str, Any]]:
    """Records of all images below a folder, in the order of their names; every image is decoded once to check it.

    Args:
        folder: searched with its sub-folders; hidden files and files of other kinds are passed over. Links that lead
            out of the folder are refused. Or a list of folders and of single images.
        progress: whether to show a progress bar.

    Returns:
        ``{"image": absolute path, "id": path below its folder without its suffix}`` of each image; a single image has
        its own name.

    Raises:
        Refused: no such folder or image, no image in it, names that no list can hold, two images of one name,
            unreadable images; all of them at once.

    Example::

        "data": {"_target_": "samfed_monai.data.image_folder.image_folder", "folder": "@dataset_dir"}
    """
    problems = Problems()
    for source in _sources(folder):
        if not source.exists() or (source.is_file() and source.suffix.lower() not in SUFFIXES):
            found = "a file of another kind" if source.exists() else "no such folder or image"
            expected = f"a folder of images, or a file that ends in {', '.join(sorted(SUFFIXES))}"
            problems.add(str(source), found=found, expected=expected)
    problems.refuse_if_any()
    images = _images(folder)
    if not images:
        found = f"files that end in {', '.join(sorted(SUFFIXES))}"
        problems.add(", ".join(map(str, _sources(folder))) or "images", found="no image", expected=found)
    problems.extend(name_problems(path.relative_to(root).as_posix() for _, path, root in images))
    problems.extend(_twins(images))
    problems.extend(_unreadable(images, progress))
    problems.refuse_if_any()
    return [{"image": str(path.resolve()), "id": name} for name, path, _ in images]


def image_names(folder: Sources) -> list[str]:
    """The ``id`` of each record of :func:`image_folder`, of a folder that nobody has checked; no image is read."""
    return [name for name, _, _ in _images(folder)]


def _sources(folder: Sources) -> list[Path]:
    listed = [folder] if isinstance(folder, str | Path) else list(folder)
    return [Path(source).expanduser() for source in listed]


def _images(folder: Sources) -> list[tuple[str, Path, Path]]:
    """Name, path and folder of every image, in the order of the sources and, inside of one, of their names."""
    found = []
    for source in _sources(folder):
        if source.is_dir():
            paths = sorted(path for path in source.rglob("*") if _is_image(path, source))
            found += [(path.relative_to(source).with_suffix("").as_posix(), path, source) for path in paths]
        elif _is_image(source, source.parent):
            found.append((source.stem, source, source.parent))
    return found


def _is_image(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.suffix.lower() in SUFFIXES and path.is_file()


def _twins(images: Iterable[tuple[str, Path, Path]]) -> list[Problem]:
    """Fault 22: two images that differ only in their suffix, or in their folder, would share one mask."""
    named: dict[str, list[Path]] = defaultdict(list)
    for name, path, _ in images:
        named[name].append(path)
    hint = "rename one of them: both masks would have the same name"
    return [
        Problem(name, found=" and ".join(_told_apart(paths)), expected="one image of that name", hint=hint)
        for name, paths in named.items()
        if len(paths) > 1
    ]


def _told_apart(paths: list[Path]) -> list[str]:
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _unreadable(images: list[tuple[str, Path, Path]], progress: bool) -> list[Problem]:
    def check(image: tuple[str, Path, Path]) -> list[Problem]:
        _, path, root = image
        if not path.resolve().is_relative_to(root.resolve()):
            return [Problem(str(path), found="a link that leads out of the folder", expected="a file in the folder")]
        try:
            read_image(path)
        except Refused as refused:
            return refused.problems
        return []

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = progress_bar(pool.map(check, images), total=len(images), desc="reading", unit="image", show=progress)
        return [problem for problems in found for problem in problems]
