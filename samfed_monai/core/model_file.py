"""The header of a weights file, read without its tensors: tensor names and the settings of the network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Problems
from samfed_monai.core.io import parse_json, read_json
from samfed_monai.core.run_log import run_record

SETTINGS = ("network_name", "image_size", "classes")
"""Options that must be the same in training and in inference; a file has ``classes`` only if there are several."""
ARGUMENTS = "network_def"
"""Key of a file's header, and of a configuration, with the arguments of its network."""
BASE_SAM = "base_sam"
"""Key of a file's header, and of a run's hashes, with the SHA-256 of the SAM under its network."""

USAGE = "usage"
"""Key of a file's header with instructions for using its network (:func:`usage_of`)."""

CATALOGUE = "samfed_monai.networks.client_network"
"""The component that builds a client network by name."""

_MOST_HEADER_BYTES = 100 * 1024 * 1024  # the limit of the safetensors library itself
_SIDE = re.compile("[0-9]{1,6}")  # of an image, in pixels
_UNSTORED_ARGUMENTS = frozenset({"_target_", "name", "weights", "load", "checkpoint"})  # stored elsewhere, or paths


def usage_of(size: int, classes: Sequence[str] = (), threshold: float = 0.5) -> str:
    """Describes in a sentence how to predict masks with a network; ``docs/export.md`` has the code.

    Args:
        size: side length of the network's input images, pixels.
        classes: names of several classes; empty for one.
        threshold: lowest probability of a foreground pixel, for one class.
    """
    decision = f"sigmoid; foreground is {threshold:g} or more"
    if len(classes) > 1:
        decision = f"the largest of {len(classes) + 1} logits decides: {', '.join(('background', *classes))}"
    return (
        f"input: RGB / 255, (B, 3, {size}, {size}) float32, the image resized with mode area; output: logits, to be "
        f"resized to the image bilinearly (align_corners false); then {decision}"
    )


def full_header(path: str | Path) -> dict[str, str]:
    """Returns the header of a weights file; missing keys are read from the ``run.json`` of its run.

    For a file in a bundle's folder ``models``, the bundle's ``metadata.json`` gives the image size.
    """
    path = Path(path)
    return {**_size_in_bundle(path), **run_settings(_run_record_of(path).get("config", {})), **read_header(path)}


def settings_of(path: str | Path) -> dict[str, Any]:
    """Returns the :data:`SETTINGS` that are known of a weights file (:func:`full_header`)."""
    header = full_header(path)
    size, names = header.get("image_size", ""), _json(header.get("classes", ""))
    several = isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)
    settings = {
        "network_name": header.get("network_name"),
        "image_size": int(size) if _SIDE.fullmatch(size) else None,
        "classes": names if several else None,
    }
    return {name: settings[name] for name in SETTINGS if settings[name]}


def _json(text: str | bytes) -> Any:
    """Parses a header's text; ``None`` if it is not JSON."""
    try:
        return parse_json(text)
    except ValueError:
        return None


def setting_differences(path: str | Path, settings: Mapping[str, Any]) -> list[Problem]:
    """Returns a problem for each setting of a run that differs from the training of the weights that it loads.

    Args:
        path: weights file.
        settings: options by name; only those that :func:`settings_of` knows, too, are compared.
    """
    trained = settings_of(path)
    if trained and len(settings.get("classes") or ()) > 1:
        trained.setdefault("classes", ["foreground"])  # a file that names none was trained on one
    problems = Problems()
    for name in [name for name in SETTINGS if name in trained and name in settings]:
        if trained[name] == settings[name] or (name == "image_size" and ANY_SIZE.get()):
            continue
        expected = f"{trained[name]!r}, as {Path(path).name} was trained"
        value = f'"{trained[name]}"' if name == "classes" else trained[name]
        problems.add(name, repr(settings[name]), expected, f"give --{name} {value}")
    return problems


ANY_SIZE: ContextVar[bool] = ContextVar("any_size", default=False)
"""Whether a network may get images of another size than in training."""


@contextmanager
def any_image_size(allowed: bool) -> Iterator[None]:
    """Sets :data:`ANY_SIZE` inside the block."""
    before = ANY_SIZE.set(allowed)
    try:
        yield
    finally:
        ANY_SIZE.reset(before)


def network_overrides(path: str | Path) -> dict[str, Any]:
    """Further arguments of a weights file's network (:func:`settings_of`), as ``{"network_def#experts": 4}``."""
    arguments = _plain(_json(full_header(path).get(ARGUMENTS, "{}")))
    return {f"{ARGUMENTS}#{name}": value for name, value in arguments.items()}


def base_sam_of(path: str | Path) -> str:
    """SHA-256 of the SAM that a weights file was trained on; empty if unknown, or for networks without SAM."""
    return read_header(path).get(BASE_SAM) or str(_run_record_of(Path(path)).get("hashes", {}).get(BASE_SAM, ""))


def run_settings(config: Mapping[str, Any], site: str = "") -> dict[str, str]:
    """Returns the settings of the server's or a site's network in a run's ``config``, as a weights file's header.

    Args:
        config: content of ``run.json -> config``.
        site: a site with its own network, or "" for the server's.
    """
    client = config.get("client") or {}
    of_site = (config.get("sites") or {}).get(site, {}) if site else {}
    name = of_site.get("network") or of_site.get("network_name") or ("" if site else client.get("server_network"))
    settings = {
        "network_name": name or client.get("network_name"),
        "image_size": of_site.get("image_size") or client.get("image_size"),
        "classes": json.dumps(names) if isinstance(names := client.get("classes"), list) and len(names) > 1 else "",
    }
    definition = client.get(ARGUMENTS)
    if isinstance(definition, dict) and definition.get("_target_") == CATALOGUE:
        own = {key.partition("#")[2]: value for key, value in of_site.items() if key.startswith(f"{ARGUMENTS}#")}
        settings[ARGUMENTS] = json.dumps(_plain({**definition, **own}))
    return {key: str(value) for key, value in settings.items() if value}


def read_header(path: str | Path) -> dict[str, str]:
    """Metadata of a safetensors file; empty for a file without metadata or of another kind."""
    metadata = _content(path).get("__metadata__")
    if not isinstance(metadata, dict):
        return {}
    return {str(key): str(value) for key, value in metadata.items()}


def tensor_names(path: str | Path) -> list[str]:
    """Names of the tensors in a safetensors file, in no particular order; none for a file of another kind."""
    return [name for name in _content(path) if name != "__metadata__"]


def _content(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        content = _json(stream.read(size)) if 0 < size <= _MOST_HEADER_BYTES else None
    return content if isinstance(content, dict) else {}


def _plain(arguments: Any) -> dict[str, Any]:
    """Keeps plain values only, so that a file of another origin can bring in no component and no expression."""
    return {
        str(name): value
        for name, value in (arguments.items() if isinstance(arguments, dict) else ())
        if name not in _UNSTORED_ARGUMENTS and str(name).isidentifier() and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or (isinstance(value, (bool, int, float, str)) and str(value)[:1] not in ("$", "@", "%"))


def _size_in_bundle(path: Path) -> dict[str, str]:
    """The image size in the metadata of the bundle, for a file ``<bundle>/models/<file>``; else empty."""
    metadata = path.resolve().parent.parent / "configs" / "metadata.json"
    value: Any = read_json(metadata) if path.parent.name == "models" and metadata.is_file() else {}
    for key in ("network_data_format", "inputs", "image", "spatial_shape"):
        value = value.get(key) if isinstance(value, dict) else None
    is_square = isinstance(value, list) and value and all(type(side) is int and side == value[0] for side in value)
    return {"image_size": str(value[0])} if is_square else {}


def _run_record_of(path: Path) -> dict[str, Any]:
    """The ``run.json`` of a file ``<run>/rounds/NNN/global.safetensors``; empty for other files."""
    if len(path.parts) < 4 or path.parent.parent.name != "rounds":
        return {}
    return run_record(path.parent.parent.parent)
