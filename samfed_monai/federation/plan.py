"""``Plan``: the settings that decide a run's result, sent to sites; ``Places``: paths on one machine, never sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from samfed_monai.config.parse import flat
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import canonical_hash
from samfed_monai.core.validators import departures
from samfed_monai.federation.workflow import PLACES, bundle_content
from samfed_monai.protocol import compression

AUTO = "auto"
_TEXT, _OBJECT, _SWITCH = {"type": "string"}, {"type": "object"}, {"type": "boolean"}
_FROM_0, _FROM_1 = {"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 1}
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["bundle", "rounds"],
    "properties": {
        **{"bundle": _TEXT, "rounds": _FROM_1, "variant": _TEXT, "seed": _FROM_0, "warm_start_steps": _FROM_0},
        "warm_start_held_out": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
        **{"train": _OBJECT, "teacher": _OBJECT, "sites": {"type": "object", "additionalProperties": _OBJECT}},
        "unseen": {"type": "array", "items": _TEXT},
        **{"keep_optimizer": _SWITCH, "update_guard": _OBJECT},
        "quorum": {"type": ["integer", "null"], "minimum": 1},
        "timeout": {"type": ["number", "null"], "exclusiveMinimum": 0},
        **{"allow_single_site": _SWITCH, "privacy": {"type": ["object", "null"]}},
        "compression": compression.SCHEMA,
    },
    "additionalProperties": False,
}
"""Of a plan's JSON content."""


@dataclass(frozen=True)
class Plan:
    """All settings that decide a run's result, as JSON content, without any path.

    Args:
        bundle: the bundle's name.
        rounds: federated rounds.
        variant: an override file of the bundle or of the package.
        seed: of everything but the teacher, which has its own (``teacher#seed``).
        warm_start_steps: optimiser steps on the public set before round 0; none unless the bundle says how many.
        warm_start_held_out: part of the public images, in [0, 1), that says when the warm start stops; 0: not before
            its last step.
        train: ids of ``train.json`` that the federation replaces, to values.
        teacher: ids of ``teacher.json`` to values.
        sites: site to its own choices: ``network`` and ids of ``train.json``. :meth:`Participants.settled` names
            every site.
        unseen: sites that take no part and are evaluated at the end.
        keep_optimizer: keep each site's optimizer moments from round to round.
        update_guard: arguments of :class:`UpdateGuard`.
        quorum: sites that must answer in a round; ``None`` is more than half.
        timeout: seconds that a round may take; ``None`` waits.
        allow_single_site: permit a federation of one site.
        privacy: what may leave a site (``federate.json -> privacy``); ``None`` is the package's defaults.
        compression: how weights travel (:class:`.Compression`); ``float32`` sends them whole.

    Raises:
        Refused: a field of another type or out of its range, or content that is not JSON; every problem at once.

    Example::

        {"bundle": "samfed_skin", "rounds": 30, "variant": "samfed", "seed": 0, "sites": {"site-1": {}, "site-2": {}}}
    """

    bundle: str
    rounds: int
    variant: str = "samfed"
    seed: int = 0
    warm_start_steps: int = 0
    warm_start_held_out: float = 0.0
    train: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] = field(default_factory=dict)
    sites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    keep_optimizer: bool = True
    update_guard: Mapping[str, Any] = field(default_factory=dict)
    quorum: int | None = None
    timeout: float | None = None
    allow_single_site: bool = False
    privacy: Mapping[str, Any] | None = None
    compression: str | int = compression.NONE

    def __post_init__(self) -> None:
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        problems = departures(content, SCHEMA, "plan")
        for name, value in content.items():
            try:
                json.dumps(_plain(value), allow_nan=False)
            except (TypeError, ValueError):
                problems.append(Problem(f"plan -> {name}", "something that JSON cannot hold", "plain values"))
        if problems:
            raise Refused(problems)
        object.__setattr__(self, "unseen", tuple(self.unseen))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON content."""
        plain = {each.name: _plain(getattr(self, each.name)) for each in fields(self)}
        content: dict[str, Any] = json.loads(json.dumps(plain))
        return content

    @classmethod
    def from_json(cls, content: Any) -> Plan:
        """Reads what :meth:`to_json` wrote.

        Raises:
            Refused: unknown or missing keys, or values of another type; every problem at once.
        """
        if problems := departures(content, SCHEMA, "plan"):
            raise Refused(problems)
        return cls(**content)

    @property
    def hash(self) -> str:
        """SHA-256 of the plan."""
        return canonical_hash(self.to_json())

    @property
    def updates_hash(self) -> str:
        """SHA-256 of what decides the sites' updates of a round: without whom the server waits for, and its guard."""
        plain = replace(self, timeout=None, quorum=None, allow_single_site=False, update_guard={})
        return canonical_hash(plain.to_json())

    def fingerprint(self, bundle_root: str | Path) -> str:
        """SHA-256 of the plan and of the bundle's files that it runs with; paths and notes in them do not count."""
        return canonical_hash({"plan": self.to_json(), "bundle": bundle_content(bundle_root, self.variant)})

    def with_sites(self, sites: Mapping[str, Mapping[str, Any]], unseen: Sequence[str]) -> Plan:
        """The same plan with every site named."""
        return replace(self, sites={name: dict(choice) for name, choice in sites.items()}, unseen=tuple(unseen))


@dataclass(frozen=True)
class Places:
    """Paths, and other settings of one machine that do not change the result.

    Args:
        bundle_root: folder of the bundle.
        datalist: file made by ``samfed prepare``; at a site, one with its own images is enough.
        data_root: folder that the list's paths are relative to.
        output_dir: the run's folder.
        cache_dir: adapters, soft masks and warm starts, shared by runs; ``None`` is ``<output_dir>/cache``.
        adapter: an adapter to use as it is; ``None`` fits one, or finds a fitted one.
        start_from: a bundle, a finished run or a weights file that the network begins with; read at the server alone,
            whose weights the sites receive. Its content is in ``run.json -> hashes#start``.
        masks_from: a bundle, a finished run or a weights file that makes the soft masks in SAM's place; read at the
            server alone, which sends it to the sites. Its content is in ``run.json -> hashes#masks_from``.
        train, teacher: ids that are places (``checkpoint``, ``device``, …) to values.
        sites: site to such ids, for sites that share this machine.
        workers: processes in which the sites of this machine work side by side; 1 is this process, ``"auto"`` as many
            as there are sites and cores (:func:`samfed_monai.federation.process_transport.workers_of`). Nothing of the
            result depends on it.
        verify: hash every image again, although they were checked before.

    Raises:
        Refused: another number of workers.
    """

    bundle_root: Path
    datalist: Path
    data_root: Path
    output_dir: Path
    cache_dir: Path | None = None
    adapter: str | Path | None = None
    start_from: str | Path | None = None
    masks_from: str | Path | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] = field(default_factory=dict)
    sites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    workers: int | str = 1
    verify: bool = False

    def __post_init__(self) -> None:
        if self.workers != AUTO and (type(self.workers) is not int or self.workers < 1):
            found, expected = f"{self.workers!r} ({type(self.workers).__name__})", "a whole number from 1, or 'auto'"
            hint = "1 runs one site after the other in this process"
            raise Refused([Problem("federate.json -> workers", found=found, expected=expected, hint=hint)])
        for name in ("bundle_root", "datalist", "data_root", "output_dir"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        object.__setattr__(self, "cache_dir", Path(self.cache_dir) if self.cache_dir else None)

    @property
    def cache(self) -> Path:
        """``cache_dir``, or its default."""
        return self.cache_dir or self.output_dir / "cache"

    def to_json(self) -> dict[str, Any]:
        """Places as JSON content, for a process of the same machine."""
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: json.loads(json.dumps(_plain(value), default=str)) for name, value in content.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Places:
        """Reads what :meth:`to_json` wrote."""
        return cls(**content)

    def overrides(self) -> dict[str, Any]:
        """Ids of ``train.json`` that are paths, with their values here."""
        given = {name: str(getattr(self, name)) for name in ("datalist", "data_root", "bundle_root", "output_dir")}
        return {**self.train, **given}


def split_places(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Overrides by id, as (settings that decide the result, paths)."""
    pairs = flat(overrides)
    there = {name: value for name, value in pairs.items() if name in PLACES}
    return {name: value for name, value in pairs.items() if name not in PLACES}, there


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
