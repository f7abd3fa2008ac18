"""The one way to write a file, or to append a line to one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: str | Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Opens a temporary file beside ``path`` that replaces it only when the block ends without an error.

    Temporary file, fsync, replace, fsync of the folder: a reader sees the old content or the new, never a torn file,
    and a full disk leaves the old file as it was.

    Args:
        path: file to write; its folder is created.
        mode: permission bits of the new file (private soft masks use ``0o600``).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # not named after the file: a name may be as long as the file system allows
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_line(path: str | Path, line: str, *, mode: int = 0o600) -> None:
    """Appends a line as UTF-8 in one write, flushed to the disk before this returns.

    A line that an earlier write left unfinished is ended first, so that it spoils no other.

    Args:
        path: file to append to; its folder is created.
        line: text without its line break.
        mode: permission bits of the file, whether it is new or not.

    Raises:
        OSError: it could not be written; the file may end in a part of the line.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = (line + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, mode)
    try:
        os.fchmod(descriptor, mode)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            content = b"\n" + content
        if os.write(descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: str | Path) -> None:
    """Flushes a folder's own entries to the disk: after it, what was renamed into the folder survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, content: bytes, *, mode: int = 0o644) -> None:
    """Writes ``content``, atomically; ``mode`` as in :func:`atomic_write`."""
    with atomic_write(path, mode=mode) as stream:
        stream.write(content)


def write_text(path: str | Path, text: str) -> None:
    """Writes ``text`` as UTF-8, atomically."""
    write_bytes(path, text.encode())
