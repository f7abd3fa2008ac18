"""Finds every error in a data list and its files in one pass and reports them together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from samfed_monai.core.errors import Problem, Problems, Refused, refused
from samfed_monai.core.io import sha256_bytes
from samfed_monai.core.process_setup import usable_cores
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.text import counted, grouped, normal
from samfed_monai.data.classes import decode_classes
from samfed_monai.data.datalist import DataList, LabelKind, Split, confine
from samfed_monai.data.reading import (
    HALF,
    Picture,
    Unreadable,
    decode_image,
    decode_mask,
    is_turned,
    mask_like,
    misfit,
    read_bytes,
)
from samfed_monai.data.weak_labels import decode_weak_label


@dataclass(frozen=True)
class Facts:
    """Facts about one image and its mask after reading both files.

    Args:
        image: path relative to the data root.
        sha256: SHA-256 of the image file; ``""`` if it cannot be read.
        height: pixels, after EXIF orientation; 0 if it does not decode.
        width: pixels.
        mode: Pillow's mode of the stored pixels (``RGB``, ``I;16``, ``CMYK``, ...).
        turned: whether the file's EXIF orientation is not upright.
        brightest: the highest value of the image's channels in 0..255.
        mask_like: whether the image is black and white, as a mask is (:func:`mask_like`).
        label: path of the mask, if any, with ``label_sha256`` as above.
        mask_values: distinct stored grey levels of the mask, ascending.
        foreground: share of foreground pixels in [0, 1]; ``None`` without a readable mask.
        border: share of the mask's outermost pixels that are foreground, in [0, 1]; ``None`` without a readable mask.
        misfit: how much better the mask would fit the picture transposed or turned (:func:`~.reading.misfit`).
        unreadable: whether either file cannot be decoded.
        problems: problems of both files.
    """

    image: str
    sha256: str = ""
    height: int = 0
    width: int = 0
    mode: str = ""
    turned: bool = False
    brightest: int = 255
    mask_like: bool = False
    label: str | None = None
    label_sha256: str | None = None
    mask_values: tuple[int, ...] = ()
    foreground: float | None = None
    border: float | None = None
    misfit: float = 0.0
    unreadable: bool = False
    problems: tuple[Problem, ...] = ()


def wrong_root(files: Sequence[str], data_root: str | Path, listed: str) -> list[Problem]:
    """Returns a single problem if the data root holds none of the listed files, else none.

    Args:
        files: paths relative to ``data_root``.
        data_root: folder of the files.
        listed: name of the list, for the message.
    """
    root = Path(data_root)
    if not files or any(os.path.lexists(root / name) for name in files):
        return []
    found = f"none of them (the first is {files[0]})" if root.is_dir() else "no such folder"
    hint = "is this the data root that the list was made for?"
    return [Problem(str(root.resolve()), found, f"{counted(len(files), 'file')} of {listed}", hint)]


def among_images(datalist: DataList, data_root: str | Path, output_dir: str | Path) -> list[Problem]:
    """Returns a problem if an output folder has listed images or is below such a folder: its masks would be images."""
    root, output = Path(data_root).resolve(), Path(output_dir).resolve()
    folders = {(root / item.image).parent for *_, item in datalist.items()}
    above = output.is_relative_to(root) and any(output in (folder, *folder.parents) for folder in folders)
    if not above and folders.isdisjoint({*output.parents} - {root}):
        return []
    return [Problem("output_dir", repr(str(output)), "a folder without listed images", "choose another output_dir")]


def survey(
    listed: Iterable[Any], data_root: str | Path, *, threshold: int | None = None, classes: Sequence[str] = ()
) -> list[Facts]:
    """Returns the facts of every distinct image and label, in order; problems of a file are in its facts, not raised.

    Args:
        listed: images that a source found, or items of a list, with paths relative to ``data_root``.
        data_root: folder that must contain all files.
        threshold: as in :func:`~.reading.read_mask`.
        classes: names of the classes of labels with several classes; empty for binary masks.
    """
    unique = {(item.image, item.label): item for item in listed}.values()
    with ThreadPoolExecutor(min(16, usable_cores() + 2)) as pool:
        found = pool.map(partial(inspect, data_root=data_root, threshold=threshold, classes=classes), unique)
        return list(progress_bar(found, total=len(unique), desc="reading images", unit="image"))


def inspect(item: Any, data_root: str | Path, threshold: int | None = None, classes: Sequence[str] = ()) -> Facts:
    """Returns the facts of one image and its mask or weak label; weak labels have no ``foreground`` and ``misfit``.

    Args:
        item: an image that a source found, or an item of a list.
        data_root, threshold, classes: see :func:`survey`.
    """
    problems = Problems()
    facts: dict[str, Any] = {"image": item.image, "label": item.label}
    picture = mask = None
    weak = item.label_kind not in (None, LabelKind.MASK.value)
    try:
        content = _read_content(data_root, item.image, "a readable file", RESTORE)
        facts["sha256"] = sha256_bytes(content)
        picture, stored = decode_image(content, item.image)
        facts |= {"height": picture.shape[0], "width": picture.shape[1], "brightest": int(picture.max())}
        facts |= {"mode": stored.mode, "turned": is_turned(stored), "mask_like": mask_like(picture)}
    except Refused as refusal:
        facts["unreadable"] = isinstance(refusal, Unreadable)
        problems.extend(refusal.problems)
    if item.label is not None:
        missing = any(problem.found == NO_FILE for problem in problems)  # with both files missing, a folder is missing
        hint = RESTORE if missing else "add the mask, or list the image without a label"
        try:
            content = _read_content(data_root, item.label, f"the mask of {item.image}", hint)
            facts["label_sha256"] = sha256_bytes(content)
            if weak:
                mask = decode_weak_label(content, item.label, len(classes) or 1)
                facts["mask_values"] = tuple(np.unique(mask).tolist())
            else:
                if classes:
                    label = decode_classes(content, item.label, classes)
                    mask, values = (label > 0).astype(np.uint8), np.unique(label).tolist()
                else:
                    mask, values = decode_mask(content, item.label, threshold)
                facts |= {"mask_values": tuple(values), "foreground": float(mask.mean()), "border": _border(mask)}
        except Refused as refusal:
            facts["unreadable"] = facts.get("unreadable", False) or isinstance(refusal, Unreadable)
            problems.extend(refusal.problems)
    if picture is not None and mask is not None:
        wrong = _size_problem(picture, mask, item.image, str(item.label), facts["turned"])
        problems.extend(wrong)
        facts["misfit"] = 0.0 if wrong or weak else misfit(picture, mask)
    return Facts(**facts, problems=tuple(problems))


NO_FILE = "no such file"
RESTORE = "restore it, or check the data root"


def _read_content(data_root: str | Path, name: str, expected: str, hint: str) -> bytes:
    path = confine(data_root, name)
    if not path.exists():
        raise refused(path, NO_FILE, expected, hint)
    return read_bytes(path)


def _border(mask: Picture) -> float:
    edges = (mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1])
    return float(sum(int(side.sum()) for side in edges) / sum(side.size for side in edges))


def _size_problem(picture: Picture, mask: Picture, image: str, label: str, turned: bool) -> list[Problem]:
    expected, found = picture.shape[:2], mask.shape
    if expected == found:
        return []
    pixels = "{1} x {0}".format(*found)
    wanted = "{1} x {0} as ".format(*expected) + image
    if found != expected[::-1]:
        hint = "resize the mask with nearest-neighbour interpolation, or find the right one"
        return [Problem(label, f"{pixels} pixels", wanted, hint)]
    hint = "rotate the mask by 90°, or transpose it; the overlays of the data report show which"
    if turned:
        hint = "EXIF rotates the image but not the mask: save both upright, without EXIF"
    return [Problem(label, f"a transposed mask, {pixels}", wanted, hint)]


MEASURING = (Split.VALIDATION, Split.TEST)


def leaks(datalist: DataList) -> Iterator[Problem]:
    """Yields a problem for each validation or test image with the same bytes as an image of another split or site.

    All sites' training images shape the global model, so a test image may not be in any other split.
    """
    first_uses: dict[str, tuple[str, Split, str]] = {}

    def describe(site: str, split: Split, _: str) -> str:
        return f"{site}'s {split.value} images" if site else "the public images"

    for site, split, item in datalist.items():
        current = (site, split, item.image)
        first_use = first_uses.setdefault(item.sha256, current)
        if (first_use[0], first_use[1]) != (site, split) and (split in MEASURING or first_use[1] in MEASURING):
            found = f"the same bytes in {describe(*current)} and, as {first_use[2]}, in {describe(*first_use)}"
            expected = f"images of {split.value if split in MEASURING else first_use[1].value} in no other split"
            yield Problem(item.image, found, expected, "remove it from one split, or the scores are too high")


def warnings(datalist: DataList) -> list[str]:
    """Returns sentences about repeated images and groups in several splits, which are allowed but affect scores."""
    places: dict[str, Counter[str]] = {}
    groups: dict[str, set[tuple[str, Split]]] = {}
    for site, split, item in datalist.items():
        places.setdefault(site or "the public set", Counter())[item.sha256] += 1
        if group := normal(item.group or ""):
            groups.setdefault(group, set()).add((site, split))
    sentences = []
    for first, second in combinations(sorted(places), 2):
        if count := len(places[first].keys() & places[second].keys()):
            sentences.append(f"{counted(count, 'image is', 'images are')} in both {first} and {second}")
    for place, images in places.items():
        if twice := images.total() - len(images):
            subject = counted(twice, f"image of {place} has", f"images of {place} have")
            sentences.append(f"{subject} the same bytes as another image there")
    leaky = sum(1 for where in groups.values() if len(where) > 1 and any(split in MEASURING for _, split in where))
    if leaky:
        divided = f"{leaky} of {len(groups)} groups have images in a validation or test split and elsewhere"
        sentences.append(f"{divided}: frames of one sequence look alike, so scores on this list are optimistic")
    return sentences


def check_datalist(datalist: str | Path | DataList, data_root: str | Path, seen: Sequence[Facts] = ()) -> list[Problem]:
    """Reads, hashes and decodes every file of a list, and returns all problems in the list's order.

    Finds missing or changed files, damaged or oversized images, palette or grey masks, masks of another size, links out
    of the data root, the same image in training and test, two files with the same stem (``docs``: faults 1 to 22).
    These are returned, not raised. If all files are missing, there is a single problem. Softer warnings are in the data
    report.

    Args:
        datalist: the list, or its JSON file.
        data_root: folder that its paths are relative to.
        seen: facts of every item, if they are known already.

    Raises:
        Refused: the JSON file itself cannot be loaded.
    """
    datalist = datalist if isinstance(datalist, DataList) else DataList.load(datalist)
    files = [name for _, _, item in datalist.items() for name in (item.image, item.label) if name is not None]
    if wrong := wrong_root(files, data_root, f"the list {datalist.name!r}"):
        return wrong
    facts = {fact.image: fact for fact in seen or facts_of(datalist, data_root)}
    problems = Problems()
    for _, _, item in datalist.items():
        fact = facts[item.image]
        problems.extend(fact.problems)
        pairs = (item.image, fact.sha256, item.sha256), (item.label, fact.label_sha256, item.label_sha256)
        for name, found, expected in pairs:
            if name and found:
                problems.extend(hash_problems(name, found, expected))
    problems.extend(foreground_problem(facts.values(), datalist.mask_threshold))
    problems.extend(leaks(datalist))
    problems.extend(repeated_stems((site, item.image) for site, _, item in datalist.items()))
    return list(problems)


def hash_problems(name: str, found: str, expected: str | None) -> list[Problem]:
    """Returns the problem of a file whose SHA-256 differs from the list's (fault 29)."""
    hint = "restore the file, or make the list again"
    return [] if found == expected else [Problem(name, f"SHA-256 {found[:12]}…", f"{str(expected)[:12]}…", hint)]


def foreground_problem(facts: Iterable[Facts], threshold: int | None) -> list[Problem]:
    """Returns a problem if 1 is foreground in masks of 0 and 1, but below the threshold in other masks."""
    masks = [fact for fact in facts if fact.mask_values]
    dark = [fact for fact in masks if 1 in fact.mask_values and 1 < fact.mask_values[-1] < HALF]
    binary = [fact for fact in masks if fact.mask_values[-1] == 1]
    if not (threshold and threshold > 1 and dark and binary):
        return []
    found = f"only 0 and 1, so 1 is foreground, but in {dark[0].label} 1 is below --mask-threshold {threshold}"
    hint = f"save the foreground of all masks as 255 (masks of 0 and 1: {len(binary)})"
    return [Problem(str(binary[0].label), found, "the same meaning of 1 in all masks", hint)]


def facts_of(datalist: DataList, data_root: str | Path) -> list[Facts]:
    """Returns the facts of every item of a list (:func:`survey`)."""
    listed = [item for _, _, item in datalist.items()]
    return survey(listed, data_root, threshold=datalist.mask_threshold, classes=datalist.classes)


def repeated_stems(images: Iterable[tuple[str, str]]) -> Iterator[Problem]:
    """Yields a problem for images of a site's folder that differ only in suffix (fault 22): masks are named by stem.

    Args:
        images: (site, image) pairs.
    """
    first: dict[tuple[str, str], str] = {}
    for site, image in images:
        first_image = first.setdefault((site, normal(str(PurePosixPath(image).with_suffix("")))), image)
        if first_image != image:
            hint = "if both are the same image, move one away; if not, rename one and its mask"
            yield Problem(image, f"the same stem as {first_image}", "one file per stem", hint)


def ids_of(images: Sequence[str]) -> dict[str, str]:
    """Returns a name for each image of a site: its stem, or, if several share it, the path below their common folder.

    Args:
        images: paths relative to the data root.
    """
    ids: dict[str, str] = {}
    for same_stem in grouped((stem(image), image) for image in images).values():
        common = os.path.commonpath([PurePosixPath(image).parent for image in same_stem])
        ids |= {image: PurePosixPath(image).relative_to(common).with_suffix("").as_posix() for image in same_stem}
    return ids


def stem(path: str) -> str:
    """Returns the file name without its extension, in its normal form on every file system."""
    return normal(PurePosixPath(path).stem)
