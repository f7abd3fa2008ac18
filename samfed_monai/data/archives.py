"""Unpacks the zip files of a source after checking every member."""

from __future__ import annotations

import logging
import lzma
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from samfed_monai.core.errors import Problem, Problems, machine_failure, refused
from samfed_monai.core.io import PRIVATE, make_folder, undo_on_error
from samfed_monai.core.text import counted, normal
from samfed_monai.core.validators import require
from samfed_monai.data.datalist import unsafe

logger = logging.getLogger(__name__)

# zipfile raises RuntimeError and NotImplementedError for encrypted members and unknown compression methods
UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
GIB = 1 << 30
MAX_BYTES = 64 * GIB  # the largest official archive (ISIC 2018 task 1 and 2) unpacks to about 12 GiB
MAX_RATIO = 200  # unpacked to packed size; images hardly shrink, zeros shrink to a thousandth (ours)
ENCRYPTED, UTF_8 = 0x1, 0x800  # flag bits of a member
UNPACK_HINT = "if you trust it, unpack it with another program"
Check = Callable[[list[Path]], object]
ARCHIVES = frozenset({".zip", ".rar", ".7z", ".tar", ".tgz", ".gz", ".bz2", ".xz"})


def unpack_all(root: Path, *, folder_each: bool = False, check: Check | None = None) -> list[Path]:
    """Unpacks the zip files of a folder into it, after checking every member of each.

    Backslashes in member names are read as slashes, as older Windows programs write them. An existing file with other
    content is kept, with a warning, as it may have been corrected. Archives of other kinds and archives inside archives
    are logged and not unpacked.

    Args:
        root: the folder.
        folder_each: whether to unpack each archive into a folder named after it.
        check: called with the paths of all members before one is unpacked; it may refuse them.

    Returns:
        The zip files.

    Raises:
        Refused: no zip file; damaged or encrypted archives; members outside the folder or with the same path; links and
            devices; more than 64 GiB, the free space, or 200 times the archive's size. The problems of all archives
            are reported together, and none is unpacked. If damage shows only while unpacking, new files are deleted.
    """
    archives = sorted(path for path in root.glob("[!.]*") if path.suffix.lower() in ARCHIVES and path.is_file())
    zips = [path for path in archives if path.suffix.lower() == ".zip"]
    if others := [path.name for path in archives if path not in zips]:
        logger.warning("%s: not zip files, unpack them yourself: %s", root, ", ".join(others))
    problems, members = Problems(), list[Path]()
    places = {path: root / path.stem if folder_each else root for path in zips}
    for path, folder in places.items():
        with problems.collected():
            members += [folder / member.filename for member in _checked_members(path) if not member.is_dir()]
    problems.refuse_if_any()
    if check is not None:
        check(members)
    for path, folder in places.items():
        _unpack(path, folder)
    return zips


def _unpack(archive: Path, folder: Path) -> None:
    members = _checked_members(archive)  # checked again: the disk may have less free space now
    kept = [member.filename for member in members if _differs(folder / member.filename, member)]
    with undo_on_error() as written, _open_zip(archive) as opened:  # a partial copy would look complete
        make_folder(folder)
        for member in (member for member in members if not (folder / member.filename).is_file()):
            written |= {} if member.is_dir() else {folder / member.filename: None}
            opened.extract(member, folder)
            (folder / member.filename).chmod(0o700 if member.is_dir() else PRIVATE)
    if kept:
        text = counted(len(kept), "file differs from the archive's and was", "files differ from the archive's and were")
        logger.warning("%s: %s kept, such as %s: delete it to unpack it again", archive.name, text, folder / kept[0])
    names = [PurePosixPath(member.filename).name for member in members if not member.is_dir()]
    if inside := [name for name in names if PurePosixPath(name).suffix.lower() in ARCHIVES]:
        text = counted(len(inside), "archive")
        logger.warning("%s: %s in it left packed, such as %s: unpack it there", archive.name, text, inside[0])


def _differs(path: Path, member: zipfile.ZipInfo) -> bool:
    return path.is_file() and (path.stat().st_size, zlib.crc32(path.read_bytes())) != (member.file_size, member.CRC)


@contextmanager
def _open_zip(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as opened:
            yield opened
    except UNREADABLE as error:
        if isinstance(error, OSError) and machine_failure(error) is not None:
            raise
        hint = "download it again, or unpack it with another program"
        raise refused(str(archive), str(error) or "a member that ends too early", "a zip archive", hint) from None


def _checked_members(archive: Path) -> list[zipfile.ZipInfo]:
    """Returns an archive's members with their names on disk, after checking that all are safe to write."""
    with _open_zip(archive) as opened:
        members = opened.infolist()
    for member in members:
        member.filename = _member_name(member)
    require(_unsafe_members(archive.name, members), _size_problems(archive, members))
    return members


def _unsafe_members(archive: str, members: list[zipfile.ZipInfo]) -> Iterator[Problem]:
    by_path: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        mode = stat.S_IFMT(member.external_attr >> 16)
        path = str(PurePosixPath(member.filename))  # "./a" and "b//c" are written where "a" and "b/c" are
        key = normal(path).casefold()  # many disks do not distinguish "A" and "a", or the two forms of "ü"
        reason = unsafe(member.filename)
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            reason = f"a link or a device, {member.filename!r}"
        elif member.flag_bits & ENCRYPTED:
            reason = "an encrypted member"
        elif reason is None and not member.is_dir() and by_path.setdefault(key, member) is not member:
            reason = f"the path of {by_path[key].orig_filename!r}"
            reason += "" if by_path[key].filename == member.filename else " to a disk that ignores upper and lower case"
        if reason is not None:
            expected = "plain members inside the archive's own folder, each with a path of its own"
            yield Problem(f"{archive} -> {member.orig_filename}", reason, expected, UNPACK_HINT)
    for member in members:
        inside = PurePosixPath(member.filename, "x") if member.is_dir() else PurePosixPath(member.filename)
        if parent := next((str(each) for each in inside.parents if normal(str(each)).casefold() in by_path), None):
            where, found = f"{archive} -> {member.orig_filename}", f"the file {parent!r} above it"
            yield Problem(where, found, "a folder above it", UNPACK_HINT)


def _size_problems(archive: Path, members: list[zipfile.ZipInfo]) -> Iterator[Problem]:
    size, packed = sum(member.file_size for member in members), archive.stat().st_size
    free = shutil.disk_usage(archive.parent).free
    for limit, allowed in (
        (MAX_BYTES, f"{MAX_BYTES // GIB} GiB"),
        (free, f"the free {free / GIB:.1f} GiB"),
        (max(GIB, MAX_RATIO * packed), f"{MAX_RATIO} times its size"),
    ):
        if size > limit:
            hint = "free disk space, or unpack it yourself if you trust it"
            yield Problem(archive.name, f"{size / GIB:.1f} GiB unpacked", f"at most {allowed}", hint)


def _member_name(member: zipfile.ZipInfo) -> str:
    """Returns a member's name with slashes; without zip's UTF-8 flag, UTF-8 is tried first."""
    name = member.filename
    if not member.flag_bits & UTF_8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")
