"""Paths that stay inside the data root (faults 18 and 19)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from samfed_monai.errors import Problem, Refused


def unsafe(relative: str) -> str | None:
    """Why ``relative`` may not stand in a data list, or ``None`` when it may.

    Refused are absolute paths (POSIX and Windows), ``..``, backslashes, empty paths, control characters and names
    that are not valid Unicode. Spaces and every script are fine.
    """
    try:
        relative.encode()
    except UnicodeEncodeError:
        return "a name that is not valid Unicode"
    if not relative.strip():
        return "an empty path"
    if any(ord(character) < 32 for character in relative):
        return f"a control character in {relative!r}"
    if PurePosixPath(relative).is_absolute() or PureWindowsPath(relative).drive:
        return f"the absolute path {relative!r}"
    if "\\" in relative:
        return f"a backslash in {relative!r}"
    if ".." in PurePosixPath(relative).parts:
        return f"'..' in {relative!r}"
    return None


def confine(root: str | Path, relative: str, *, where: str) -> Path:
    """The absolute path of ``relative`` under ``root``, links followed.

    Args:
        root: the data root; it may itself be a link.
        relative: a path from a data list.
        where: what names the path, for the message.

    Raises:
        Refused: the path is unsafe (fault 18), or a link leads out of the root (fault 19).
    """
    reason = unsafe(relative)
    if reason is not None:
        mend = "list only paths inside the data root, relative to it, with forward slashes"
        raise Refused([Problem(where, found=reason, expected="a relative path inside the data root", mend=mend)])
    root = Path(root).resolve()
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        mend = "copy the file into the data root, or make the folder that really holds the files the data root"
        raise Refused(
            [
                Problem(
                    where, found=f"{relative!r} is a link out of the data root", expected="a file inside it", mend=mend
                )
            ]
        )
    return path
