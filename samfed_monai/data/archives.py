"""Zip files of a source, unpacked where they are after a look at every member."""

from __future__ import annotations

import logging
import lzma
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from samfed_monai.core.errors import Problems, machine_failure, refused
from samfed_monai.core.io import PRIVATE, make_folder, taken_back_on_error
from samfed_monai.core.words import counted
from samfed_monai.data.datalist import unsafe

logger = logging.getLogger(__name__)

# zipfile raises RuntimeError and NotImplementedError for what is encrypted, or packed in a way that it does not know
UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
GIB = 1 << 30
MAX_BYTES = 64 * GIB  # the largest official archive (ISIC 2018 task 1 and 2) unpacks to about 12 GiB
MAX_RATIO = 200  # of a large archive's files to itself; images hardly shrink, and zeros to a thousandth (ours)
ENCRYPTED, UTF_8 = 0x1, 0x800  # bits of a member's flags
OTHERWISE = "if you trust it, unpack it with another program"
ARCHIVES = frozenset({".zip", ".rar", ".7z", ".tar", ".tgz", ".gz", ".bz2", ".xz"})


def unpack_all(root: Path, *, apart: bool = False) -> list[Path]:
    """Unpacks the zip files of a folder there, after a look at every member of each.

    Backslashes in them are slashes, as older programs for Windows write them. A file that is there with another content
    stays as it is, with a warning: it may have been corrected. Archives of other kinds, and archives in archives, are
    logged and not unpacked.

    Args:
        root: the folder.
        apart: each into a folder of its name.

    Returns:
        the zip files.

    Raises:
        Refused: not a zip file, or a damaged or encrypted one, members that would lie outside the folder or in one
            place, links and devices, more than 64 GiB or than the disk has, or 200 times the size of the archive; of
            all archives at once, and none is unpacked then; one that turns out to be damaged later leaves no file.
    """
    archives = sorted(path for path in root.glob("[!.]*") if path.suffix.lower() in ARCHIVES and path.is_file())
    zips = [path for path in archives if path.suffix.lower() == ".zip"]
    if others := [path.name for path in archives if path not in zips]:
        logger.warning("%s: unpack these yourself, which are no zip files: %s", root, ", ".join(others))
    problems = Problems()
    for path in zips:
        with problems.collected():
            _members(path)
    problems.refuse_if_any()
    for path in zips:
        _unpack(path, root / path.stem if apart else root)
    return zips


def _unpack(archive: Path, folder: Path) -> None:
    members = _members(archive)  # once more: the disk may have less room now
    kept = [member.filename for member in members if _differs(folder / member.filename, member)]
    with taken_back_on_error() as written, _readable(archive) as opened:  # a part would be taken for the whole
        make_folder(folder)
        for member in (member for member in members if not (folder / member.filename).is_file()):
            written |= {} if member.is_dir() else {folder / member.filename: None}
            opened.extract(member, folder)
            (folder / member.filename).chmod(0o700 if member.is_dir() else PRIVATE)
    if kept:
        who = counted(len(kept), "file differs from the archive's and was", "files differ from the archive's and were")
        first = folder / kept[0]
        logger.warning("%s: %s kept, such as %s: delete it to unpack it again", archive.name, who, first)
    names = [PurePosixPath(member.filename).name for member in members if not member.is_dir()]
    if inside := [name for name in names if PurePosixPath(name).suffix.lower() in ARCHIVES]:
        who = counted(len(inside), "archive")
        logger.warning("%s: %s in it left packed, such as %s: unpack it there", archive.name, who, inside[0])


def _differs(path: Path, member: zipfile.ZipInfo) -> bool:
    return path.is_file() and (path.stat().st_size, zlib.crc32(path.read_bytes())) != (member.file_size, member.CRC)


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


def _members(archive: Path) -> list[zipfile.ZipInfo]:
    """The members of an archive with the names that they get, all of them safe to write below a folder beside it."""
    problems, places = Problems(), dict[str, zipfile.ZipInfo]()
    with _readable(archive) as opened:
        members = opened.infolist()
    for member in members:
        mode, member.filename = stat.S_IFMT(member.external_attr >> 16), _name(member)
        place = str(PurePosixPath(member.filename))  # "./a" and "b//c" are written where "a" and "b/c" are
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
    for member in members:
        inside = PurePosixPath(member.filename, "x") if member.is_dir() else PurePosixPath(member.filename)
        if above := next((str(each) for each in inside.parents if str(each) in places), None):
            where, found = f"{archive.name} -> {member.orig_filename}", f"the file {above!r} above it"
            problems.add(where, found=found, expected="a folder above it", hint=OTHERWISE)
    size, packed = sum(member.file_size for member in members), archive.stat().st_size
    free = shutil.disk_usage(archive.parent).free
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
