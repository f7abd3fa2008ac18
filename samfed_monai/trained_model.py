"""A trained model on disk: which file it is, and the settings that it was trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samfed_monai.errors import Problem, Refused
from samfed_monai.io import read_json

SETTINGS: Mapping[str, type] = {"network_name": str, "image_size": int}
"""Knobs that must be the same in training and in inference, and their types."""

_MOST_HEADER_BYTES = 100 * 1024 * 1024  # the limit of the safetensors library itself


def model_file(path: str | Path) -> Path:
    """The weights that a path names: the file itself, or a run folder's selected (best) global model.

    Raises:
        Refused: a folder that is no finished run, or one whose server has no network (``fedmd``, ``local_only``).
    """
    path = Path(path).expanduser().resolve()
    if not path.is_dir():
        return path
    if not (path / "results.json").is_file():
        mend = "name a weights file, or wait until the run is finished"
        raise Refused([Problem(str(path), found="no results.json in it", expected="a finished run", mend=mend)])
    results = read_json(path / "results.json")
    number = results["models"][results["selected"]]["round"]
    folder = path / "rounds" / f"{number:03d}"
    if _is_empty(folder / "global.safetensors"):
        found, expected = "no network at the server", "a run whose server has one"
        mend = f"each site has its own, in the states of {folder / 'clients'}; its scores are in results.json"
        raise Refused([Problem(str(path), found=found, expected=expected, mend=mend)])
    return folder / "global.safetensors"


def settings_of(path: str | Path) -> dict[str, Any]:
    """Those of :data:`SETTINGS` that a weights file's own header, or the ``run.json`` of its run, knows."""
    path = Path(path)
    header = read_header(path)
    known = {**_client_of_run(path), **header}
    found: dict[str, Any] = {}
    for name, kind in SETTINGS.items():
        text = str(known.get(name, ""))
        if text and (kind is str or text.isdigit()):
            found[name] = kind(text)
    return found


def read_header(path: str | Path) -> dict[str, str]:
    """Metadata of a safetensors file, which begins with JSON; empty for one without any, or a file of another kind."""
    metadata = _content(path).get("__metadata__", {})
    return {str(key): str(value) for key, value in metadata.items()}


def _is_empty(path: Path) -> bool:
    return _content(path).keys() == {"__metadata__"}


def _content(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if not 0 < size <= _MOST_HEADER_BYTES:
            return {}
        try:
            content = json.loads(stream.read(size))
        except ValueError:
            return {}
    return content if isinstance(content, dict) else {}


def _client_of_run(path: Path) -> dict[str, Any]:
    """Configuration of the run that ``<run>/rounds/NNN/global.safetensors`` belongs to, with the server's network."""
    if len(path.parts) < 4 or path.parent.parent.name != "rounds":
        return {}
    record = path.parent.parent.parent / "run.json"
    if not record.is_file():
        return {}
    client = read_json(record).get("config", {}).get("client", {})
    if not isinstance(client, dict):
        return {}
    # unlike networks: the stored model is the server's own
    return {**client, "network_name": client.get("server_network") or client.get("network_name", "")}
