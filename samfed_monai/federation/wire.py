"""Envelopes as bytes: a safetensors file whose metadata is a JSON header. Nothing here can unpickle.

Soft masks travel deflated (they are mostly 0 and 255); their shapes stand in the header, and nothing is inflated beyond
what these shapes allow.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from samfed_monai.errors import Problem, Problems
from samfed_monai.federation import tensor_file
from samfed_monai.federation.envelope import Envelope, Kind, MessageRefused

if TYPE_CHECKING:
    from torch import Tensor

#: Largest message that is decoded unless told otherwise: ten times SAM ViT-B's 375 MB.
MAX_BYTES = 4 * 1024**3
_KEY = "samfed"
_SHAPES = "shapes"
_LEVEL = 6  # of deflate; 9 gains 2 % for twice the time
_TYPES: dict[str, type] = {
    "version": int,
    "kind": str,
    "site": str,
    "round": int,
    "rounds": int,
    "seed": int,
    "n": int,
    "metrics": dict,
    "extra": dict,
}


def wire_size(envelope: Envelope) -> int:
    """Bytes of ``to_bytes(envelope)``, counted without serialising weights."""
    tensors, metadata = _packed(envelope)
    return tensor_file.size(tensors, metadata)


def to_bytes(envelope: Envelope) -> bytes:
    """The message as bytes: a valid safetensors file."""
    return b"".join(tensor_file.pieces(*_packed(envelope)))


def from_bytes(payload: bytes, *, max_bytes: int = MAX_BYTES) -> Envelope:
    """Reads a message; what it says is still to be checked with :meth:`Envelope.check`.

    Args:
        payload: what arrived.
        max_bytes: longer payloads are refused before a byte of them is decoded.

    Raises:
        MessageRefused: too long, not safetensors (a pickle, for instance), or a header that is not ours.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if len(payload) > max_bytes:
        raise MessageRefused([Problem("message", found=f"{len(payload)} bytes", expected=f"at most {max_bytes} bytes")])
    try:
        header, shapes = _header(payload)
        tensors = load(payload)
        if shapes is not None:
            tensors = {name: _inflate(tensor, shapes[name], max_bytes) for name, tensor in tensors.items()}
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError, zlib.error) as error:
        found = f"bytes that are not ({type(error).__name__})"
        raise MessageRefused([Problem("message", found=found, expected="safetensors with a samfed header")]) from None
    _check_header(header)
    header["kind"] = Kind(header["kind"])
    return Envelope(tensors=tensors, **header)


def _packed(envelope: Envelope) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    metadata = {_KEY: json.dumps(envelope.header(), sort_keys=True, allow_nan=False)}
    if envelope.kind != Kind.SOFT_MASKS:
        return envelope.tensors, metadata
    metadata[_SHAPES] = json.dumps({name: list(tensor.shape) for name, tensor in envelope.tensors.items()})
    return {name: _deflate(tensor) for name, tensor in envelope.tensors.items()}, metadata


def _deflate(masks: Tensor) -> Tensor:
    if masks.dtype != torch.uint8:
        raise TypeError(f"soft masks travel as uint8, found {masks.dtype}")
    packed = zlib.compress(masks.detach().cpu().contiguous().numpy().data, _LEVEL)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def _inflate(packed: Tensor, shape: Any, max_bytes: int) -> Tensor:
    if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("shape")
    size = math.prod(shape)
    if size > max_bytes or packed.dtype != torch.uint8:
        raise ValueError("size")
    stream = zlib.decompressobj()
    content = stream.decompress(packed.numpy().tobytes(), size + 1)
    if len(content) != size:
        raise ValueError("length")
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)
        if size
        else torch.empty(shape, dtype=torch.uint8)
    )


def _header(payload: bytes) -> tuple[Any, Any]:
    length = int.from_bytes(payload[:8], "little")
    if not 2 <= length <= len(payload) - 8:
        raise ValueError("header length")
    metadata = json.loads(payload[8 : 8 + length])["__metadata__"]
    shapes = metadata.get(_SHAPES)
    return json.loads(metadata[_KEY]), None if shapes is None else json.loads(shapes)


def _check_header(header: Any) -> None:
    problems = Problems()
    if not isinstance(header, dict) or header.keys() != _TYPES.keys():
        problems.add("message -> header", found="other fields", expected=", ".join(_TYPES))
    else:
        for name, kind in _TYPES.items():
            if type(header[name]) is not kind:
                found = type(header[name]).__name__
                problems.add(f"message -> {name}", found=found, expected=kind.__name__)
            elif name == "kind" and header[name] not in {kind.value for kind in Kind}:
                problems.add("message -> kind", found="another kind", expected=", ".join(kind.value for kind in Kind))
    if len(problems):
        raise MessageRefused(problems)
