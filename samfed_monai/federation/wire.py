"""Envelopes as bytes: a safetensors file whose metadata is a JSON header. Nothing here can unpickle.

Soft masks travel deflated, as differences between neighbouring pixels (they are smooth); their shapes stand in the
header, and nothing is inflated beyond what these shapes allow, nor these beyond the largest message.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samfed_monai.core.errors import Problem, Problems
from samfed_monai.federation import tensor_file
from samfed_monai.federation.envelope import Envelope, Kind, MessageRefused

if TYPE_CHECKING:
    from torch import Tensor

#: Largest message that is decoded unless told otherwise: ten times SAM ViT-B's 375 MB.
MAX_BYTES = 4 * 1024**3
_KEY = "samfed"
_SHAPES = "shapes"
_LEVEL = 1  # of deflate; on a network's masks 6 gains 15 % for nine times the time
_MAX_SIDES = 8
_NOT_OURS = (AttributeError, ValueError, KeyError, TypeError, OverflowError, RecursionError, zlib.error)
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
            _check_shapes(shapes, tensors, max_bytes)
            tensors = {name: _inflate(tensor, shapes[name]) for name, tensor in tensors.items()}
    except (*_NOT_OURS, SafetensorError) as error:
        found = f"bytes that are not ({type(error).__name__})"
        raise MessageRefused([Problem("message", found=found, expected="safetensors with a samfed header")]) from None
    _check_header(header)
    header["kind"] = Kind(header["kind"])
    if (shapes is not None) != (header["kind"] == Kind.SOFT_MASKS):
        found = "deflated tensors" if shapes is not None else "plain tensors"
        raise MessageRefused([Problem("message -> tensors", found=found, expected="soft masks deflated, others plain")])
    return Envelope(tensors=tensors, **header)


def _packed(envelope: Envelope) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    metadata = {_KEY: json.dumps(envelope.header(), sort_keys=True, allow_nan=False)}
    if envelope.kind != Kind.SOFT_MASKS:
        return envelope.tensors, metadata
    metadata[_SHAPES] = json.dumps({name: list(tensor.shape) for name, tensor in envelope.tensors.items()})
    return {name: _deflate(tensor) for name, tensor in envelope.tensors.items()}, metadata


def _deflate(masks: Tensor) -> Tensor:
    if masks.dtype != torch.uint8:
        raise MessageRefused([Problem("message -> tensors", found=str(masks.dtype), expected=str(torch.uint8))])
    pixels = masks.detach().cpu().numpy()
    for axis in range(-min(pixels.ndim, 2), 0):  # modulo 256, so that nothing is lost
        pixels = np.diff(pixels, axis=axis, prepend=np.uint8(0))
    return torch.frombuffer(bytearray(zlib.compress(np.ascontiguousarray(pixels).data, _LEVEL)), dtype=torch.uint8)


def _inflate(packed: Tensor, shape: list[int]) -> Tensor:
    size, stream = math.prod(shape), zlib.decompressobj()
    content = stream.decompress(packed.numpy().tobytes(), size + 1)
    if len(content) != size or not stream.eof or stream.unused_data:
        raise ValueError("length")
    pixels = np.frombuffer(content, dtype=np.uint8).reshape(shape)
    for axis in range(-min(pixels.ndim, 2), 0):
        pixels = np.cumsum(pixels, axis=axis, dtype=np.uint8)
    return torch.from_numpy(pixels.copy() if not pixels.flags.writeable else pixels)


def _check_shapes(shapes: Any, tensors: Mapping[str, Tensor], max_bytes: int) -> None:
    if not isinstance(shapes, dict) or shapes.keys() != tensors.keys():
        raise ValueError("names")
    for shape in shapes.values():
        sound = isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)
        if not sound or len(shape) > _MAX_SIDES:
            raise ValueError("shape")
    if sum(math.prod(shape) for shape in shapes.values()) > max_bytes:
        raise ValueError("size")
    if any(tensor.dtype != torch.uint8 for tensor in tensors.values()):
        raise ValueError("dtype")


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
