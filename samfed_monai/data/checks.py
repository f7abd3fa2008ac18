"""Every fault of a data list and its files, found in one pass and told at once."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from samfed_monai.data.datalist import DataList
from samfed_monai.data.datalist_schema import SERVER_NAMES
from samfed_monai.data.duplicates import leaks
from samfed_monai.data.items import Item
from samfed_monai.data.survey import Facts, survey
from samfed_monai.errors import Problem, Problems


def check_datalist(datalist: str | Path | DataList, data_root: str | Path, *, progress: bool = True) -> list[Problem]:
    """Reads, hashes and decodes every file of a list, and returns all that is wrong, in the list's order.

    Missing or changed files, damaged or oversized images, palette or grey masks, masks of another size, links out of
    the data root, the same image in training and test, two files with one stem (``docs``: faults 1 to 22). Nothing is
    raised for them; warnings are :func:`~.duplicates.warnings` and stand in the data report.

    Args:
        datalist: the list, or its JSON file.
        data_root: folder that its paths are relative to.
        progress: whether to show a progress bar.

    Raises:
        Refused: the JSON file itself cannot be loaded.
    """
    datalist = datalist if isinstance(datalist, DataList) else DataList.load(datalist)
    pairs = [(item.image, item.label) for _, _, item in datalist.items()]
    return problems_of(datalist, survey(pairs, data_root, threshold=datalist.mask_threshold, progress=progress))


def problems_of(datalist: DataList, facts: Iterable[Facts]) -> list[Problem]:
    """What is wrong with a list, given the facts of its files.

    Args:
        datalist: the list.
        facts: of every item, in any order; an item without facts was not looked at and has no file problems.
    """
    by_image = {fact.image: fact for fact in facts}
    problems = Problems()
    for _, _, item in datalist.items():
        fact = by_image.get(item.image)
        if fact is not None:
            problems.extend(fact.problems)
            problems.extend(_changed(item, fact))
    for name in sorted(datalist.sites.keys() & SERVER_NAMES):
        mend = "rename the site, or its folder: the server is called so"
        problems.add(f"sites -> {name}", found=repr(name), expected="another name", mend=mend)
    problems.extend(leaks(datalist))
    problems.extend(repeated_stems((site, item.image) for site, _, item in datalist.items()))
    return list(problems)


def repeated_stems(images: Iterable[tuple[str, str]]) -> list[Problem]:
    """Images of one site whose names differ only in folder or extension: masks and predictions go by stem (fault 22).

    Args:
        images: (site, image) pairs.
    """
    problems = Problems()
    first: dict[tuple[str, str], str] = {}
    for site, image in images:
        there = first.setdefault((site, stem(image)), image)
        if there != image:
            mend = "delete or rename one of them"
            problems.add(image, found=f"the same stem as {there}", expected="one file per stem", mend=mend)
    return list(problems)


def stem(path: str) -> str:
    """File name without its extension, in one Unicode form, whatever file system it came from."""
    return unicodedata.normalize("NFC", PurePosixPath(path).stem)


def _changed(item: Item, fact: Facts) -> Iterable[Problem]:
    mend = "restore the file, or make the list again"
    if fact.sha256 and fact.sha256 != item.sha256:
        yield Problem(item.image, found=f"SHA-256 {fact.sha256[:12]}…", expected=f"{item.sha256[:12]}…", mend=mend)
    if item.label and fact.label_sha256 and fact.label_sha256 != item.label_sha256:
        expected = f"{str(item.label_sha256)[:12]}…"
        yield Problem(item.label, found=f"SHA-256 {fact.label_sha256[:12]}…", expected=expected, mend=mend)
