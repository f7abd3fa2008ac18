"""A few real polyps as a data root of two or more sites."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from samfed_monai.cli.main import main
from samfed_monai.data import DataList

PUBLIC = "cvc_colondb"


def few_polyps(data: Path, folder: Path, sites: Mapping[str, tuple[str, int]]) -> DataList:
    """Copies eight images with their masks for each site and four public ones, and lists them as ``samfed`` does.

    Args:
        data: with ``polyp/<collection>/{images,masks}``.
        folder: becomes the data root; ``whole.json`` in it is the list.
        sites: name to its collection, and to the place there of its first image.
    """
    for site, source, first, count in (*((site, *of, 8) for site, of in sites.items()), (PUBLIC, PUBLIC, 0, 4)):
        there = data / "polyp" / source
        for image in sorted((there / "images").iterdir())[first : first + count]:
            for path in (image, *(there / "masks").glob(f"{image.stem}.*")):
                (folder / site / path.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / site / path.parent.name / path.name)
    cut = ["--limit-per-site", "4", "--validation", "0.25", "--test", "0.25", "--mask-threshold", "128", "--no-report"]
    whole = folder / "whole.json"
    assert main(["prepare", "folders", str(folder), "--public", PUBLIC, *cut, "--output", str(whole)]) == 0
    return DataList.load(whole)
