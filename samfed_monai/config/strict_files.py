"""The files of a strict bundle: text, pictures and safetensors; nothing that holds code, and nothing from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from samfed_monai.config.logging_file import check_logging
from samfed_monai.errors import Problem

KINDS = frozenset((".json", ".md", ".rst", ".txt", ".csv", ".safetensors", ".png", ".jpg", ".jpeg", ".svg", ".pdf"))
"""Endings of files that a strict bundle may hold."""

NAMES = frozenset(("LICENSE", "NOTICE", "CITATION.cff", ".gitkeep", ".gitattributes", ".gitignore"))
"""Files without such an ending that it may hold; ``configs/logging.conf`` is another, if it logs to the console."""

_PYTHON = frozenset((".py", ".pyc", ".pyo", ".pyw", ".pyi", ".pyx", ".ipynb"))
_TORCH = frozenset((".pt", ".pth", ".ckpt", ".bin", ".ts", ".tar"))
_MAGIC = (
    (b"PK\x03\x04", "an archive (torch.save writes one with a pickle inside)"),
    (b"PK\x05\x06", "an archive"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x7fELF", "machine code"),
    (b"MZ\x90", "machine code"),
    (b"\xcf\xfa\xed\xfe", "machine code"),
    (b"\xca\xfe\xba\xbe", "machine code"),
    (b"#!", "a script"),
    (b"\x1f\x8b", "a packed file"),
    (b"BZh", "a packed file"),
    (b"\xfd7zXZ\x00", "a packed file"),
)
_SAFE = "convert weights with `safetensors.torch.save_file` and put model.safetensors in its place"


def strict_files(bundle_root: Path) -> Iterator[Problem]:
    """Files that a strict bundle may not hold, by their endings and by how they begin; links that lead out of it."""
    root = Path(bundle_root).resolve()
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted([*names, *(link for link in folders if os.path.islink(os.path.join(folder, link)))]):
            path = Path(folder, name)
            where = path.relative_to(root).as_posix()
            if path.is_symlink():
                yield Problem(where, found="a symbolic link", expected="a file", mend="put the file itself there")
                continue
            found = _kind(path, where)
            if found:
                expected = "JSON, text, pictures and safetensors alone"
                yield Problem(where, found=found, expected=expected, mend=_mend(path))
    yield from check_logging(root)


def _kind(path: Path, where: str) -> str:
    """What is wrong with a file; empty when nothing is."""
    ending = path.suffix.lower()
    if ending in _PYTHON:
        return "Python"
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"
    if ending == ".safetensors":  # the length of its header, which may be any bytes, and then JSON
        return "" if head[8:] == b"{" else "no safetensors inside"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if ending in KINDS or path.name in NAMES or where == "configs/logging.conf":
        return ""
    return f"a file that ends with {path.suffix!r}" if path.suffix else "a file without an ending"


def _mend(path: Path) -> str:
    ending = path.suffix.lower()
    if ending in _PYTHON:
        return "delete it; install code as a package, and name it in SAMFED_ALLOW"
    return _SAFE if ending in _TORCH else "delete it"
