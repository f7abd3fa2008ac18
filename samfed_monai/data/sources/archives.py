"""Unpacking zip archives without leaving the folder (fault 30)."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from pathlib import Path

from samfed_monai.data.paths import unsafe
from samfed_monai.errors import Problem, Problems, Refused

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
                    problems.add(where, found=reason, expected=expected, mend="do not use this archive")
            if sum(member.file_size for member in members) > MAX_BYTES:
                problems.add(archive.name, found="more than 64 GiB unpacked", expected="at most 64 GiB")
            problems.refuse_if_any()
            folder.mkdir(parents=True, exist_ok=True)
            opened.extractall(folder)
    except UNREADABLE as error:
        mend = "download it again, or unpack it with another program"
        found = str(error) or "a member that ends too early"
        raise Refused([Problem(str(archive), found=found, expected="a zip archive", mend=mend)]) from None
    return [folder / member.filename for member in members if not member.is_dir()]
