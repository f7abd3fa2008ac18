"""A workflow's configuration: ids, files read strictly and merged as MONAI does, and the part that is used."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Refused, did_you_mean, refused
from samfed_monai.core.io import read_json

MISSING = object()
REFERRING = ("@", "$", "%")
"""What text of a configuration begins with that is a reference, an expression or a macro of MONAI."""

_REFERENCE = re.compile(r"@(\w+(?:::\w+)*)")


def split_id(key: str) -> tuple[str, ...]:
    """``"a#b::0"`` as ``("a", "b", "0")``; a leading ``+`` (MONAI's "merge") is no part of the id."""
    return tuple(key.lstrip("+").replace("#", "::").split("::"))


def join_id(parts: Iterable[str]) -> str:
    return "#".join(parts)


def is_note(name: str) -> bool:
    """Whether an id on top of a file says nothing to a run: one that begins with ``_``, or an editor's ``$schema``."""
    return name.startswith("_") or name == "$schema"


def is_code(value: Any) -> bool:
    """Whether a text is an expression, a reference or a macro of MONAI rather than a value."""
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def lookup(content: Any, parts: Iterable[str]) -> Any:
    """What is at an id, or ``MISSING``."""
    for part in parts:
        if isinstance(content, dict) and part in content:
            content = content[part]
        elif isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        else:
            return MISSING
    return content


def parsed(parser: Any, name: str, default: Any = None) -> Any:
    """What a MONAI ``ConfigParser`` has at an id, resolved and built.

    ``name in parser`` is not asked: where the answer is no, MONAI first searches all names for a likely spelling.

    Args:
        parser: of a bundle; ``None``, of a workflow without a configuration, has nothing.
        name: id, such as ``train#dataset``.
        default: where nothing is there.
    """
    if parser is None or lookup(parser.config, split_id(name)) is MISSING:
        return default
    return parser.get_parsed_content(name)


def flat(group: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as overrides by id: ``{"a": {"b": 1}}`` becomes ``{"a#b": 1}``; components stay whole.

    An override of ``a`` would replace all of ``a``; one of ``a#b`` changes just that.
    """
    pairs: dict[str, Any] = {}
    for name, value in group.items():
        if isinstance(value, Mapping) and value and "_target_" not in value:
            pairs |= flat(value, f"{prefix}{name}#")
        else:
            pairs[f"{prefix}{name}"] = value
    return pairs


def children(content: Any) -> Iterator[tuple[str, Any]]:
    """Names and values one level down; nothing for plain values."""
    if isinstance(content, dict):
        yield from content.items()
    elif isinstance(content, list):
        yield from ((str(index), value) for index, value in enumerate(content))


def walk(content: Any, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every id with its value, parents before children."""
    yield parts, content
    for name, value in children(content):
        yield from walk(value, (*parts, name))


def references(text: str) -> list[tuple[str, ...]]:
    """Ids that a string refers to with ``@``; relative ones (``@#sibling``) are left to MONAI."""
    if not text.startswith(("@", "$")):
        return []
    return [tuple(match.split("::")) for match in _REFERENCE.findall(text.replace("#", "::"))]


_MOST_HOPS = 8  # ids that refer to one another in a circle are MONAI's to refuse


def follow(content: Any, place: Sequence[str], value: Any) -> tuple[tuple[str, ...], Any]:
    """Where ``value``, which is at ``place``, leads: ``@option`` hands an option on as it is, perhaps by other ids.

    Returns:
        The last id and what is there, which may be ``MISSING``; an expression stays as it is.
    """
    place = tuple(place)
    for _ in range(_MOST_HOPS):
        if not (isinstance(value, str) and value.startswith("@") and references(value)):
            break
        place = references(value)[0]
        value = lookup(content, place)
    return place, value


WORKFLOWS: dict[str, tuple[str, ...]] = {
    "train": ("train.json",),
    "teacher": ("teacher.json",),
    "federate": ("train.json", "federate.json"),
    "evaluate": ("train.json", "evaluate.json"),
    "inference": ("inference.json",),
}
"""Config files of each workflow, in the order in which MONAI merges them."""

FEDERATE = WORKFLOWS["federate"][-1]
_OWN = frozenset(name for files in WORKFLOWS.values() for name in files)

COMMAND_LINE = "command line"


def workflow_files(bundle_root: Path, workflow: str) -> list[Path]:
    """Config files of a workflow of a bundle.

    Raises:
        Refused: an unknown workflow.
    """
    if workflow not in WORKFLOWS:
        expected = f"one of {sorted(WORKFLOWS)}"
        raise refused("workflow", found=repr(workflow), expected=expected, hint=did_you_mean(workflow, WORKFLOWS))
    return [bundle_root / "configs" / name for name in WORKFLOWS[workflow]]


class BundleConfig:
    """Layers of ``id: value`` pairs, merged in order.

    Args:
        files: JSON files, later ones on top; what cannot be read is kept in :attr:`problems`.
        overrides: ids and values of the command line, on top of everything.
        source: what messages call the overrides.
        base: how many files each site of a federation has itself, ``train.json`` and its variant; what those above
            them set is sent.

    Attributes:
        content: the merged configuration.
        layers: name of each layer and its own pairs, bottom first.
        problems: what went wrong while reading.
        source: name of the topmost layer, the overrides.
        base: as the argument.
    """

    def __init__(
        self,
        files: Sequence[Path],
        overrides: Mapping[str, Any] | None = None,
        source: str = COMMAND_LINE,
        *,
        base: int = 1,
    ) -> None:
        self.content: dict[str, Any] = {}
        self.layers: list[tuple[str, dict[str, Any]]] = []
        self.problems: list[Problem] = []
        self._below: dict[int, dict[str, Any]] = {}
        for path in files:
            self._read(path)
        self.source, self.base = source, base
        self._put(source, dict(overrides or {}))

    @classmethod
    def of_layers(
        cls, layers: Sequence[tuple[str, dict[str, Any]]], source: str = COMMAND_LINE, *, base: int = 1
    ) -> BundleConfig:
        """The same of layers that were read before, bottom first; the last is the one of ``source``."""
        config = cls([], None, source, base=base)
        config.layers.clear()
        for name, pairs in layers:
            config._put(name, pairs)
        return config

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

    @property
    def own(self) -> list[int]:
        """Indices of the layers that are the workflow's own files: no variants, no overrides."""
        names = [name for name, _ in self.layers if name != self.source]
        return [index for index, name in enumerate(names) if index == 0 or name in _OWN]

    @property
    def federates(self) -> bool:
        """Whether ``federate.json`` is among the layers."""
        return any(name == FEDERATE for name, _ in self.layers)

    def below(self, layer: int) -> dict[str, Any]:
        """The configuration without the layer of that index and those above it; merged once, to read."""
        if layer not in self._below:
            content: dict[str, Any] = {}
            for _, pairs in self.layers[:layer]:
                _merge(content, pairs)
            self._below[layer] = content
        return self._below[layer]

    def where(self, parts: Sequence[str]) -> str:
        """``file -> id`` of an id, where the file is the topmost layer that says something about it."""
        for name, pairs in reversed(self.layers):
            if any(_says(key, value, parts) for key, value in pairs.items()):
                return f"{name} -> {join_id(parts)}"
        return f"{self.layers[0][0]} -> {join_id(parts)}"

    def history(self, parts: Sequence[str]) -> list[tuple[int, Any]]:
        """Indices of the layers that say something about an id, or about a part of it, each with what was there then.

        Bottom first: the last is what counts, those before it are what it replaced, and what a layer took away
        altogether is not among them.
        """
        parts, said = tuple(parts), list[tuple[int, Any]]()
        for index, (_, pairs) in enumerate(self.layers):
            keys = ((key, value, split_id(key)) for key, value in pairs.items())
            here = any(_says(key, value, parts) or own[: len(parts)] == parts for key, value, own in keys)
            value = lookup(self.below(index + 1), parts)
            if value is MISSING:
                said.clear()
            elif here:
                said.append((index, value))
        return said


def _says(key: str, value: Any, parts: Sequence[str]) -> bool:
    own = split_id(key)
    return tuple(parts[: len(own)]) == own and lookup(value, parts[len(own) :]) is not MISSING


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


DISABLED = "_disabled_"
_Path = tuple[str, ...]


def reached(content: Mapping[str, Any], roots: Iterable[str]) -> dict[str, Any]:
    """The ids that ``roots`` lead to, with their values; disabled components are ``None`` in them, or what a reference
    takes of their arguments.

    What is left out can have any value without a change in what the roots compute: settings of a term that a variant
    disables, for instance, once nothing else refers to them, or one guide where ``@guides#sam`` names another.

    Args:
        content: a merged, unresolved configuration.
        roots: ids to begin with; one that the configuration lacks is passed over.

    Returns:
        In the order of ``content``; of a dictionary of which only parts are referred to, these parts. All of
        ``content`` where MONAI's macros (``%``) are in it, which may copy from anywhere.
    """
    found = set[_Path]()
    waiting: list[_Path] = [split_id(name) for name in roots if lookup(content, split_id(name)) is not MISSING]
    while waiting:
        path = _there(content, waiting.pop())
        if not path or _covered(content, found, path):
            continue
        found.add(path)
        for _, text in walk(_enabled(lookup(content, path))):
            if not isinstance(text, str):
                continue
            if text.startswith("%"):
                return {name: _enabled(value) for name, value in content.items()}
            if "@#" in text:  # relative to its place: somewhere below the same id on top
                waiting.append(path[:1])
            waiting += references(text)
    return {name: _only(value, (name,), found) for name, value in content.items() if _has(found, (name,))}


def _covered(content: Mapping[str, Any], found: set[_Path], path: _Path) -> bool:
    """Whether a path is found already, as a part of something else that is."""
    for length in range(len(path), 0, -1):
        if path[:length] in found:
            return True
        if _is_disabled(lookup(content, path[: length - 1])):  # of which a reference may take an argument alone
            return False
    return False


def _there(content: Mapping[str, Any], path: _Path) -> _Path:
    """The part of ``path`` that leads through dictionaries to something that is there."""
    for length in range(1, len(path) + 1):
        value = lookup(content, path[:length])
        if value is MISSING:
            return path[: length - 1]
        if not isinstance(value, dict):
            return path[:length]
    return path


def _has(found: set[_Path], path: _Path) -> bool:
    return any(other[: len(path)] == path for other in found)


def _only(value: Any, path: _Path, found: set[_Path], whole: bool = False) -> Any:
    whole = whole or path in found
    if not isinstance(value, dict):
        return _enabled(value)
    whole = whole and not _is_disabled(value)
    below = ((name, part, (*path, name)) for name, part in value.items())
    kept = {name: _only(part, inner, found, whole) for name, part, inner in below if whole or _has(found, inner)}
    return None if _is_disabled(value) and not kept else kept


def _is_disabled(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get(DISABLED) is True


def _enabled(part: Any) -> Any:
    if isinstance(part, Mapping):
        return None if _is_disabled(part) else {name: _enabled(value) for name, value in part.items()}
    return [_enabled(value) for value in part] if isinstance(part, list) else part
