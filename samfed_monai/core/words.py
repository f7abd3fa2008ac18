"""Words of messages and reports: a number with what is counted, names that a terminal can show."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path


def near(path: str | Path) -> str:
    """A path for a reader: from the current folder, where it is below that."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def counted(count: int, one: str, many: str = "") -> str:
    """A number of things: ``1 seed``, ``3 seeds``.

    Args:
        count: how many.
        one: what follows the number 1.
        many: what follows any other, if that is not ``one`` with an s: ``1 image is``, ``2 images are``.
    """
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


def clipped(text: str, most: int = 60) -> str:
    """A text of at most so many characters, the end of a longer one left out."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as lines of a table for a terminal, two spaces between its columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


def uncapitalised(sentence: str) -> str:
    """A sentence to put behind a colon, or its beginning behind other words; names such as SAM keep their letters."""
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]


# letters and marks that show nothing: variation selectors, fillers, the joiner of graphemes
_SHOWS_NOTHING = frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), 0x34F, 0x115F, 0x1160))) | {
    *"\u2800\u3164\uffa0"
}


def normal(text: str) -> str:
    """A name without the differences that no reader sees; upper and lower case stay apart.

    Composed (NFC), without zero-width and control characters, with one plain space for each run of blanks (tabs,
    non-breaking and other spaces) and none at either end.
    """
    words = unicodedata.normalize("NFC", text).split()
    seen = ("".join(filter(_is_seen, word)) for word in words)
    return unicodedata.normalize("NFC", " ".join(filter(None, seen)))


def _is_seen(letter: str) -> bool:
    return unicodedata.category(letter) not in ("Cf", "Cc") and letter not in _SHOWS_NOTHING


# control characters (of a terminal's escape sequences, too), line and paragraph separators, marks that change the
# direction of what follows, and halves of characters: Python's spelling of bytes that are no UTF-8
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BYTES = 0xDC00  # byte 0xfc of a file name that is no UTF-8 is U+DCFC (PEP 383)


def printable(text: str, *, keep: Collection[str] = "\n\t") -> str:
    """``text`` with what a terminal or a page would obey instead of showing written as ``\\x1b``.

    Args:
        text: of any origin.
        keep: control characters that stay as they are.
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
