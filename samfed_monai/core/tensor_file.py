"""Safetensors files written directly from tensors, without a copy in memory, and hashed while they are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from torch import Tensor

from samfed_monai.core.io import file_digest, sha256_file

_CHECKSUM = "xxh3:"


#: dtypes of tensors in files and messages of this package, with their names in safetensors.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> tuple[bytes, list[str]]:
    """Returns the length prefix and JSON header of a safetensors file, and the names of its tensors in file order.

    Args:
        tensors: names to tensors; only their shapes and dtypes are used.
        metadata: strings for ``__metadata__``.

    Raises:
        TypeError: a dtype that is not in :data:`DTYPES`.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name}: {tensor.dtype} cannot be stored; expected one of {sorted(DTYPES.values())}")
        end = offset + tensor.numel() * tensor.element_size()
        content[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, names


def size(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Number of bytes that :func:`write` would write; nothing is written or copied."""
    return len(header(tensors, metadata)[0]) + sum(t.numel() * t.element_size() for t in tensors.values())


def pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """Yields the file's content in pieces; contiguous CPU tensors are not copied."""
    prefix, names = header(tensors, metadata)
    yield prefix
    for name in names:
        if tensors[name].numel():
            yield tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def write(stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Writes ``tensors`` to ``stream`` as safetensors and returns the SHA-256 of the written bytes."""
    return _write(stream, tensors, metadata, hashlib.sha256())


def write_state(stream: BinaryIO, tensors: Mapping[str, Tensor]) -> str:
    """Writes ``tensors`` and returns their checksum, ``xxh3:`` and 32 hexadecimal digits.

    For files that only their own writer reads again: it detects damaged files, but not forged ones, and takes a tenth
    of the time of SHA-256, which matters for hundreds of megabytes in every round.
    """
    return _CHECKSUM + _write(stream, tensors, None, xxhash.xxh3_128())


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Checksum of names, dtypes, shapes and values in 32 hexadecimal digits; it detects mistakes, not forgery."""
    digest = xxhash.xxh3_128()
    for piece in pieces(tensors):
        digest.update(piece)
    return digest.hexdigest()


def digest_like(path: str | Path, known: str) -> str:
    """The digest of a file, of the same kind as ``known``: SHA-256, or the checksum of :func:`write_state`."""
    return state_digest(path) if known.startswith(_CHECKSUM) else sha256_file(path)


def state_digest(path: str | Path) -> str:
    """The checksum of a file that :func:`write_state` wrote."""
    return _CHECKSUM + file_digest(path, xxhash.xxh3_128())


def _write(stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None, digest: Any) -> str:
    for piece in pieces(tensors, metadata):
        stream.write(piece)
        digest.update(piece)
    return digest.hexdigest()
