"""JPEG scans that a decoder accepts in silence although bytes in them are damaged (fault 11)."""

from __future__ import annotations

import io
import re

from PIL import Image

END, START_OF_SCAN = 0xD9, 0xDA
STANDALONE = {0x01, *range(0xD0, 0xD9)}
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
SEQUENTIAL = {0xC0, 0xC1}
PADDING = bytes(64)


def scan_fault(content: bytes) -> str | None:
    """What is wrong with the compressed data of a JPEG that decodes without an error, or ``None``.

    libjpeg paints the rest of a picture grey when a damaged scan ends early, drops what is left over when it ends late,
    and says so only on its own error stream. A sound scan, in contrast, needs all of its bytes and no more: it decodes
    completely when its end marker is replaced by a few zero bytes, and does not when its last bytes are missing. Costs
    two decodes at 1/8 size.

    It does not find damage after which the number of decoded blocks happens to be right (most single flipped bytes),
    and of progressive files it checks only that they end; the SHA-256 in the data list finds everything that changes
    after the list was made.
    """
    markers = _markers(content)
    if markers is None:
        return "no end-of-image marker"
    end, kinds = markers
    if not SEQUENTIAL & set(kinds) or kinds.count(START_OF_SCAN) != 1:
        return None
    scan = content[:end]
    if not _complete(scan + PADDING):
        return "a damaged scan: its data end before the picture does"
    if _complete(scan.rstrip(b"\0\xff")[: -len(PADDING)]):
        return "a damaged scan: the picture ends before its data do"
    return None


def _complete(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _markers(content: bytes) -> tuple[int, list[int]] | None:
    """Offset of the end marker of the file's first image, and the kinds of the segments before it."""
    position = 2
    kinds: list[int] = []
    while position + 1 < len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == END:
            return position, kinds
        if marker == 0xFF:
            position += 1
        elif marker in STANDALONE:
            position += 2
        else:
            kinds.append(marker)
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
            if marker == START_OF_SCAN:
                found = NEXT_MARKER.search(content, position)
                if found is None:
                    return None
                position = found.start()
    return None
