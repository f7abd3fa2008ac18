"""Knobs: the plain values on top of a bundle's file, which a clinician turns and which never run code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from samfed_monai.config.bundles import packaged_bundles
from samfed_monai.config.ids import join_id, split_id, walk
from samfed_monai.config.layers import WORKFLOWS, BundleConfig
from samfed_monai.errors import Problem, Refused
from samfed_monai.io import read_json

_CODE = ("$", "%")
_GROUP_OF = {"train.json": "client", "teacher.json": "teacher"}  # in federate.json


def is_plain(value: Any) -> bool:
    """Text, number, true, false, null, or a list of these."""
    if isinstance(value, list):
        return all(is_plain(item) and not isinstance(item, list) for item in value)
    return value is None or isinstance(value, (str, bool, int, float))


def is_value(value: Any) -> bool:
    """A plain value that is no expression and refers to nothing."""
    return is_plain(value) and not _holds_code(value)


def knobs_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of one file: the plain values on top, down to ``imports`` or to the first object.

    An expression below the last plain value belongs to the computed part; one amid the plain values is a knob with
    code in it. An ``imports`` above all knobs is stepped over, and so are ids that begin with ``_``, which are notes.
    """
    knobs: dict[str, Any] = {}
    waiting: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) or (name == "imports" and knobs):
            break
        if name == "imports" or name.startswith("_") or not is_plain(value):
            continue
        waiting[name] = value
        if not _holds_code(value):
            knobs |= waiting
            waiting = {}
    return knobs


def _holds_code(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and text.startswith((*_CODE, "@")) for text in texts)


def check_knobs(config: BundleConfig) -> Iterator[Problem]:
    """Code where only values belong: in a file's knobs and a variant's, anywhere on the command line.

    A knob is what stands above a file's ``imports``, and every id on top of a file whose value in the packaged bundles
    is plain, the rarely turned ones below ``imports`` too.
    """
    known = _all_knobs(config)
    for layer, pairs in config.layers:
        if layer == config.source:
            suspects = {id_: value for key, item in pairs.items() for id_, value in _texts(key, item)}
        else:
            knobs = {key: item for key, item in pairs.items() if key in known and is_plain(item)}
            suspects = {id_: value for key, item in knobs.items() for id_, value in _texts(key, item)}
        for key, value in suspects.items():
            if value.startswith(_CODE):
                yield Problem(
                    f"{layer} -> {key}",
                    found=repr(value),
                    expected="a plain value",
                    mend=f"a value that begins with {value[0]!r} would run code or read another file",
                )


def shipped_knobs(file: str) -> dict[str, Any]:
    """Knobs of the packaged bundles' own file of that name, with the values they ship with."""
    return {name: value for content in _shipped(file) for name, value in knobs_of(content).items()}


def home_of(name: str, file: str) -> str:
    """Where a knob that ``file`` does not know belongs, as a mend; empty where no packaged file knows it either."""
    homes = [files[-1] for files in WORKFLOWS.values() if files[-1] != file and name in shipped_plain(files[-1])]
    if name in shipped_plain(file) or not homes:
        return ""
    groups = _GROUP_OF if file == "federate.json" else {}
    return "known in " + " and ".join(
        f"{home} (here: {groups[home]}#{name})" if home in groups else home for home in homes
    )


def _shipped(file: str) -> Iterator[dict[str, Any]]:
    """What the packaged bundles' own files of that name hold; one that cannot be read is told elsewhere."""
    for folder in packaged_bundles().values():
        path = folder / "configs" / file
        with suppress(Refused):
            if path.is_file():
                yield read_json(path)


def _all_knobs(config: BundleConfig) -> set[str]:
    files = [(layer, pairs) for layer, pairs in config.layers if layer != config.source]
    return {name for layer, pairs in files for name in (*knobs_of(pairs), *shipped_plain(layer))}


def shipped_plain(file: str) -> set[str]:
    """Ids on top of the packaged bundles' own file of that name whose value there is plain, wherever they stand."""
    items = (item for content in _shipped(file) for item in content.items())
    return {name for name, value in items if is_value(value)} - {"imports"}


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    for parts, item in walk(value, split_id(key)):
        if isinstance(item, str):
            yield join_id(parts), item
