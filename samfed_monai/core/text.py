"""Text of messages and reports: counts with their nouns, names that a terminal can show, values in groups."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def near(path: str | Path) -> str:
    """Returns a path for display: relative to the current folder if it is inside that folder."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def as_argument(path: str | Path) -> str:
    """Returns a path as an argument of a command; one that begins with a dash would be read as an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def counted(count: int, one: str, many: str = "") -> str:
    """Returns a count with its noun: ``1 seed``, ``3 seeds``.

    Args:
        count: the number.
        one: text after the number 1.
        many: text after other numbers, if it is not ``one`` with an s: ``1 image is``, ``2 images are``.
    """
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


def clipped(text: str, most: int = 60) -> str:
    """Shortens a text to at most ``most`` characters, with ``…`` at the end."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows of equal length as a table for a terminal, with two spaces between columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(f"{line}\n" for line in ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows))


def uncapitalised(sentence: str) -> str:
    """Returns a sentence with its first letter in lower case, for use after a colon; names such as SAM are kept."""
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]


# invisible letters and marks: variation selectors, fillers, the grapheme joiner
_INVISIBLE = frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), 0x34F, 0x115F, 0x1160))) | {
    *"\u2800\u3164\uffa0"
}


def normal(text: str) -> str:
    """Normalises a name, so that names that look the same are equal; upper and lower case remain different.

    The result is composed (NFC), has no zero-width and control characters, one plain space for each run of white space
    (tabs, non-breaking and other spaces) and none at either end.
    """
    visible = ("".join(filter(_is_visible, word)) for word in unicodedata.normalize("NFC", text).split())
    return unicodedata.normalize("NFC", " ".join(filter(None, visible)))


def _is_visible(letter: str) -> bool:
    return unicodedata.category(letter) not in ("Cf", "Cc") and letter not in _INVISIBLE


# control characters (which start a terminal's escape sequences), line and paragraph separators, marks that change the
# direction of text, and surrogates, with which Python represents bytes that are not UTF-8
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BYTES = 0xDC00  # byte 0xfc of a file name that is not UTF-8 is U+DCFC (PEP 383)


def printable(text: str, *, keep: Collection[str] = "\n\t") -> str:
    """Escapes characters that a terminal or page would interpret, as ``\\x1b``.

    Args:
        text: text of any origin.
        keep: control characters that are not escaped.
    """

    def shown(match: re.Match[str]) -> str:
        character = match[0]
        if character in keep:
            return character
        code = ord(character)
        if code >= _BYTES:
            return f"\\x{code - _BYTES:02x}" if code < _BYTES + 0x100 else f"\\u{code:04x}"
        return character.encode("unicode_escape").decode()

    return _HIDDEN.sub(shown, text)


def grouped(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    """Returns the values of each key, both in the order of the pairs."""
    groups: dict[Key, list[Value]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups
