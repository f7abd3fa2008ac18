"""First stage: every image of the list is read once before anything is computed from it."""

from __future__ import annotations

import logging
from pathlib import Path

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import canonical_hash, read_json, write_json
from samfed_monai.data import DataList, check_datalist

logger = logging.getLogger(__name__)


def check_data(datalist: DataList, data_root: str | Path, *, cache_dir: str | Path) -> None:
    """Decodes and hashes every file of the list, or recognises that it did so before.

    A check that passed is remembered by the list's hash and by the sizes and modification times of all files, so that
    a comparison of many runs reads the images once.

    Raises:
        Refused: with every problem of every file.
    """
    seal = _seal(datalist, Path(data_root))
    memory = Path(cache_dir) / "checked" / f"{datalist.hash[:16]}.json"
    if memory.is_file() and read_json(memory).get("seal") == seal:
        logger.info("data list %s was checked before and no file has changed", datalist.hash[:12])
        return
    problems = check_datalist(datalist, data_root)
    if problems:
        raise Refused(problems)
    write_json(memory, {"datalist": datalist.hash, "seal": seal})


def image_problems(datalist: DataList, data_root: str | Path, *, cache_dir: str | Path) -> list[Problem]:
    """What :func:`check_data` finds, in words that may leave a site: how much it is; the log has what."""
    try:
        check_data(datalist, data_root, cache_dir=cache_dir)
    except Refused as refused:
        logger.error("%s", refused)
        found, mend = f"{len(refused.problems)} problems", "this site's log names each of them"
        return [Problem("images", found=found, expected="images and masks as they were listed", mend=mend)]
    return []


def no_labels(labelled: int) -> list[Problem]:
    """What keeps a site from learning from labels of its own: it has none."""
    if labelled:
        return []
    found, expected = "none of this site's own images has one", "labels: this variant learns from them"
    mend = "list the masks with `samfed prepare`, or choose a variant that needs none, for instance samfed"
    return [Problem("labels", found=found, expected=expected, mend=mend)]


def no_public_images(datalist: DataList, *, supervised: bool) -> list[Problem]:
    """What keeps a run from learning from public images: the list has none.

    Args:
        datalist: the frozen list, or the server's part of it.
        supervised: whether sites learn from labels of their own, which takes no public images.
    """
    if datalist.public or supervised:
        return []
    found, expected = "none", "public images with masks: this variant learns from them"
    mend = "list some with `samfed prepare ... --public`, or choose a variant that learns from the sites' own labels"
    return [Problem(f"{datalist.name} -> public", found, expected, f"{mend}, for instance pfedsam_joint")]


def _seal(datalist: DataList, data_root: Path) -> str:
    states = []
    for _, _, item in datalist.items():
        for name in filter(None, (item.image, item.label)):
            path = data_root / name
            status = path.stat() if path.is_file() else None
            states.append([name, status.st_size if status else None, status.st_mtime_ns if status else None])
    return canonical_hash([str(data_root.resolve()), sorted(states)])
