"""Where each value of a workflow's configuration comes from: its files, a variant, or the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samfed_monai.config.check import grouped_configs
from samfed_monai.config.ids import check_override_ids, is_read, lost, runs_of
from samfed_monai.config.layers import layered
from samfed_monai.config.options import (
    GROUPS,
    all_options,
    is_plain,
)
from samfed_monai.config.overrides import normal_ids
from samfed_monai.config.parse import (
    MISSING,
    BundleConfig,
    follow,
    is_note,
    join_id,
    lookup,
    split_id,
    walk,
)
from samfed_monai.core.errors import Refused, refused
from samfed_monai.core.words import clipped

_TRAINED = ("train", "evaluate")  # workflows whose files a variant is laid on


@dataclass(frozen=True)
class Shown:
    """One id of a configuration.

    Args:
        parts: the id.
        said: (what said it, value), the one that counts first, then what it replaced.
        leads_to: the plain value that a reference leads to, else ``MISSING``.
        brief: whether it is shown without being asked for: an option, or set on top of the workflow's files.
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
        before = ", ".join(f"{clipped(json.dumps(old, ensure_ascii=False))} ({name})" for name, old in replaced)
        return f"{join_id(self.parts)}{'' if self.read else ' *'}", clipped(f"{text}{lead}"), source, before


class Configuration:
    """A workflow of a bundle with a variant and the command line on top, and where each value is from.

    Args:
        bundle_root: folder of the bundle.
        workflow: a name in :data:`samfed_monai.config.WORKFLOWS`.
        variant: name of a variant; in ``federate`` it is the option.
        overrides: ids and values of the command line.

    Raises:
        Refused: files that cannot be read, no such workflow or variant, and overrides that name nothing.
    """

    def __init__(self, bundle_root: Path, workflow: str, variant: str | None, overrides: Mapping[str, Any]) -> None:
        federate = workflow == "federate"
        own = {"variant": variant} if federate and variant is not None else {}
        given = normal_ids({**overrides, **own})
        files, base = layered(bundle_root, workflow, given, variant=variant)
        if variant is not None and not federate and workflow not in _TRAINED:
            expected = "none: a variant changes train, evaluate and federate"
            found = f"{variant!r} with --workflow {workflow}"
            raise refused("--variant", found=found, expected=expected, hint="leave it out")
        self.config = BundleConfig(files, given, base=base)
        if self.config.problems:
            raise Refused(self.config.problems)
        variants = range(1, base)
        names = (path.stem if index in variants else path.name for index, path in enumerate(files))
        self.sources = [f"variant {name}" if index in variants else name for index, name in enumerate(names)]
        self.sources.append(self.config.source)
        problems = list(check_override_ids(self.config, imports=(self.config.source,)))
        for group in grouped_configs(self.config, bundle_root).values() if federate else ():
            problems += group.problems or check_override_ids(group, imports=(self.config.source,))
        if problems:
            raise Refused(problems)

    @property
    def order(self) -> str:
        """Which layer is on which, bottom first."""
        return ", ".join(self.sources)

    def ids(self) -> Iterator[Shown]:
        """Every id that holds a plain value, a list of these, or nothing; notes on top are left out."""
        options = all_options(self.config)
        runs = runs_of(self.config) if "run" in self.config.content else [self.config.content]
        for parts, value in _leaves(self.config.content):
            history = self.config.history(parts)
            said = [(self.sources[layer], old) for layer, old in reversed(history)]
            read = is_read(runs, parts[:1] if self.config.federates and parts[0] in GROUPS else parts)
            option = join_id(parts) in options and (read or not self.config.federates)
            in_group = parts[0] in GROUPS and len(parts) > 1
            brief = option or in_group or history[-1][0] not in self.config.own
            yield Shown(parts, said, _lead(self.config, parts, value), brief, read)


def _leaves(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for parts, value in walk({name: value for name, value in content.items() if not is_note(name)}):
        inside = parts[:-1] and is_plain(lookup(content, parts[:-1]))  # an item of a list that is shown whole
        if parts and not inside and (is_plain(value) or not value):
            yield parts, value


def _lead(config: BundleConfig, parts: Sequence[str], value: Any) -> Any:
    _, there = follow(config.content, parts, value)
    return there if there is not value and there is not MISSING and is_plain(there) else MISSING


def inside(every: Sequence[Shown], config: BundleConfig, id_: str) -> list[Shown]:
    """An id and the ids below it.

    Args:
        every: all ids of the workflow.
        config: of the workflow, for the message.
        id_: the id.

    Raises:
        Refused: there are none.
    """
    wanted = split_id(id_)
    found = [each for each in every if each.parts[: len(wanted)] == wanted]
    if not found:
        hint = (
            lost(config.content, wanted, None, imports=False) or "nothing sets it: the component's own default counts"
        )
        raise refused("--id", found=repr(id_), expected="an id of this workflow", hint=hint)
    return found
