"""Files that a configuration names: they exist, and they are the ones that their hashes say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from samfed_monai.config.knobs import shipped_knobs
from samfed_monai.config.layers import BundleConfig
from samfed_monai.errors import Problem, Refused
from samfed_monai.io import sha256_file

WEIGHT_KNOBS = ("adapter", "checkpoint", "encoder_weights", "initial_weights", "model", "weights")
"""Knobs that hold the path of a weights file or null; ``<knob>_sha256`` beside one, if not null, is its hash.

``encoder_weights`` may hold a word (``pretrained``, ``teacher``) or a name that ``samfed weights`` knows instead."""

FOLDER_KNOBS = ("data_root", "dataset_dir")
"""Knobs that hold the path of an existing folder or null."""


def check_files(config: BundleConfig, bundle_root: Path, *, ready: bool = True) -> Iterator[Problem]:
    """Weights and folders that do not exist, files whose hash differs, data lists that changed.

    Args:
        config: the layers.
        bundle_root: folder of the bundle, whose ``models/`` may hold SAM's weights.
        ready: ``False`` takes values that stand as the packaged bundle ships them for placeholders.
    """
    content = dict(config.content)
    for layer, _ in () if ready else config.layers:
        for name, value in shipped_knobs(layer).items():
            if name in content and content[name] == value:
                del content[name]
    for name in WEIGHT_KNOBS:
        path = _given(content, name)
        if name == "encoder_weights" and path is not None:
            try:
                path = _start(content, str(path))
            except Refused as refused:
                yield from refused.problems
                continue
        if path is not None and not path.is_file():
            mend = "check the path, or make it with `samfed teach`" if name == "adapter" else "check the path"
            yield Problem(config.where((name,)), found=f"no file {str(path)!r}", expected="a weights file", mend=mend)
        elif path is not None:
            yield from _hash(config, name, path)
    for name in FOLDER_KNOBS:
        path = _given(content, name)
        if path is not None and not path.is_dir():
            where = config.where((name,))
            yield Problem(where, found=f"no folder {str(path)!r}", expected="a folder", mend="check the path")
    datalist = _given(content, "datalist")
    if datalist is not None and not datalist.is_file():
        found, mend = f"no file {str(datalist)!r}", "check the path, or make one with `samfed prepare`"
        yield Problem(config.where(("datalist",)), found=found, expected="a data list", mend=mend)
    elif datalist is not None:
        yield from _datalist(datalist)
    if ready:
        yield from check_base_weights(content, bundle_root)


def _given(content: Mapping[str, Any], name: str) -> Path | None:
    value = content.get(name)
    if not isinstance(value, str) or not value or value.startswith(("$", "@", "%")):
        return None
    return Path(value).expanduser()


def _start(content: Mapping[str, Any], weights: str) -> Path | None:
    from samfed_monai.networks.weights import find_checkpoint, named, starts_from

    begun = starts_from(str(content.get("network_name")), weights)
    return find_checkpoint(str(begun)) if begun and named(str(begun)) else begun and Path(begun)


def _hash(config: BundleConfig, name: str, path: Path) -> Iterator[Problem]:
    declared = config.content.get(f"{name}_sha256")
    if not isinstance(declared, str) or declared.startswith(("$", "@", "%")):
        return
    found = sha256_file(path)
    if found != declared.strip().lower():
        yield Problem(
            config.where((f"{name}_sha256",)),
            found=f"{found} in {str(path)!r}",
            expected=f"SHA-256 {declared}",
            mend="it is another file, or a damaged one: fetch it again, or correct the hash if you trust the file",
        )


def _datalist(path: Path) -> Iterator[Problem]:
    from samfed_monai.data import DataList

    try:
        DataList.load(path)
    except Refused as refused:
        yield from refused.problems


def check_base_weights(content: Mapping[str, Any], bundle_root: Path) -> Iterator[Problem]:
    """SAM's checkpoint, which a teacher's configuration names (``base``) unless it gives a path (``checkpoint``)."""
    base = content.get("base")
    if not isinstance(base, str) or base.startswith(("$", "@")) or _given(content, "checkpoint") is not None:
        return
    from samfed_monai.networks import find_checkpoint

    try:
        find_checkpoint(base, bundle_root)
    except Refused as refused:
        yield from refused.problems
