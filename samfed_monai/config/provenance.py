"""Where each value of a workflow's configuration comes from: its files, a variant, or the command line."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samfed_monai.config.check import federated_configs
from samfed_monai.config.knobs import (
    FEDERATION_READS,
    GIVEN,
    GROUPS,
    MONAI_IDS,
    all_knobs,
    check_override_ids,
    is_plain,
    is_value,
    knobs_of,
    lost,
    routed,
)
from samfed_monai.config.overrides import normal_ids
from samfed_monai.config.parse import (
    MISSING,
    BundleConfig,
    flat,
    follow,
    is_note,
    join_id,
    lookup,
    reached,
    split_id,
    walk,
    workflow_files,
)
from samfed_monai.config.reads import is_read
from samfed_monai.config.variants import variant_files
from samfed_monai.core.errors import Problem, Problems, Refused

_TRAINED = ("train", "evaluate")  # workflows whose files a variant is laid on
_WIDEST = 60  # characters of a value in the table


@dataclass(frozen=True)
class Shown:
    """One id of a configuration.

    Args:
        parts: the id.
        said: (what said it, value), the one that counts first, then what it replaced.
        leads_to: the plain value that a reference leads to, else ``MISSING``.
        brief: whether it is shown without being asked for: a knob, or set on top of the workflow's files.
        read: whether what the workflow runs leads to it.
    """

    parts: tuple[str, ...]
    said: Sequence[tuple[str, Any]]
    leads_to: Any
    brief: bool
    read: bool = True

    def to_json(self) -> dict[str, Any]:
        (source, value), *replaced = self.said
        lead = {} if self.leads_to is MISSING else {"leads_to": self.leads_to}
        return {
            "value": value,
            **lead,
            **({} if self.read else {"read": False}),
            "from": source,
            "replaced": [{"value": old, "from": before} for before, old in replaced],
        }

    def columns(self) -> tuple[str, str, str, str]:
        (source, value), *replaced = self.said
        text = value if isinstance(value, str) and value.startswith("@") else json.dumps(value, ensure_ascii=False)
        lead = "" if self.leads_to is MISSING else f" = {json.dumps(self.leads_to, ensure_ascii=False)}"
        before = ", ".join(f"{_clipped(json.dumps(old, ensure_ascii=False))} ({name})" for name, old in replaced)
        return f"{join_id(self.parts)}{'' if self.read else ' *'}", _clipped(f"{text}{lead}"), source, before


def _clipped(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


class Configuration:
    """A workflow of a bundle with a variant and the command line on top, and whose each value is.

    Args:
        bundle_root: folder of the bundle.
        workflow: a name in :data:`samfed_monai.config.WORKFLOWS`.
        variant: name of a variant; in ``federate`` it is the knob.
        overrides: ids and values of the command line.

    Raises:
        Refused: files that cannot be read, no such workflow or variant, and overrides that name nothing.
    """

    def __init__(self, bundle_root: Path, workflow: str, variant: str | None, overrides: Mapping[str, Any]) -> None:
        files, federate = workflow_files(bundle_root, workflow), workflow == "federate"
        if variant is not None and not federate and workflow not in _TRAINED:
            expected = "none: a variant changes train, evaluate and federate"
            found = f"{variant!r} with --workflow {workflow}"
            raise Refused([Problem("--variant", found=found, expected=expected, hint="leave it out")])
        own = {"variant": variant} if federate and variant is not None else {}
        names, on_top = _variant(bundle_root, None if federate else variant)
        self.sources = [*(path.name for path in files), *names]
        self.config = BundleConfig([*files, *on_top], routed(files, normal_ids({**overrides, **own})))
        self.sources.append(self.config.source)
        self._files = len(files)
        if self.config.problems:
            raise Refused(self.config.problems)
        parts = federated_configs(self.config, bundle_root) if federate else {}
        problems = Problems()
        for config, below in ((self.config, len(files)), *((config, 1) for config in parts.values())):
            problems.extend(config.problems or check_override_ids(config, below, imports=(config.source,)))
        problems.refuse_if_any()
        self.parts = {group: config for group, config in parts.items() if group in GROUPS}
        in_client, _ = _variant(bundle_root, self.config.content.get("variant") if federate else None)
        self._part_sources = {
            group: [config.layers[0][0], *(in_client if group == "client" else ())]
            for group, config in self.parts.items()
        }

    @property
    def order(self) -> str:
        """What is laid on what, bottom first."""
        files = self._part_sources.items()
        groups = (f"\n  {group}#: {', '.join(sources)}, then the values of {group}" for group, sources in files)
        return ", ".join(self.sources) + "".join(groups)

    @property
    def content(self) -> dict[str, Any]:
        """The merged values, those of a federation's parts in their groups."""
        return self.config.content | {group: config.content for group, config in self.parts.items()}

    def ids(self) -> Iterator[Shown]:
        """Every id that holds a plain value, a list of these, or nothing; notes on top are left out."""
        knobs, runs = all_knobs(self.config), _runs(self.config, MONAI_IDS)
        for parts, value in _leaves(self.config.content):
            if parts[0] not in self.parts:
                history = self.config.history(parts)
                said = [(self.sources[layer], old) for layer, old in reversed(history)]
                brief = join_id(parts) in knobs or history[-1][0] >= self._files
                yield Shown(parts, said, _lead(self.config, parts, value), brief, is_read(runs, parts))
        for group, config in self.parts.items():
            own = knobs_of(config.layers[0][1]) if group == "client" else {}
            knobs = {name for name, value in own.items() if is_value(value)} - GIVEN
            runs = _runs(config, FEDERATION_READS[group])
            for parts, value in _leaves(config.content):
                history = config.history(parts)
                said = [(self._source(group, layer, parts), old) for layer, old in reversed(history)]
                brief = history[-1][0] > 0 or join_id(parts) in knobs
                yield Shown((group, *parts), said, _lead(config, parts, value), brief, is_read(runs, parts))

    def _source(self, group: str, layer: int, parts: tuple[str, ...]) -> str:
        """Who said an id of a group: a layer of its own, or the layer of ``federate.json`` that fills the group."""
        if layer < len(self._part_sources[group]):
            return self._part_sources[group][layer]
        for above in range(len(self.config.layers) - 1, -1, -1):
            given = BundleConfig([], self.config.layers[above][1]).content.get(group)
            for key, value in flat(given).items() if isinstance(given, Mapping) else ():
                if split_id(key) == parts[: len(split_id(key))]:
                    place, there = follow(self.config.content, (group, key), value)
                    handed_on = there is not MISSING and there is not value
                    return self.sources[self.config.history(place)[-1][0]] if handed_on else self.sources[above]
        return self.sources[0]


def _runs(config: BundleConfig, roots: Collection[str]) -> dict[str, Any] | None:
    """What a workflow reads; ``None`` for a bundle that has nothing of what it would begin with."""
    return reached(config.content, roots) if "run" in config.content else None


def _variant(bundle_root: Path, name: Any) -> tuple[list[str], list[Path]]:
    """What the files of a variant are called, and they."""
    files = [] if name is None else variant_files(bundle_root, name)
    return [f"variant {path.stem}" for path in files], files


def _leaves(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for parts, value in walk({name: value for name, value in content.items() if not is_note(name)}):
        inside = parts[:-1] and is_plain(lookup(content, parts[:-1]))  # an item of a list that is shown whole
        if parts and not inside and (is_plain(value) or not value):
            yield parts, value


def _lead(config: BundleConfig, parts: Sequence[str], value: Any) -> Any:
    _, there = follow(config.content, parts, value)
    return there if there is not value and there is not MISSING and is_plain(there) else MISSING


def inside(every: Sequence[Shown], content: Mapping[str, Any], id_: str) -> list[Shown]:
    """An id and the ids below it.

    In a federation ``local_steps`` also finds ``client#local_steps``, as ``--local_steps`` does on the command line.

    Args:
        every: all ids of the workflow.
        content: the merged configuration, for the message.
        id_: the id.

    Raises:
        Refused: there are none.
    """
    wanted = split_id(id_)
    found = [each for each in every if each.parts[: len(wanted)] == wanted]
    if not found:
        found = [each for each in every if each.parts[0] in GROUPS and each.parts[1 : len(wanted) + 1] == wanted]
    if not found:
        hint = lost(dict(content), wanted, None, imports=False) or "nothing sets it: the component's own default counts"
        raise Refused([Problem("--id", found=repr(id_), expected="an id of this workflow", hint=hint)])
    return found
