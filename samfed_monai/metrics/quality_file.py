"""Reads and writes a model's quality: in a file beside the weights, and inside an exported file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Refused, refused
from samfed_monai.core.io import PUBLIC, canonical_hash, parse_json, read_json, sha256_file, write_json
from samfed_monai.core.validators import schema_problems
from samfed_monai.data.datalist import LEAST_IMAGES
from samfed_monai.metrics.quality import QUALITY_FILE, Calibration, Colours, Quality

WEIGHTS = "model_sha256"
"""Key of the SHA-256 of the weights that the file belongs to, if they are a single file."""

QUALITY = "quality"
"""Key of the quality in an exported file's metadata, as JSON text, or in a bundle's ``metadata.json``, as an object."""

_SCHEMA: dict[str, Any] = read_json(Path(__file__).with_name("quality.schema.json"))
_HINT = "delete it, or create it again: samfed evaluate BUNDLE --model MODEL … --split validation --calibrate"


def quality_path(model: Path) -> Path:
    """Path of a model's quality file: in a run's folder, or ``model.quality.json`` beside a weights file."""
    return model / QUALITY_FILE if model.is_dir() else model.with_suffix(".quality.json")


def write_quality(quality: Quality, model: Path) -> Path:
    """Writes the quality file of a run, or of a weights file (with its hash), and returns its path."""
    weights_hash = {} if model.is_dir() else {WEIGHTS: sha256_file(model)}
    path = quality_path(model)
    write_json(path, {**quality.as_dict(), **weights_hash}, mode=PUBLIC)
    return path


def read_quality(model: Path) -> Quality:
    """Reads the quality of a run or a weights file; an empty one without a file.

    Raises:
        Refused: the file belongs to other weights, or is invalid.
    """
    path = quality_path(model)
    if not path.is_file():
        return Quality()
    content = read_json(path)
    if not model.is_dir() and isinstance(content, dict) and content.get(WEIGHTS) != sha256_file(model):
        found, expected = f"{str(content.get(WEIGHTS))[:12]}, a hash of other weights", f"the SHA-256 of {model.name}"
        raise refused(f"{path} -> {WEIGHTS}", found, expected, _HINT)
    return quality_of(content, str(path))


def quality_of(content: Any, where: str, hint: str = _HINT) -> Quality:
    """Parses a quality from JSON content or text.

    Args:
        content: content of a file or of an exported network's metadata; text is decoded.
        where: place, for the message.
        hint: how to fix it, for the message.

    Raises:
        Refused: invalid content.
    """
    try:
        content = parse_json(content) if isinstance(content, str) else content
        if problems := schema_problems(content, _SCHEMA, where):
            raise Refused([replace(each, hint=each.hint or hint) for each in problems])
        calibration, colours = content.get("calibration"), content.get("colours")
        if calibration:
            estimates, dice = (tuple(calibration[name]) for name in ("estimates", "dice"))
            calibration = Calibration(estimates, dice, calibration["margin"], calibration["images"])
        if colours:
            colours = Colours(tuple(colours["low"]), tuple(colours["high"]))
        return Quality(calibration, colours, tuple(content.get("images", ())))
    except Refused:
        raise
    except ValueError as error:
        raise refused(where, str(error), "a model's quality", hint) from None


def digest_of(hashes: Collection[str]) -> str | None:
    """Digest of a set of images, which reveals no single hash; ``None`` for fewer than :data:`LEAST_IMAGES`.

    Args:
        hashes: SHA-256 of the images, in any order.
    """
    return canonical_hash(sorted(hashes)) if len(hashes) >= LEAST_IMAGES else None


def digests_of(sites: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """Digests of the images of each site, and of all sites together.

    Args:
        sites: name to the SHA-256 of its images.
    """
    all_hashes = [each for hashes in sites.values() for each in hashes]
    digests = {digest_of(hashes) for hashes in (all_hashes, *sites.values())}
    return tuple(sorted(digest for digest in digests if digest is not None))


def recognised(sites: Mapping[str, Collection[str]], digests: Collection[str]) -> list[str]:
    """Names of the sites whose images match one of the digests; all sites if their images together match one.

    Args:
        sites: see :func:`digests_of`.
        digests: ``images`` of a :class:`Quality`.
    """
    if digest_of([each for hashes in sites.values() for each in hashes]) in digests:
        return list(sites)
    return [name for name, hashes in sites.items() if digest_of(hashes) in digests]
