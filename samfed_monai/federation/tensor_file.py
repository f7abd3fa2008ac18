"""Safetensors written straight from tensors: no copy in memory, hashed on the way out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO

import torch

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = {
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
    """Length prefix and JSON header of a safetensors file, and the order in which its tensors follow.

    Args:
        tensors: names to tensors; only their shapes and dtypes are looked at.
        metadata: strings for ``__metadata__``.

    Raises:
        TypeError: a dtype that safetensors files of this package do not carry.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name}: {tensor.dtype} cannot be stored; expected one of {sorted(_DTYPES.values())}")
        end = offset + tensor.numel() * tensor.element_size()
        content[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, names


def size(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Bytes that :func:`write` would write, without writing or copying anything."""
    return len(header(tensors, metadata)[0]) + sum(t.numel() * t.element_size() for t in tensors.values())


def pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The file's content, piece by piece; tensors are views of their own memory where they are contiguous."""
    start, names = header(tensors, metadata)
    yield start
    for name in names:
        if tensors[name].numel():
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().data


def write(stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Writes ``tensors`` to ``stream`` as safetensors and returns the SHA-256 of what was written."""
    digest = hashlib.sha256()
    for piece in pieces(tensors, metadata):
        stream.write(piece)
        digest.update(piece)
    return digest.hexdigest()
