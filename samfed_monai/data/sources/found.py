"""``Found``, an image file with its mask: matching masks to images, misnamed and swapped folders, archives."""

from __future__ import annotations

import logging
import lzma
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from samfed_monai.core.errors import Problem, Problems, Refused, closest, machine_failure, refused
from samfed_monai.core.io import PRIVATE, make_folder
from samfed_monai.core.words import counted, normal
from samfed_monai.data.checks import stem
from samfed_monai.data.datalist import unsafe
from samfed_monai.data.reading import SUFFIXES, decode_image, decode_mask, read_bytes
from samfed_monai.data.walk import PICTURE, is_left_out, not_read, walk

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
        group: sequence or patient, if known; kept in its normal form.
        label_kind: of a weak label, one of :class:`~samfed_monai.data.datalist.LabelKind`; ``None`` is a mask.
    """

    image: str
    label: str | None = None
    origin: str = ""
    group: str | None = None
    label_kind: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", normal(self.group or "") or None)

    @property
    def has_mask(self) -> bool:
        """Whether it can be measured with."""
        return self.label is not None and self.label_kind is None

    def with_group(self, group: str | None) -> Found:
        return replace(self, group=group)

    def with_kind(self, kind: str) -> Found:
        return replace(self, label_kind=kind)


def list_images(folder: Path) -> list[Path]:
    """Image files below a folder, sorted; see :mod:`samfed_monai.data.walk`. None without a folder."""
    return list(walk(folder).get(PICTURE, ())) if folder.is_dir() else []


def others_in(site: Path) -> list[str]:
    """A sentence on files in ``images``, and on those in ``masks``, that are no pictures and were not read."""
    sentences = {
        folder: not_read(walk(site / folder), (PICTURE,)) for folder in ("images", "masks") if (site / folder).is_dir()
    }
    return [f"{site.name}/{folder}: {sentence}" for folder, sentence in sentences.items() if sentence]


def site_folders(root: Path) -> list[Path]:
    """Folders of ``root`` with ``images`` in them, sorted; none of a system's."""
    return sorted(path.parent for path in root.glob("*/images") if path.is_dir() and not is_left_out(path.parent.name))


def pair_up(folder: Path, root: Path, origin: str) -> list[Found]:
    """Images with their masks, as :func:`match_masks` has them; masks without an image are logged, two by name."""
    found, lonely = match_masks(folder, root, origin)
    for sentence in others_in(folder):
        logger.warning("%s", sentence)
    warn_of_lonely(folder / "masks", lonely)
    return found


def match_masks(folder: Path, root: Path, origin: str) -> tuple[list[Found], list[Path]]:
    """Images of ``folder/images`` with their masks in ``folder/masks``, matched by stem; and masks without an image.

    A mask may also be called ``<stem>_segmentation`` or ``<stem>_mask``. Where folders below ``images`` and ``masks``
    have the same names, as those of patients do, a mask belongs to an image of its own folder.

    Raises:
        Refused: there is no ``images`` folder, or nothing in it, an image has two masks, a mask may be of several
            images, or the folders are swapped.
    """
    images = list_images(folder / "images")
    if not images:
        found_here = "; ".join(["no images", *others_in(folder)])
        expected, hint = "images (" + ", ".join(sorted(SUFFIXES)) + ")", "put the site's images there"
        raise refused(str(folder / "images"), found=found_here, expected=expected, hint=hint)
    drawn = list_images(folder / "masks")
    exchanged = swapped(folder, images, drawn)
    if exchanged is not None:
        raise Refused([exchanged])
    below = {path: normal(relative(path.parent, folder).partition("/")[2]) for path in [*images, *drawn]}
    shared = {below[path] for path in images} & {below[path] for path in drawn} - {""}
    by_stem: dict[str, list[Path]] = {}
    for path in images:
        by_stem.setdefault(stem(path.name), []).append(path)
    masks: dict[Path, Path] = {}
    lonely: list[Path] = []
    problems = Problems()
    for path in drawn:
        ones = by_stem.get(stem(path.name)) or by_stem.get(mask_stem(path), [])  # an image's own may end in _mask
        own = [one for one in ones if below[one] == below[path]]
        if not own and (len(ones) > 1 or below[path] in shared or any(below[one] in shared for one in ones)):
            own = [one for one in ones if not below[one] or not below[path]]  # one of both is in no folder
        else:
            own = own or ones
        if len({below[one] for one in own}) > 1:
            several = f"the name of {len(own)} images, such as {relative(own[0], root)} and {relative(own[1], root)}"
            hint = f"move it into a folder called as its image's, {relative(folder / 'masks', root)}/{below[own[1]]}"
            problems.add(relative(path, root), found=several, expected="the mask of one image", hint=hint)
        elif not own:
            lonely.append(path)
        elif (there := masks.setdefault(own[0], path)) != path:
            other, hint = f"the same image's mask in {relative(there, root)}", "move away the one that is not its mask"
            problems.add(relative(path, root), found=other, expected="one mask for each image", hint=hint)
    problems.refuse_if_any()
    found = [
        Found(relative(path, root), relative(masks[path], root) if path in masks else None, origin) for path in images
    ]
    return found, lonely


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

    Hidden folders, ``masks``, what runs wrote, and the folder that ``output`` is in are no hospitals.

    Args:
        root: folder of sites.
        sites: names of its subfolders that are sites.
        output: file that is to be written.
    """
    written = Path(output).resolve().parents if output is not None else ()
    sentences = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in sites):
        if is_left_out(folder.name) or folder.name.lower() == "masks" or folder.resolve() in written:
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
        folders[:] = sorted(name for name in folders if not is_left_out(name))
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not is_left_out(name):
                return Path(place) / name
    return None


# zipfile raises RuntimeError and NotImplementedError for what is encrypted, or packed in a way that it does not know
UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
GIB = 1 << 30
MAX_BYTES = 64 * GIB  # the largest official archive (ISIC 2018 task 1 and 2) unpacks to about 12 GiB
MAX_RATIO = 200  # of a large archive's files to itself; images hardly shrink, and zeros to a thousandth (ours)
ENCRYPTED, UTF_8 = 0x1, 0x800  # bits of a member's flags
OTHERWISE = "if you trust it, unpack it with another program"
ARCHIVES = frozenset({".zip", ".rar", ".7z", ".tar", ".tgz", ".gz", ".bz2", ".xz"})


def unpack_all(root: Path, *, apart: bool = False) -> None:
    """Unpacks the zip files of a folder there, after a look at each; logs archives of other kinds.

    Args:
        root: the folder.
        apart: each into a folder of its name.

    Raises:
        Refused: what :func:`unpack` refuses, of all archives at once; nothing is unpacked then.
    """
    archives = sorted(path for path in root.glob("[!.]*") if path.suffix.lower() in ARCHIVES and path.is_file())
    zips = [path for path in archives if path.suffix.lower() == ".zip"]
    if others := [path.name for path in archives if path not in zips]:
        logger.warning("%s: unpack these yourself, which are no zip files: %s", root, ", ".join(others))
    problems = Problems()
    for path in zips:
        with problems.collected():
            _members(path, root)
    problems.refuse_if_any()
    for path in zips:
        unpack(path, root / path.stem if apart else root)


def unpack(archive: str | Path, folder: str | Path) -> list[Path]:
    """Unpacks an archive after looking at every member; refuses it whole when one of them is suspicious.

    Args:
        archive: a zip file; backslashes in it are slashes, as older programs for Windows write them.
        folder: where to unpack; it is created. Files that are there already are overwritten.

    Returns:
        The files written. Archives among them are logged, and not unpacked.

    Raises:
        Refused: not a zip file, or a damaged or encrypted one, members that would lie outside the folder or in one
            place, links and devices, more than 64 GiB or than the disk has, or 200 times the size of the archive.
    """
    archive, folder = Path(archive), Path(folder)
    members = _members(archive, folder)
    with _readable(archive) as opened:
        make_folder(folder)
        for member in members:
            opened.extract(member, folder)
            (folder / member.filename).chmod(0o700 if member.is_dir() else PRIVATE)
    files = [folder / member.filename for member in members if not member.is_dir()]
    if inside := [path.name for path in files if path.suffix.lower() in ARCHIVES]:
        who = counted(len(inside), "archive")
        logger.warning("%s: %s in it left packed, such as %s: unpack it there", archive.name, who, inside[0])
    return files


@contextmanager
def _readable(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as opened:
            yield opened
    except UNREADABLE as error:
        if isinstance(error, OSError) and machine_failure(error) is not None:
            raise
        hint = "download it again, or unpack it with another program"
        found = str(error) or "a member that ends too early"
        raise refused(str(archive), found=found, expected="a zip archive", hint=hint) from None


def _members(archive: Path, folder: Path) -> list[zipfile.ZipInfo]:
    """The members of an archive with the names that they get, all of them safe to write below the folder."""
    problems, places = Problems(), dict[str, zipfile.ZipInfo]()
    with _readable(archive) as opened:
        members = opened.infolist()
    for member in members:
        mode, member.filename = stat.S_IFMT(member.external_attr >> 16), _name(member)
        place = member.filename.rstrip("/")
        reason = unsafe(member.filename)
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            reason = f"a link or a device, {member.filename!r}"
        elif member.flag_bits & ENCRYPTED:
            reason = "an encrypted member"
        elif reason is None and not member.is_dir() and places.setdefault(place, member) is not member:
            reason = f"the place of {places[place].orig_filename!r}"
        if reason is not None:
            expected, hint = "plain members inside the archive's own folder, each in a place of its own", OTHERWISE
            problems.add(f"{archive.name} -> {member.orig_filename}", found=reason, expected=expected, hint=hint)
    for place, member in places.items():
        if above := next((str(each) for each in PurePosixPath(place).parents if str(each) in places), None):
            where, found = f"{archive.name} -> {member.orig_filename}", f"the file {above!r} above it"
            problems.add(where, found=found, expected="a folder above it", hint=OTHERWISE)
    size, packed = sum(member.file_size for member in members), archive.stat().st_size
    free = shutil.disk_usage(next(each for each in (folder, *folder.resolve().parents) if each.exists())).free
    for most, allowed in (
        (MAX_BYTES, f"{MAX_BYTES // GIB} GiB"),
        (free, f"the free {free / GIB:.1f} GiB"),
        (max(GIB, MAX_RATIO * packed), f"{MAX_RATIO} times its size"),
    ):
        if size > most:
            found, hint = f"{size / GIB:.1f} GiB unpacked", "make room, or unpack it yourself if you trust it"
            problems.add(archive.name, found=found, expected=f"at most {allowed}", hint=hint)
    problems.refuse_if_any()
    return members


def _name(member: zipfile.ZipInfo) -> str:
    """A member's name with slashes; without zip's mark for UTF-8 it is read as that where it can be."""
    name = member.filename
    if not member.flag_bits & UTF_8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


NEAR_MISSES = {
    "images": {"image", "img", "imgs", "picture", "pictures", "photo", "photos", "frames", "jpegimages", "original"},
    "masks": {
        *("mask", "label", "labels", "seg", "segs", "segmentation", "segmentations", "segmentationclass", "gt"),
        *("groundtruth", "groundtruths", "annotation", "annotations", "lesions", "target", "targets", "maskimages"),
    },
}
"""Names of folders, letters alone, that other data sets use for ``images`` and ``masks``."""
LOOKED_AT = 4  # files of each folder that are opened to see what they are
BLACK_AND_WHITE = 2
_ALIKE = 0.8  # ratio of difflib's, of which "maks" has 0.89 with "masks"


def near_miss(folder: Path, wanted: str) -> str | None:
    """The subfolder that is probably meant to be called ``wanted`` (fault 66): ``labels``, ``Masks``, ``imgs``, …

    Args:
        folder: of a site.
        wanted: ``images`` or ``masks``.

    Returns:
        Its name, or ``None`` where there is none, or where ``wanted`` itself is there.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if wanted in names:
        return None
    others = {name for key, names in NEAR_MISSES.items() if key != wanted for name in (key, *names)}
    for name in names:
        letters = "".join(letter for letter in name.casefold() if letter.isalnum())
        meant = letters == wanted or letters in NEAR_MISSES[wanted]
        if meant or (letters not in others and closest(letters, [wanted], _ALIKE)):
            return name
    return None


def swapped(folder: Path, images: Sequence[Path], masks: Sequence[Path]) -> Problem | None:
    """Fault 63: that ``images`` holds black and white pictures, and ``masks`` none, as far as a few of each tell.

    Args:
        folder: of a site.
        images: files below its ``images``.
        masks: files below its ``masks``.
    """
    if not images or not masks:
        return None
    drawn = [_is_mask(path) for path in images[:LOOKED_AT]]
    seen = [_is_mask(path) for path in masks[:LOOKED_AT]]
    if not all(answer is True for answer in drawn) or not all(answer is False for answer in seen):
        return None
    return Problem(
        str(folder),
        found="masks in the folder 'images', and pictures in the folder 'masks'",
        expected="pictures in 'images', masks in 'masks'",
        hint="the two folders are swapped: exchange their names",
    )


def _is_mask(path: Path) -> bool | None:
    """Whether a file has black and white pixels and no others; ``None`` where it cannot be read."""
    try:
        content = read_bytes(path)
        decode_image(content, path.name)
    except Refused:
        return None
    try:
        return len(decode_mask(content, path.name, None)[1]) == BLACK_AND_WHITE
    except Refused:
        return False
