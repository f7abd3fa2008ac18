"""Envelopes as bytes: a safetensors file whose metadata is a JSON header. Nothing here can unpickle."""

from __future__ import annotations

import json
from typing import Any

from samfed_monai.errors import Problem, Problems
from samfed_monai.federation import tensor_file
from samfed_monai.federation.envelope import Envelope, Kind, MessageRefused

#: Largest message that is decoded unless told otherwise: ten times SAM ViT-B's 375 MB.
MAX_BYTES = 4 * 1024**3
_KEY = "samfed"
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
    """Bytes of ``to_bytes(envelope)``, counted without serialising the tensors."""
    return tensor_file.size(envelope.tensors, _metadata(envelope))


def to_bytes(envelope: Envelope) -> bytes:
    """The message as bytes: a valid safetensors file."""
    return b"".join(tensor_file.pieces(envelope.tensors, _metadata(envelope)))


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
        header = _header(payload)
        tensors = load(payload)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        found = f"bytes that are not ({type(error).__name__})"
        raise MessageRefused([Problem("message", found=found, expected="safetensors with a samfed header")]) from None
    _check_header(header)
    header["kind"] = Kind(header["kind"])
    return Envelope(tensors=tensors, **header)


def _metadata(envelope: Envelope) -> dict[str, str]:
    return {_KEY: json.dumps(envelope.header(), sort_keys=True, allow_nan=False)}


def _header(payload: bytes) -> Any:
    length = int.from_bytes(payload[:8], "little")
    if not 2 <= length <= len(payload) - 8:
        raise ValueError("header length")
    return json.loads(json.loads(payload[8 : 8 + length])["__metadata__"][_KEY])


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
