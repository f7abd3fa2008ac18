"""A workflow's configuration: its files read strictly and merged as MONAI does, and who said what."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samfed_monai.config.ids import MISSING, join_id, lookup, split_id
from samfed_monai.errors import Problem, Refused, did_you_mean
from samfed_monai.io import read_json

WORKFLOWS: dict[str, tuple[str, ...]] = {
    "train": ("train.json",),
    "teacher": ("teacher.json",),
    "federate": ("federate.json",),
    "evaluate": ("train.json", "evaluate.json"),
    "inference": ("inference.json",),
}
"""Config files of each workflow, in the order in which MONAI merges them."""

COMMAND_LINE = "command line"


def workflow_files(bundle_root: Path, workflow: str) -> list[Path]:
    """Config files of a workflow of a bundle.

    Raises:
        Refused: an unknown workflow.
    """
    if workflow not in WORKFLOWS:
        expected = f"one of {sorted(WORKFLOWS)}"
        raise Refused(
            [Problem("workflow", found=repr(workflow), expected=expected, mend=did_you_mean(workflow, WORKFLOWS))]
        )
    return [bundle_root / "configs" / name for name in WORKFLOWS[workflow]]


class BundleConfig:
    """Layers of ``id: value`` pairs, merged in order.

    Args:
        files: JSON files, later ones on top; what cannot be read is kept in :attr:`problems`.
        overrides: ids and values of the command line, on top of everything.
        source: what messages call the overrides.

    Attributes:
        content: the merged configuration.
        layers: name of each layer and its own pairs, bottom first.
        problems: what went wrong while reading.
        source: name of the topmost layer, the overrides.
    """

    def __init__(
        self, files: Sequence[Path], overrides: Mapping[str, Any] | None = None, source: str = COMMAND_LINE
    ) -> None:
        self.content: dict[str, Any] = {}
        self.layers: list[tuple[str, dict[str, Any]]] = []
        self.problems: list[Problem] = []
        for path in files:
            self._read(path)
        self.source = source
        self._put(source, dict(overrides or {}))

    def _read(self, path: Path) -> None:
        try:
            content = read_json(path, byte_order_mark=False)
        except Refused as refused:
            self.problems.extend(refused.problems)
            return
        if not isinstance(content, dict):
            self.problems.append(Problem(path.name, found=type(content).__name__, expected="an object of ids"))
            return
        self._put(path.name, content)

    def _put(self, name: str, pairs: dict[str, Any]) -> None:
        _merge(self.content, pairs)
        self.layers.append((name, pairs))

    def below(self, layer: int) -> dict[str, Any]:
        """The configuration as it stands without the layer of that index and those above it."""
        content: dict[str, Any] = {}
        for _, pairs in self.layers[:layer]:
            _merge(content, pairs)
        return content

    def where(self, parts: Sequence[str]) -> str:
        """``file -> id`` of an id, where the file is the topmost layer that says something about it."""
        for name, pairs in reversed(self.layers):
            for key, value in pairs.items():
                own = split_id(key)
                rest = parts[len(own) :]
                if tuple(parts[: len(own)]) == own and lookup(value, rest) is not MISSING:
                    return f"{name} -> {join_id(parts)}"
        return f"{self.layers[0][0]} -> {join_id(parts)}"


def _merge(content: dict[str, Any], pairs: Mapping[str, Any]) -> None:
    for key, value in pairs.items():
        _set(content, split_id(key), copy.deepcopy(value), merge=key.startswith("+"))


def _set(content: dict[str, Any], parts: tuple[str, ...], value: Any, *, merge: bool) -> None:
    place: Any = content
    for part in parts[:-1]:
        place = lookup(place, (part,)) if lookup(place, (part,)) is not MISSING else _new(place, part)
    last: Any = int(parts[-1]) if isinstance(place, list) and parts[-1].isdigit() else parts[-1]
    old = lookup(place, (str(last),))
    if merge and isinstance(old, dict) and isinstance(value, dict):
        old.update(value)
    elif merge and isinstance(old, list) and isinstance(value, list):
        old.extend(value)
    elif isinstance(place, dict) or (isinstance(place, list) and old is not MISSING):
        place[last] = value


def _new(place: Any, part: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if isinstance(place, dict):
        place[part] = made
    return made
