"""Folders beside the sites that hold images and are no sites: hospitals whose ``images`` folder has another name."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from samfed_monai.data.reading import SUFFIXES
from samfed_monai.data.sources.found import relative

RESULTS = frozenset({"run.json", "results.json", "compare.json"})
"""Files by which a folder of runs is known: the pictures in it are results."""


def passed_over(root: Path, sites: Collection[str], *, output: str | Path | None = None) -> list[str]:
    """A sentence on every folder under ``root`` that is no site and holds images, with one of them.

    Hidden folders, ``masks``, what runs wrote, and the folder that ``output`` lies in are no hospitals.

    Args:
        root: folder of sites.
        sites: names of its subfolders that are sites.
        output: file that is to be written.
    """
    written = Path(output).resolve().parents if output is not None else ()
    sentences = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in sites):
        if _hidden(folder.name) or folder.name.lower() == "masks" or folder.resolve() in written:
            continue
        image = _first_image(folder)
        if image is not None:
            sentences.append(
                f"{folder.name} holds images, such as {relative(image, root)}, but no folder 'images', and was not "
                f"read: if it is a site, move them to {folder.name}/images"
            )
    return sentences


def _first_image(folder: Path) -> Path | None:
    for place, folders, files in os.walk(folder):
        if RESULTS.intersection(files):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not _hidden(name):
                return Path(place) / name
    return None


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))
