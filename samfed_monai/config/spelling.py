"""Misspelt keys of a bundle's files: one slip away from a key that is missing at the same place.

Which keys a place should have is said by the packaged bundles' file of the same name, by MONAI, which reads some keys
itself, and by references (``@rate``) that lead nowhere. A misspelt key is told once; the other checks go on as if it
were spelt right, as a reference that it leaves without an aim is no mistake of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samfed_monai.config.knobs import COMPONENT_KEYS, MEANS_THE_SAME, MONAI_IDS, arguments_of, shipped
from samfed_monai.config.parse import MISSING, BundleConfig, join_id, lookup, references, walk
from samfed_monai.core.errors import Problem, closest, slip_of

_Path = tuple[str, ...]


@dataclass(frozen=True)
class Slip:
    """A misspelt key.

    Args:
        layer: index of the layer that has it.
        parts: the id, as it is spelt.
        right: the key's right spelling.
        reader: id of the reference that leads nowhere; empty where the packaged bundles say how the key is spelt.
    """

    layer: int
    parts: _Path
    right: str
    reader: str = ""

    def problem(self, file: str) -> Problem:
        right = join_id((*self.parts[:-1], self.right))
        hint = f"did you mean {right!r}, which {self.reader} refers to?" if self.reader else f"did you mean {right!r}?"
        return Problem(f"{file} -> {join_id(self.parts)}", found="an unknown key", expected="a known key", hint=hint)


def corrected(config: BundleConfig) -> tuple[BundleConfig, list[Problem]]:
    """A workflow's configuration with every key of its files spelt right, and the keys that are not.

    Args:
        config: the layers, each of which could be read. The ids of variants and of the command line are judged by
            what the workflow's own files hold.

    Returns:
        The same configuration where no key is misspelt.
    """
    told: list[Problem] = []
    for find in (_unlike_the_packaged, _unlike_their_references):
        slips = list(find(config))
        told += [slip.problem(config.layers[slip.layer][0]) for slip in slips]
        config = _with_names(config, slips) if slips else config
    return config, told


def misspelt(file: str, content: Any) -> list[Problem]:
    """Misspelt keys of a file that no workflow merges, ``metadata.json``, going by the packaged bundles' own."""
    return [slip.problem(file) for slip in _slips(content, shipped(file), (), 0, set())]


def _unlike_the_packaged(config: BundleConfig) -> Iterator[Slip]:
    read = {target[: depth + 1] for target in _targets(config.content) for depth in range(len(target))}
    for layer, (file, pairs) in ((index, config.layers[index]) for index in config.own):
        yield from _slips(pairs, shipped(file), (), layer, read)


def _targets(content: Any) -> Iterator[_Path]:
    for _, value in walk(content):
        yield from references(value) if isinstance(value, str) else ()


def _slips(content: Any, packaged: Sequence[Any], parts: _Path, layer: int, read: set[_Path]) -> Iterator[Slip]:
    """Slips below one id.

    Args:
        content: what stands there.
        packaged: what stands there in the packaged bundles.
        parts: the id.
        layer: for the slips.
        read: ids that something refers to by their names as they are.
    """
    if isinstance(content, list):
        lists = [each for each in packaged if isinstance(each, list) and len(each) == len(content)]
        for index, value in enumerate(content):
            yield from _slips(value, [each[index] for each in lists], (*parts, str(index)), layer, read)
    if not isinstance(content, dict):
        return
    target = content.get("_target_")
    alike = [each for each in packaged if isinstance(each, dict) and target in (None, each.get("_target_"))]
    missing = {name for each in alike for name in each} - content.keys()
    missing |= (MONAI_IDS if not parts else COMPONENT_KEYS if target else {"_target_"}) - content.keys()
    for name, value in content.items():
        known = any(name in each for each in alike) or (*parts, name) in read
        right = None if known else slip_of(name, missing)
        if right is not None and not (target and name in arguments_of(content)[0]):
            missing.discard(right)
            yield Slip(layer, (*parts, name), right)
        below = [each[right or name] for each in alike if (right or name) in each]
        yield from _slips(value, below, (*parts, name), layer, read)


def _unlike_their_references(config: BundleConfig) -> Iterator[Slip]:
    """Keys that nothing reads, much like what a reference that leads nowhere is looking for."""
    lost = {
        target: join_id(place)
        for place, value in reversed(list(walk(config.content)))
        for target in (references(value) if isinstance(value, str) else ())
        if lookup(config.content, target) is MISSING
    }
    read = set(_targets(config.content)) if lost else set()
    for target, reader in reversed(lost.items()):
        depth = next(length for length in range(len(target)) if lookup(config.content, target[: length + 1]) is MISSING)
        holder = lookup(config.content, target[:depth])
        names = [*holder] if isinstance(holder, Mapping) else []
        unread = [name for name in names if not any(one[: depth + 1] == (*target[:depth], name) for one in read)]
        parts = (*target[:depth], closest(target[depth], unread, cutoff=MEANS_THE_SAME) or "")
        for layer, (file, pairs) in ((index, config.layers[index]) for index in config.own):
            packaged = any(lookup(each, parts) is not MISSING for each in shipped(file))
            if lookup(pairs, parts) is not MISSING and not packaged:  # else it is the reference that is misspelt
                yield Slip(layer, parts, target[depth], reader)


def _with_names(config: BundleConfig, slips: Sequence[Slip]) -> BundleConfig:
    names = {(slip.layer, slip.parts): slip.right for slip in slips}

    def renamed(content: Any, layer: int, parts: _Path = ()) -> Any:
        if isinstance(content, Mapping):
            pairs = ((name, (*parts, name), value) for name, value in content.items())
            return {names.get((layer, place), name): renamed(value, layer, place) for name, place, value in pairs}
        if isinstance(content, list):
            return [renamed(value, layer, (*parts, str(index))) for index, value in enumerate(content)]
        return content

    layers = [(name, renamed(pairs, layer)) for layer, (name, pairs) in enumerate(config.layers)]
    return BundleConfig.of_layers(layers, config.source, base=config.base)
