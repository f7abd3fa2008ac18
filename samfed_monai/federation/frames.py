"""Messages between a process and the one that trains for it: a JSON head and bytes, each with its length.

Nothing here imports torch: whoever asks may stay light.
"""

from __future__ import annotations

import json
import os
import queue
import struct
import threading
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


def incoming(stream: BinaryIO) -> queue.Queue[tuple[dict[str, Any], bytes]]:
    """Reads messages in a thread of its own and ends this process, whatever it does, when nobody can send any more."""
    frames: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()

    def receive() -> None:
        try:
            while True:
                frames.put(read_frame(stream))
        except Ended:
            os._exit(0)  # whoever asked is gone: nothing that runs here has anyone to answer to

    threading.Thread(target=receive, daemon=True).start()
    return frames


def _read(stream: BinaryIO, count: int) -> bytes:
    content = stream.read(count)
    if content is None or len(content) < count:
        raise Ended
    return content
