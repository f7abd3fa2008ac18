"""What a weights file says about itself, read from its header alone (a safetensors file begins with JSON)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SETTINGS: Mapping[str, type] = {"network_name": str, "image_size": int}
"""Knobs that must be the same in training and in inference, and their types."""

_MOST_HEADER_BYTES = 100 * 1024 * 1024  # the limit of the safetensors library itself


def read_header(path: str | Path) -> dict[str, str]:
    """Metadata of a safetensors file; empty for a file without any, or of another kind."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if not 0 < size <= _MOST_HEADER_BYTES:
            return {}
        try:
            metadata = json.loads(stream.read(size)).get("__metadata__", {})
        except ValueError:
            return {}
    return {str(key): str(value) for key, value in metadata.items()}


def settings_of(path: str | Path) -> dict[str, Any]:
    """Those of :data:`SETTINGS` that a weights file's header holds, with their types."""
    header = read_header(path)
    found: dict[str, Any] = {}
    for name, kind in SETTINGS.items():
        text = header.get(name, "")
        if text and (kind is str or text.isdigit()):
            found[name] = kind(text)
    return found
