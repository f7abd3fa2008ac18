"""Unlabelled images to segment, from folders or single files: each is read once and gets a unique name."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Problems, Refused, did_you_mean, name_problems, or_skip
from samfed_monai.core.own_process import usable_cores
from samfed_monai.core.run_log import progress_bar
from samfed_monai.data.reading import SUFFIXES, read_image
from samfed_monai.data.walk import PICTURE, kind_of, not_read, report_not_read, walk

logger = logging.getLogger(__name__)

Sources = str | Path | Sequence[str | Path]
"""A folder of images, or several folders and images."""


def image_folder(folder: Sources, *, progress: bool = True, skip_unreadable: bool = False) -> list[dict[str, Any]]:
    """Records of all images below a folder, in the order of their names; every image is decoded once to check it.

    Args:
        folder: searched with its sub-folders; files of other kinds and hidden ones are counted in a warning. Links that
            lead out of the folder are refused. Or a list of folders and of single images.
        progress: whether to show a progress bar.
        skip_unreadable: whether to leave out unreadable images, each with a warning, as long as one can be read.

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
        if not source.exists() or (source.is_file() and kind_of(source) != PICTURE):
            found = f"a file of another kind ({kind_of(source)})" if source.exists() else "no such folder or image"
            expected = f"a folder of images, or a file that ends in {', '.join(sorted(SUFFIXES))}"
            readable = not source.exists() and source.parent.is_dir() and os.access(source.parent, os.R_OK)
            beside = source.parent.iterdir() if readable else ()
            hint = did_you_mean(source.name, [path.name for path in beside])
            problems.add(str(source), found=found, expected=expected, hint=hint)
    problems.refuse_if_any()
    images = _images(folder)
    others = {source: walk(source) for source in _sources(folder) if source.is_dir()}
    if not images:
        where = ", ".join(map(str, _sources(folder))) or "images"
        found = "; ".join(filter(None, ["no image", *map(not_read, others.values())]))
        problems.add(where, found=found, expected=f"files that end in {', '.join(sorted(SUFFIXES))}")
    problems.extend(name_problems(path.relative_to(root).as_posix() for _, path, root in images))
    problems.extend(_twins(images))
    unreadable = _unreadable(images, progress)
    some_left = len(unreadable) < len(images)
    for problem in (problem for found in unreadable.values() for problem in found):
        if skip_unreadable and some_left:
            logger.warning("left out: %s", problem)
        else:
            problems.extend([or_skip(problem) if some_left else problem])
    problems.refuse_if_any()
    for source, kinds in others.items():
        report_not_read(source, kinds, (PICTURE,))
    return [{"image": str(path.resolve()), "id": name} for name, path, _ in images if path not in unreadable]


def image_names(folder: Sources) -> list[str]:
    """The ``id`` of each record of :func:`image_folder`, also of images that cannot be read; none is read."""
    return [name for name, _, _ in _images(folder)]


def image_paths(folder: Sources) -> list[tuple[str, Path]]:
    """The ``id`` and path of each, likewise."""
    return [(name, path) for name, path, _ in _images(folder)]


def _sources(folder: Sources) -> list[Path]:
    listed = [folder] if isinstance(folder, str | Path) else list(folder)
    return [Path(source).expanduser() for source in listed]


def _images(folder: Sources) -> list[tuple[str, Path, Path]]:
    """Name, path and folder of every image, in the order of the sources and, inside of one, of their names."""
    found = []
    for source in _sources(folder):
        if source.is_dir():
            paths = walk(source).get(PICTURE, ())
            found += [(path.relative_to(source).with_suffix("").as_posix(), path, source) for path in paths]
        elif kind_of(source) == PICTURE:
            found.append((source.stem, source, source.parent))
    return found


def _twins(images: Iterable[tuple[str, Path, Path]]) -> list[Problem]:
    """Fault 22: two images that differ only in their suffix, or in their folder, would share one mask."""
    named: dict[str, list[Path]] = defaultdict(list)
    for name, path, _ in images:
        named[name].append(path)
    hint = "rename one of them: both masks would have the same name"
    return [
        Problem(name, found=" and ".join(_distinct_names(paths)), expected="one image of that name", hint=hint)
        for name, paths in named.items()
        if len(paths) > 1
    ]


def _distinct_names(paths: list[Path]) -> list[str]:
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _unreadable(images: list[tuple[str, Path, Path]], progress: bool) -> dict[Path, list[Problem]]:
    def check(image: tuple[str, Path, Path]) -> list[Problem]:
        _, path, root = image
        if not path.resolve().is_relative_to(root.resolve()):
            return [Problem(str(path), found="a link that leads out of the folder", expected="a file in the folder")]
        try:
            read_image(path)
        except Refused as refusal:
            return refusal.problems
        return []

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = progress_bar(pool.map(check, images), total=len(images), desc="reading", unit="image", show=progress)
        return {path: problems for (_, path, _), problems in zip(images, found, strict=True) if problems}
