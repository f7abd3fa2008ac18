"""Messages between a FLARE client and the process that trains: a JSON head and bytes, each with its length.

Nothing here imports torch: the FLARE client stays light.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

_LENGTHS = struct.Struct("<IQ")
_MAX_HEAD = 1 << 20


class Ended(Exception):
    """The other end of the pipe is closed: its process has ended."""


def write_frame(stream: BinaryIO, head: Mapping[str, Any], payload: bytes | memoryview = b"") -> None:
    """Writes one message.

    Args:
        stream: an unbuffered or buffered binary stream; it is flushed.
        head: JSON content.
        payload: any number of bytes.

    Raises:
        Ended: nobody reads.
    """
    words = json.dumps(head).encode()
    try:
        stream.write(_LENGTHS.pack(len(words), len(payload)) + words)
        stream.write(payload)
        stream.flush()
    except (BrokenPipeError, ValueError) as error:
        raise Ended from error


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Waits for one message and reads it.

    Raises:
        Ended: the stream ended, between two messages or inside one.
    """
    length, size = _LENGTHS.unpack(_read(stream, _LENGTHS.size))
    if length > _MAX_HEAD:
        raise Ended
    head = json.loads(_read(stream, length))
    return head, _read(stream, size)


def _read(stream: BinaryIO, count: int) -> bytes:
    content = stream.read(count)
    if content is None or len(content) < count:
        raise Ended
    return content
