"""``Found``, an image file with its mask; matching masks to images, and files that were left out."""

from __future__ import annotations

import logging
import lzma
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import PRIVATE, make_folder
from samfed_monai.core.words import counted
from samfed_monai.data.checks import stem
from samfed_monai.data.datalist import unsafe
from samfed_monai.data.reading import SUFFIXES
from samfed_monai.data.sources.doctor import near_miss, swapped

logger = logging.getLogger(__name__)

MASK_ENDINGS = ("_segmentation", "_mask")
RULE = "the image's stem: <stem>, " + " or ".join(f"<stem>{ending}" for ending in MASK_ENDINGS)
"""What the mask of an image may be called, for messages."""
LOOKED_THROUGH = 20  # masks without an image, for one whose image can be guessed


@dataclass(frozen=True)
class Found:
    """An image on disk: path, mask and origin, before anybody has looked inside.

    Args:
        image: path relative to the data root, with forward slashes.
        label: its mask, or ``None``.
        origin: folder it was found under (site, or part of an archive), for partitions by folder.
        group: sequence or patient, if known.
        label_kind: of a weak label, one of :class:`~samfed_monai.data.datalist.LabelKind`; ``None`` is a mask.
    """

    image: str
    label: str | None = None
    origin: str = ""
    group: str | None = None
    label_kind: str | None = None

    @property
    def has_mask(self) -> bool:
        """Whether it can be measured with."""
        return self.label is not None and self.label_kind is None

    def with_group(self, group: str | None) -> Found:
        return replace(self, group=group)

    def with_kind(self, kind: str) -> Found:
        return replace(self, label_kind=kind)


def list_images(folder: Path) -> list[Path]:
    """Image files under a folder, subfolders included, sorted; hidden files and folders are not looked at."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)
    )


def pair_up(folder: Path, root: Path, origin: str) -> list[Found]:
    """Images with their masks, as :func:`match_masks` has them; masks without an image are logged, two by name."""
    found, lonely = match_masks(folder, root, origin)
    warn_of_lonely(folder / "masks", lonely)
    return found


def match_masks(folder: Path, root: Path, origin: str) -> tuple[list[Found], list[Path]]:
    """Images of ``folder/images`` with their masks in ``folder/masks``, matched by stem; and masks without an image.

    A mask may also be called ``<stem>_segmentation`` or ``<stem>_mask``.

    Raises:
        Refused: there is no ``images`` folder, or nothing in it, an image has two masks, or the folders are swapped.
    """
    images = list_images(folder / "images")
    if not images:
        expected, hint = "images (" + ", ".join(sorted(SUFFIXES)) + ")", "put the site's images there"
        raise Refused([Problem(str(folder / "images"), found="no images", expected=expected, hint=hint)])
    stems = {stem(path.name) for path in images}
    masks: dict[str, Path] = {}
    problems = Problems()
    drawn = list_images(folder / "masks")
    exchanged = swapped(folder, images, drawn)
    if exchanged is not None:
        raise Refused([exchanged])
    for path in drawn:
        name = stem(path.name) if stem(path.name) in stems else mask_stem(path)  # an image's own may end in _mask
        there = masks.setdefault(name, path)
        if there != path and name in stems:
            told, hint = f"the same image's mask in {relative(there, root)}", "delete or rename one of them"
            problems.add(relative(path, root), found=told, expected="one mask for each image", hint=hint)
    problems.refuse_if_any()
    found = [
        Found(
            relative(path, root), relative(masks[stem(path.name)], root) if stem(path.name) in masks else None, origin
        )
        for path in images
    ]
    return found, [path for name, path in masks.items() if name not in stems]


def first_two(masks: Sequence[Path]) -> str:
    """What two of some files are called."""
    return " and ".join(sorted(path.name for path in masks)[:2])


def warn_of_lonely(folder: Path, masks: Sequence[Path]) -> None:
    """Logs how many masks of a folder belong to no image, and what the first two are called."""
    if masks:
        who = counted(len(masks), "mask belongs", "masks belong")
        logger.warning("%s: %s to no image; left out, such as %s", folder, who, first_two(masks))


def renaming(masks: Sequence[Path], found: Sequence[Found]) -> str:
    """How a mask without an image is to be called, by an example if the stem of an image without a mask is in its name.

    Args:
        masks: those without an image.
        found: images; those that have a mask are not looked at.
    """
    bare = sorted((stem(one.image) for one in found if one.label is None), key=len, reverse=True)
    for path in sorted(masks)[:LOOKED_THROUGH]:
        name = stem(path.name)
        for one in bare:  # img_1 is in img_1_gt, but not in img_10_gt
            if re.search(rf"(?<!\d){re.escape(one)}(?!\d)", name, re.IGNORECASE):
                return f"rename for instance {path.name} to {one}{path.suffix}"
    return f"rename for instance the mask of {bare[0]} to {bare[0]}{sorted(masks)[0].suffix}" if bare else ""


def mask_stem(path: Path) -> str:
    """The stem of the image that a mask belongs to."""
    name = stem(path.name)
    for ending in MASK_ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def relative(path: Path, root: Path) -> str:
    """``path`` relative to ``root`` with forward slashes."""
    return path.relative_to(root).as_posix()


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
            near = near_miss(folder, "images")
            hint = f"rename {folder.name}/{near}" if near else "move them"
            sentences.append(
                f"{folder.name} holds images, such as {relative(image, root)}, but no folder 'images', and was not "
                f"read: if it is a site, {hint} to {folder.name}/images"
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


# zipfile raises RuntimeError for what is encrypted, or packed in a way that it does not know
UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
MAX_BYTES = 64 << 30  # the largest official archive (ISIC 2018 task 1 and 2) unpacks to about 12 GiB


def unpack(archive: str | Path, folder: str | Path) -> list[Path]:
    """Unpacks an archive after looking at every member; refuses it whole when one of them is suspicious.

    Args:
        archive: a zip file.
        folder: where to unpack; it is created. Files that are there already are overwritten.

    Returns:
        The files written.

    Raises:
        Refused: not a zip file, or a damaged or encrypted one, members that would lie outside the folder, links, or
            more than 64 GiB unpacked.
    """
    archive, folder = Path(archive), Path(folder)
    problems = Problems()
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            for member in members:
                reason = unsafe(member.filename)
                if stat.S_ISLNK(member.external_attr >> 16):
                    reason = f"the link {member.filename!r}"
                if reason is not None:
                    where, expected = f"{archive.name} -> {member.filename}", "members inside the archive's own folder"
                    problems.add(where, found=reason, expected=expected, hint="do not use this archive")
            if sum(member.file_size for member in members) > MAX_BYTES:
                problems.add(archive.name, found="more than 64 GiB unpacked", expected="at most 64 GiB")
            problems.refuse_if_any()
            make_folder(folder)
            opened.extractall(folder)
            for member in members:
                (folder / member.filename).chmod(0o700 if member.is_dir() else PRIVATE)
    except UNREADABLE as error:
        hint = "download it again, or unpack it with another program"
        found = str(error) or "a member that ends too early"
        raise Refused([Problem(str(archive), found=found, expected="a zip archive", hint=hint)]) from None
    return [folder / member.filename for member in members if not member.is_dir()]
