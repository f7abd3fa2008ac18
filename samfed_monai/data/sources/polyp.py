"""Public polyp collections in one folder: which of them lie there, and their images with masks, sites and sequences."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

from samfed_monai.data.checks import stem
from samfed_monai.data.reading import SUFFIXES
from samfed_monai.data.sources.found import Found, relative, warn_of_lonely
from samfed_monai.data.sources.polyp_layouts import COLLECTIONS, Collection, Pairing, plain
from samfed_monai.errors import Problem, Problems, Refused

logger = logging.getLogger(__name__)

DEPTH = 4  # the deepest official layout: PolypGen's sequenceData/positive/seq1/images_seq1


@dataclass(frozen=True)
class Polyps:
    """What was found of polyp collections.

    Args:
        sites: images by site, one site per collection (PolypGen: per centre), in the order of the registry.
        threshold: grey level that some of the masks have to be cut at; ``None`` where all are binary.
        unknown: folders that are no known collection, and were not read.
    """

    sites: dict[str, list[Found]] = field(default_factory=dict)
    threshold: int | None = None
    unknown: tuple[str, ...] = ()


def find_polyps(root: str | Path) -> Polyps:
    """All known collections under a folder, each in a folder of its own (:mod:`.polyp_layouts` says which).

    Args:
        root: folder of collections; names count without case and punctuation (``cvc_clinicdb``, ``Kvasir-SEG``).

    Raises:
        Refused: no collection at all, one of them in two folders, or a folder whose name is known and layout is not.
    """
    root = Path(root)
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    problems = Problems()
    chosen: dict[str, Path] = {}
    for folder in folders:
        collection = collection_of(folder.name)
        if collection is None:
            continue
        there = chosen.setdefault(collection.name, folder)
        if there != folder:
            mend = "move one of them elsewhere"
            problems.add(folder.name, found=f"{collection.name} also as {there.name}", expected="it once", mend=mend)
    sites: dict[str, list[Found]] = {}
    for collection in COLLECTIONS:
        if collection.name in chosen:
            with problems.collected():
                sites |= find_collection(collection, chosen[collection.name], root)
    problems.refuse_if_any()
    if not sites:
        archives = sorted(path.name for path in root.glob("*") if path.suffix.lower() in (".zip", ".rar", ".7z"))
        found = f"only the archives {archives}" if archives else f"the folders {[path.name for path in folders]}"
        mend = "unpack them, zip files with --unpack" if archives else "rename each collection's folder to its name"
        names = [collection.name for collection in COLLECTIONS]
        raise Refused([Problem(str(root), found=found, expected=f"a folder for some of {names}", mend=mend)])
    thresholds = [one.threshold for one in COLLECTIONS if one.name in chosen and one.threshold is not None]
    unknown = tuple(folder.name for folder in folders if folder.name[0] != "." and not collection_of(folder.name))
    return Polyps(sites, max(thresholds, default=None), unknown)


def collection_of(name: str) -> Collection | None:
    """The collection that a folder's name means."""
    return next((one for one in COLLECTIONS if any(re.fullmatch(folder, plain(name)) for folder in one.folders)), None)


def find_collection(collection: Collection, folder: Path, root: Path) -> dict[str, list[Found]]:
    """The images of one collection by site, from the first of its layouts that the folder has.

    Args:
        collection: what is looked for.
        folder: its folder.
        root: the data root that paths are relative to.

    Raises:
        Refused: none of the layouts, or one key twice.
    """
    places = _folders(folder)
    sites: dict[str, list[Found]] = {}
    used: set[tuple[str, str]] = set()
    for pairing in collection.layouts:
        if sites and not pairing.site:
            break
        for images in places:
            match = re.fullmatch(pairing.images, plain(images.name))
            masks = _masks_folder(images, pairing, match) if match else None
            if match is None or masks is None:
                continue
            site = collection.name + pairing.site.format(**_upper(match))
            group = pairing.group.format(**match.groupdict())
            if (site, group) in used:  # the same images once more, as PNG beside TIF
                logger.info("%s: %s is left out, its images stand elsewhere too", site, relative(images, root))
                continue
            found = _pair(images, masks, pairing, collection, root, site, group)
            if found:
                used.add((site, group))
                sites.setdefault(site, []).extend(found)
    if not sites:
        mend = "see the layouts in the documentation, or make it images/ and masks/ with equal stems"
        expected = f"{collection.name} as it was released"
        below = [relative(path, folder) for path in places[1:6]]
        raise Refused([Problem(str(folder), found=f"the folders {below}", expected=expected, mend=mend)])
    return dict(sorted(sites.items()))


def _folders(folder: Path) -> list[Path]:
    """The folder and those below it, the shallow ones first; hidden ones are not looked at."""
    level, every = [folder], [folder]
    for _ in range(DEPTH):
        below = [path for one in level for path in sorted(one.iterdir()) if path.is_dir()]
        level = [path for path in below if not path.name.startswith((".", "__MACOSX"))]
        every += level
    return every


def _masks_folder(images: Path, pairing: Pairing, match: re.Match[str]) -> Path | None:
    if pairing.masks is None:
        return images
    wanted = pairing.masks.format(**match.groupdict())
    beside = (path for path in sorted(images.parent.iterdir()) if path.is_dir() and path != images)
    near = next((path for path in beside if re.fullmatch(wanted, plain(path.name))), None)
    if near is not None or plain(images.parent.name) != plain(images.name):
        return near
    # train/train beside train_gt/train_gt, as archives of one folder each unpack
    return _masks_folder(images.parent, pairing, match)


def _pair(
    images: Path, masks: Path, pairing: Pairing, collection: Collection, root: Path, site: str, group: str
) -> list[Found]:
    image_of, mask_of = _keys(images, pairing.image, root), _keys(masks, pairing.mask, root)
    if pairing.masks is None and not image_of.keys() & mask_of.keys():
        return []
    warn_of_lonely(masks, [path for key, path in mask_of.items() if key not in image_of])
    return [
        Found(
            relative(path, root),
            relative(mask_of[key], root) if key in mask_of else None,
            site,
            group or collection.sequence(key),
        )
        for key, path in image_of.items()
    ]


def _keys(folder: Path, pattern: str, root: Path) -> dict[str, Path]:
    deeper = [path for path in sorted(folder.iterdir()) if path.is_dir() and plain(path.name) == plain(folder.name)]
    found: dict[str, Path] = {}
    problems = Problems()
    for path in sorted(folder.iterdir()) if not deeper else sorted(deeper[0].iterdir()):
        match = re.fullmatch(pattern, stem(path.name)) if path.suffix.lower() in SUFFIXES else None
        if match is None or path.name.startswith("."):
            continue
        there = found.setdefault(match[1], path)
        if there != path:
            mend = "delete or rename one of them"
            problems.add(relative(path, root), found=f"the key of {there.name}", expected="one file each", mend=mend)
    problems.refuse_if_any()
    return dict(sorted(found.items()))


def _upper(match: re.Match[str]) -> dict[str, str]:
    return {name: value.upper() for name, value in match.groupdict().items()}
