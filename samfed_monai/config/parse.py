"""A workflow's configuration: ids, files read strictly and merged as MONAI does, and the parts that are used."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from samfed_monai.config.method import METHOD
from samfed_monai.config.variants import variant_files
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import read_json
from samfed_monai.core.validators import one_of, require

MISSING = object()
REFERRING = ("@", "$", "%")
"""First characters of MONAI's references, expressions and macros."""

_REFERENCE = re.compile(r"@(\w+(?:::\w+)*)")


def split_id(key: str) -> tuple[str, ...]:
    """Splits ``"a#b::0"`` into ``("a", "b", "0")``; a leading ``+`` (MONAI's "merge") is not part of the id."""
    return tuple(key.lstrip("+").replace("#", "::").split("::"))


def join_id(parts: Iterable[str]) -> str:
    return "#".join(parts)


def is_note(name: str) -> bool:
    """Whether a top-level id has no effect on a run: it starts with ``_``, or is an editor's ``$schema``."""
    return name.startswith("_") or name == "$schema"


def is_code(value: Any) -> bool:
    """Whether a value is an expression, a reference or a macro of MONAI."""
    return isinstance(value, str) and value.startswith(REFERRING)


def lookup(content: Any, parts: Iterable[str]) -> Any:
    """Returns the value of an id, or ``MISSING``."""
    for part in parts:
        if isinstance(content, dict) and part in content:
            content = content[part]
        elif isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        else:
            return MISSING
    return content


def parsed(parser: Any, name: str, default: Any = None) -> Any:
    """Returns the resolved and instantiated value of an id in a MONAI ``ConfigParser``.

    ``name in parser`` is avoided, since for a missing name MONAI searches all names for a similar one.

    Args:
        parser: parser of a bundle; ``None`` for a workflow without a configuration.
        name: id, such as ``train#dataset``.
        default: value if the id is missing.
    """
    if parser is None or lookup(parser.config, split_id(name)) is MISSING:
        return default
    return parser.get_parsed_content(name)


def flat(group: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested values to overrides by id: ``{"a": {"b": 1}}`` becomes ``{"a#b": 1}``; components stay whole.

    An override of ``a`` would replace all of ``a``; one of ``a#b`` changes only this value.
    """
    pairs: dict[str, Any] = {}
    for name, value in group.items():
        if isinstance(value, Mapping) and value and "_target_" not in value:
            pairs |= flat(value, f"{prefix}{name}#")
        else:
            pairs[f"{prefix}{name}"] = value
    return pairs


def children(content: Any) -> Iterator[tuple[str, Any]]:
    """Yields the names and values one level down; nothing for plain values."""
    if isinstance(content, dict):
        yield from content.items()
    elif isinstance(content, list):
        yield from ((str(index), value) for index, value in enumerate(content))


def walk(content: Any, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields every id with its value, parents before children."""
    yield parts, content
    for name, value in children(content):
        yield from walk(value, (*parts, name))


def is_component(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def references(text: Any) -> list[tuple[str, ...]]:
    """Ids that a value refers to with ``@``, without relative ones (``@#sibling``)."""
    if not (isinstance(text, str) and text.startswith(("@", "$"))):
        return []
    return [tuple(match.split("::")) for match in _REFERENCE.findall(text.replace("#", "::"))]


_MOST_HOPS = 8  # ends circular references, which MONAI refuses


def follow(content: Any, place: Sequence[str], value: Any) -> tuple[tuple[str, ...], Any]:
    """Follows a value ``@option`` at ``place`` through references, possibly several, to the id with the value.

    Returns:
        The last id and its value, which may be ``MISSING``; an expression is returned unchanged.
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
_WORKFLOW_FILES = frozenset(name for files in WORKFLOWS.values() for name in files)

_OF_MODEL = (WORKFLOWS["evaluate"][-1], WORKFLOWS["inference"][-1])
_SITE_EVALUATION = ("samfed_monai.handlers.SiteEvaluation", "samfed_monai.handlers.evaluation.SiteEvaluation")

COMMAND_LINE = "command line"

SIZES = ("image_size", "spatial_size")
"""Keys whose value is one side of images in pixels, or all sides."""


def workflow_files(bundle_root: Path, workflow: str) -> list[Path]:
    """Config files of a workflow of a bundle.

    Raises:
        Refused: an unknown workflow.
    """
    require(one_of("workflow", workflow, WORKFLOWS))
    return [bundle_root / "configs" / name for name in WORKFLOWS[workflow]]


SITES = "sites"
Layer = tuple[str, dict[str, Any]]
"""Name of a file, or :data:`COMMAND_LINE`, and its ids with their values."""


class BundleConfig:
    """Layers of ``id: value`` pairs, merged in order.

    Args:
        files: JSON files; later ones override earlier ones, and unreadable ones are in :attr:`problems`.
        overrides: ids and values of the command line, the topmost layer.
        base: number of files that each site of a federation has itself, ``train.json`` and the variant; the values of
            later files are sent to it.

    Attributes:
        content: the merged configuration.
        layers: the layers, lowest first.
        problems: errors of reading.
        files, base: the arguments.
        group: group of a federation whose values are the topmost layers: ``("teacher",)`` or ``("sites", <site>)``.
        federation: the configuration that contains the group; itself if this is not the configuration of a group.
    """

    def __init__(
        self, files: Sequence[Path] = (), overrides: Mapping[str, Any] | None = None, *, base: int = 1
    ) -> None:
        self.files, self.base = list(files), base
        self.content: dict[str, Any] = {}
        self.layers: list[Layer] = []
        self.problems: list[Problem] = []
        self.group, self.federation = tuple[str, ...](), self
        self._below: dict[int, dict[str, Any]] = {}
        for path in files:
            self._read(path)
        self._group_start = len(self.layers)  # later layers are the values of the group
        if overrides is not None:
            self.put(COMMAND_LINE, dict(overrides))

    @classmethod
    def of_workflow(
        cls,
        bundle_root: str | Path,
        workflow: str,
        overrides: Mapping[str, Any],
        *,
        variant: str | None = None,
        files: Sequence[Path] | None = None,
    ) -> BundleConfig:
        """Merges the files of a workflow: the first, the variant's, the others, then the overrides.

        Args:
            bundle_root: folder of the bundle.
            workflow: a name in :data:`WORKFLOWS`.
            overrides: ids and values of the command line; a federation's ``variant`` may be here or in its file.
            variant: variant of another workflow; ``None`` for none.
            files: files instead of the workflow's own.

        Raises:
            Refused: unknown workflow or variant.
        """
        root, first, *others = Path(bundle_root), *(files or workflow_files(Path(bundle_root), workflow))
        if workflow == "federate":
            variant = overrides.get("variant", variant) or _variant_of(others)
        variant_layers = [] if variant is None else variant_files(root, variant)
        variant_paths = {path.resolve() for path in variant_layers}
        others = [path for path in others if path.resolve() not in variant_paths]
        return cls([first, *variant_layers, *others], overrides, base=1 + len(variant_layers))

    def _read(self, path: Path) -> None:
        try:
            content = read_json(path, byte_order_mark=False)
        except Refused as refused:
            self.problems.extend(refused.problems)
            return
        if not isinstance(content, dict):
            self.problems.append(Problem(path.name, found=type(content).__name__, expected="an object of ids"))
            return
        self.put(path.name, content)

    def put(self, name: str, pairs: dict[str, Any]) -> None:
        """Adds a layer on top."""
        _merge(self.content, pairs)
        self.layers.append((name, pairs))

    def of_group(self, group: tuple[str, ...], layers: Sequence[Layer]) -> BundleConfig:
        """Configuration of a group: the layers of another workflow, with the values of the group above them."""
        config = BundleConfig()
        config.group, config.federation, config._group_start = group, self, len(layers)
        for name, pairs in layers:
            config.put(name, pairs)
        for name, pairs in self.group_layers(group):  # "network" is "network_name" there
            renames = _NETWORK if group[0] == SITES else {}
            config.put(name, {renames.get(key, key): value for key, value in pairs.items()})
        return config

    def group_layers(self, group: tuple[str, ...]) -> list[Layer]:
        """Returns the values of each layer in a group, with ids as they are written.

        References to ids of the federation are replaced by their values; those inside components refer to the other
        workflow.
        """
        layers: list[Layer] = []
        for name, pairs in self.layers:
            values: dict[str, Any] = {}
            for key, value in pairs.items():
                parts = split_id(key)
                depth = min(len(parts), len(group))
                if parts[:depth] != group[:depth]:
                    continue
                if depth == len(parts):  # it replaces the group as a whole
                    layers, values = [(each, {}) for each, _ in layers], {}
                    value = lookup(value, group[depth:])
                else:
                    value = {join_id(parts[depth:]): value}
                values |= flat(value) if isinstance(value, Mapping) else {}
            layers.append((name, {key: resolve(self.content, value) for key, value in values.items()}))
        return layers

    @property
    def sites(self) -> list[str]:
        """Sites with their own choices in a federation."""
        sites = self.content.get(SITES)
        return [site for site, own in sites.items() if isinstance(own, dict)] if isinstance(sites, dict) else []

    @property
    def used(self) -> dict[str, Any]:
        """The content; in a federation without the ids that its variant does not use (:attr:`Method.unused`), with a
        trained model without what it replaces: initial weights, and the images of a ``SiteEvaluation``'s evaluator."""
        content, federation = copy.deepcopy(self.content), self.federation
        blocks = [pairs.get(METHOD, {}) for _, pairs in federation.layers[1 : federation.base] if federation.federates]
        names = next((block["unused"] for block in reversed(blocks) if "unused" in block), ())
        unused = list(map(split_id, names))
        if any(name in _OF_MODEL for name, _ in self.layers):
            unused.append(("network_def", "weights"))
            if lookup(content, ("evaluation", "_target_")) in _SITE_EVALUATION:
                unused.append((*follow(content, (), "@evaluation#evaluator")[0], "val_data_loader"))
        for parts in unused:
            _set(content, parts, MISSING, merge=False)
        return content

    @property
    def own_layers(self) -> list[int]:
        """Indices of the layers of the workflow's own files, without variants and overrides."""
        names = [name for name, _ in self.layers[: self._group_start]]
        return [index for index, name in enumerate(names) if index == 0 or name in _WORKFLOW_FILES]

    @property
    def federates(self) -> bool:
        """Whether ``federate.json`` is among the layers."""
        return any(name == FEDERATE for name, _ in self.layers[: self._group_start])

    def is_given(self, index: int) -> bool:
        """Whether a layer is the command line or has the values of a group."""
        return self.layers[index][0] == COMMAND_LINE or bool(self.group and index >= self._group_start)

    def below(self, layer: int) -> dict[str, Any]:
        """The configuration of the layers below an index; it is merged once and must not be changed."""
        if layer not in self._below:
            content: dict[str, Any] = {}
            for _, pairs in self.layers[:layer]:
                _merge(content, pairs)
            self._below[layer] = content
        return self._below[layer]

    def place(self, layer: int, parts: Sequence[str]) -> str:
        """``file -> id`` for an id in a layer."""
        if self.group and layer >= self._group_start:
            site = self.group[0] == SITES and tuple(parts) == tuple(_NETWORK.values())
            parts = (*self.group, *(_NETWORK if site else parts))
        return f"{self.layers[layer][0]} -> {join_id(parts)}"

    def where(self, parts: Sequence[str]) -> str:
        """``file -> id`` for an id, with the topmost file that sets it."""
        setting = (index for index in range(len(self.layers)) if self.sets_id(index, parts, whole=True))
        return self.place(max(setting, default=0), parts)

    def sets_id(self, layer: int, parts: Sequence[str], *, whole: bool = False) -> bool:
        """Whether a layer sets an id, or without ``whole`` at least a part of it."""
        for key, value in self.layers[layer][1].items():
            id_parts, depth = split_id(key), min(len(split_id(key)), len(parts))
            if id_parts[:depth] != tuple(parts[:depth]):
                continue
            if lookup(value, parts[depth:]) is not MISSING if depth == len(id_parts) else not whole:
                return True
        return False


def _variant_of(files: Sequence[Path]) -> Any:
    """The variant in a federation's files; unreadable files are reported when they are merged."""
    name = None
    for path in files:
        with suppress(Refused, AttributeError):
            name = read_json(path).get("variant", name)
    return name


_NETWORK = {"network": "network_name"}
"""Id of the network's name among a site's choices, and in ``train.json``."""


def resolve(content: Mapping[str, Any], value: Any) -> Any:
    """Returns a value, or the value that it refers to if that exists."""
    _, target = follow(content, (), value)
    return value if target is MISSING else target


def _merge(content: dict[str, Any], pairs: Mapping[str, Any]) -> None:
    for key, value in pairs.items():
        _set(content, split_id(key), copy.deepcopy(value), merge=key.startswith("+"))


def _set(content: dict[str, Any], parts: tuple[str, ...], value: Any, *, merge: bool) -> None:
    place: Any = content
    for part in parts[:-1]:
        parent, place = place, lookup(place, (part,))
        if place is MISSING:
            place = {}
            if isinstance(parent, dict):
                parent[part] = place
    last: Any = int(parts[-1]) if isinstance(place, list) and parts[-1].isdigit() else parts[-1]
    old = lookup(place, (parts[-1],))
    if merge and isinstance(old, dict) and isinstance(value, dict):
        old.update(value)
    elif merge and isinstance(old, list) and isinstance(value, list):
        old.extend(value)
    elif isinstance(place, dict) or (isinstance(place, list) and old is not MISSING):
        place[last] = value


DISABLED = "_disabled_"
_Id = tuple[str, ...]


def reached(content: Mapping[str, Any], roots: Iterable[str]) -> dict[str, Any]:
    """Returns ``roots`` and the ids that they refer to, directly or indirectly, with their values.

    The remaining ids cannot affect the roots, for instance settings of a term that a variant disables, if nothing else
    refers to them, or other guides if only ``@guides#sam`` is used.

    Args:
        content: a merged, unresolved configuration.
        roots: ids to start with; missing ones are skipped.

    Returns:
        The ids in the order of ``content``. Dictionaries are reduced to the parts that are referred to, and disabled
        components to the referenced arguments, or ``None``. With MONAI's macros (``%``), which may copy from anywhere,
        all of ``content``.
    """
    visited = set[_Id]()
    queue: list[_Id] = [split_id(name) for name in roots if lookup(content, split_id(name)) is not MISSING]
    while queue:
        path = _existing_prefix(content, queue.pop())
        if not path or path in visited:
            continue
        visited.add(path)
        for _, text in walk(_enabled(lookup(content, path))):
            if isinstance(text, str) and text.startswith("%"):
                return {name: _enabled(value) for name, value in content.items()}
            if isinstance(text, str) and "@#" in text:  # relative: below the same top-level id
                queue.append(path[:1])
            queue += references(text)
    parents = {path[:length] for path in visited for length in range(1, len(path) + 1)}
    return {name: _reduced(value, (name,), visited, parents) for name, value in content.items() if (name,) in parents}


def numbers_at(
    content: Mapping[str, Any], keys: Collection[str], roots: Iterable[str]
) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yields the numbers, and null in components, under ``keys``, alone or in lists, that ``roots`` refer to, each with
    the id that sets it."""
    for parts, value in walk(reached(content, roots)):
        if not set(keys).intersection(parts[-1:]):
            continue
        target, setting = follow(content, parts, value)
        numbers = setting if isinstance(setting, list) else [setting]
        for place, number in (follow(content, target, each) for each in numbers):
            if type(number) in (int, float) or (number is None and len(place) > 1):
                yield place, number


def _existing_prefix(content: Any, path: _Id) -> _Id:
    """The longest existing part of ``path``, through dictionaries only."""
    for depth, part in enumerate(path):
        if not isinstance(content, dict) or part not in content:
            return path[:depth]
        content = content[part]
    return path


def _reduced(value: Any, path: _Id, referenced: set[_Id], parents: set[_Id], whole: bool = False) -> Any:
    """The referenced parts of a value; ``parents`` also has their parents; ``whole``: a parent was referenced."""
    if not isinstance(value, dict):
        return _enabled(value)
    disabled = is_disabled(value)
    whole = not disabled and (whole or path in referenced)
    reduced = {
        name: _reduced(part, (*path, name), referenced, parents, whole)
        for name, part in value.items()
        if whole or (*path, name) in parents
    }
    return None if disabled and not reduced else reduced


def is_disabled(part: Any) -> bool:
    """Whether a component is left out of its group."""
    return isinstance(part, Mapping) and part.get(DISABLED) is True


def _enabled(part: Any) -> Any:
    if isinstance(part, Mapping):
        return None if is_disabled(part) else {name: _enabled(value) for name, value in part.items()}
    return [_enabled(value) for value in part] if isinstance(part, list) else part
