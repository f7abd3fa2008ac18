"""Searches bytes that leave a site for planted data, also inside of archives, compressed data and images.

For any transport: collect the bytes that went up (and down), name the files at the server, and call
:func:`leaks` with what must not be in them::

    needles = {"pixels": pixel_needles(image), "file name": [b"Jane Doe"], "EXIF": [b"canary 51.5N"]}
    assert leaks(payloads, server_files(run_folder), needles) == []
"""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load

from samfed_monai.protocol import Kind, MessageRefused, from_bytes, scrub, to_bytes

Needles = Mapping[str, Sequence[bytes]]
#: Folders of a run that are at the sites: in one process they are beside the server's own.
SITE_LOCAL = ("evaluation", "sites", "cache", "clients")
_ROW = 16  # pixels that must be side by side to count as an image: chance does not repeat them


def pixel_needles(image: Any) -> list[bytes]:
    """The first row of an image's middle, in the encodings that pixels travel in.

    Args:
        image: (C, H, W), 0 to 255 or in [0, 1]; at least 16 pixels wide, and not of one colour.
    """
    pixels = np.asarray(image, dtype=np.float64)
    row = (pixels / 255 if pixels.max() > 1 else pixels)[:, pixels.shape[1] // 2, :_ROW]  # (C, 16)
    assert len(np.unique(row)) > 4, "a row of one colour is found everywhere"
    found: list[bytes] = []
    for order in (row[0], row.T.reshape(-1)[:_ROW]):  # planes, and interleaved colours
        found += [np.round(order * 255).astype(np.uint8).tobytes()]
        for scale in (1.0, 255.0):
            found += [(order * scale).astype(kind).tobytes() for kind in (np.float16, np.float32, np.float64)]
    return found


def text_needles(*texts: str) -> list[bytes]:
    """Texts as in files, and as JSON escapes them."""
    return [form for text in texts for form in {text.encode(), text.encode("utf-16-le")}]


def leaks(payloads: Iterable[bytes], files: Iterable[Path], needles: Needles) -> list[str]:
    """What was found: ``<needle> in message 3``, ``<needle> in report.html``; empty when nothing leaked."""
    sources = [(f"message {index}", payload) for index, payload in enumerate(payloads)]
    for path in files:
        sources += [(path.name, path.read_bytes()), (f"the name of {path.name}", path.name.encode())]
    return [
        f"{name} in {source}"
        for source, content in sources
        for name, forms in needles.items()
        if any(form in layer for layer in unpacked(content) for form in forms)
    ]


def unpacked(content: bytes) -> Iterator[bytes]:
    """``content`` and everything that it is a packing of: messages, safetensors, archives, deflate, images."""
    yield content
    tensors: list[torch.Tensor] = []
    # safetensors hold tensors as they are, so that only what is packed in them is something new
    with suppress(MessageRefused):
        message = from_bytes(content)
        tensors += message.tensors.values() if message.kind == Kind.SOFT_MASKS else []
    with suppress(Exception):
        tensors += [tensor for tensor in load(content).values() if tensor.dtype == torch.uint8]
    with suppress(Exception), zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            yield from unpacked(archive.read(name))
    with suppress(Exception), Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image)
        yield from (pixels.tobytes(), np.moveaxis(pixels, -1, 0).tobytes())
    raw = [tensor.numpy().tobytes() for tensor in tensors]
    yield from raw
    for packed in (content, *raw):
        for inflate in (zlib.decompress, gzip.decompress):
            with suppress(Exception):
                yield inflate(packed)


def server_files(run_folder: Path, site_local: Sequence[str] = SITE_LOCAL) -> list[Path]:
    """Files of a run folder that are at the server: all but those in folders of these names."""
    files = [path for path in sorted(run_folder.rglob("*")) if path.is_file()]
    return [path for path in files if not set(path.relative_to(run_folder).parts) & set(site_local)]


def wired(site: Any, sent: list[bytes]) -> Any:
    """Has everything that ``site`` is asked and answers pass as bytes; returns ``site``.

    Args:
        site: has ``answer(task, message)``.
        sent: is given what it answers, and the words that leave when it fails.
    """
    answer: Callable[[Any, Any], Any] = site.answer

    def over_the_wire(task: Any, message: Any) -> Any:
        try:
            sent.append(to_bytes(answer(task, from_bytes(to_bytes(message)))))
        except Exception as error:
            sent.append(scrub(error).encode())
            raise
        return from_bytes(sent[-1])

    site.answer = over_the_wire
    return site
