"""``FederatedJob``, which ``federate.json`` names; its ``Plan`` decides the result, its ``Places`` are paths."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from samfed_monai.config.options import pairs_for_monai
from samfed_monai.config.overrides import normal_ids
from samfed_monai.config.parse import BundleConfig, flat
from samfed_monai.config.workflow import training_values_of_command, unwrapped
from samfed_monai.core.errors import Problem
from samfed_monai.core.io import canonical_hash
from samfed_monai.core.validators import departures, require, whole
from samfed_monai.federation.workflow import PLACES, bundle_content
from samfed_monai.protocol import compression
from samfed_monai.protocol.guard import UpdateGuard
from samfed_monai.protocol.transport import Transport

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
        train, teacher: ids of ``train.json`` and ``teacher.json`` that are no paths, to values.
        sites: site to its own choices that are no paths. :meth:`Participants.settled` names every site.

    The others are those of :class:`FederatedJob`.

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
        require(problems)
        object.__setattr__(self, "unseen", tuple(self.unseen))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON content."""
        return _as_json(self)

    @classmethod
    def from_json(cls, content: Any) -> Plan:
        """Reads what :meth:`to_json` wrote.

        Raises:
            Refused: unknown or missing keys, or values of another type; every problem at once.
        """
        require(departures(content, SCHEMA, "plan"))
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


@dataclass(frozen=True)
class Places:
    """Paths, and other settings of one machine that do not change the result.

    Args:
        datalist: file made by ``samfed prepare``; at a site, one with its own images is enough.
        start_from, masks_from: read at the server alone, which sends their weights to the sites; the hash of their
            content is in ``run.json -> hashes``.
        train, teacher: ids that are paths or devices (``checkpoint``, ``device``, …) to values.
        sites: site to such ids, for sites that share this machine.

    The others are those of :class:`FederatedJob`; nothing of the result depends on them.

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
        if self.workers != AUTO:
            hint = "1 runs one site after the other in this process"
            require(whole("federate.json -> workers", self.workers, "'auto' or a whole number", least=1, hint=hint))
        for name in ("bundle_root", "datalist", "data_root", "output_dir"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        object.__setattr__(self, "cache_dir", Path(self.cache_dir) if self.cache_dir else None)

    @property
    def cache(self) -> Path:
        """``cache_dir``, or its default."""
        return self.cache_dir or self.output_dir / "cache"

    def to_json(self) -> dict[str, Any]:
        """Places as JSON content, for a process of the same machine."""
        return _as_json(self)

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


def _as_json(one: Plan | Places) -> dict[str, Any]:
    return {each.name: json.loads(json.dumps(_plain(getattr(one, each.name)), default=str)) for each in fields(one)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def federate_parser(bundle_root: Path, overrides: Mapping[str, Any]) -> Any:
    """A federation's files with the command line's values on top, as a MONAI ``ConfigParser``; nothing is built."""
    from samfed_monai.config.monai_parser import ConfigParser

    given = {"bundle_root": str(bundle_root), **normal_ids(dict(overrides))}
    config, parser = BundleConfig.of_workflow(bundle_root, "federate", given), ConfigParser()
    parser.read_config([str(path) for path in config.files])
    parser.update(pairs=pairs_for_monai(config))
    return parser


def job_of(parser: Any) -> FederatedJob:
    """The job, built and not run.

    Raises:
        Refused: a value that it does not take.
    """
    with unwrapped(parser):
        job: FederatedJob = parser.get_parsed_content("job")
    return job


class FederatedJob:
    """Check, teacher, soft masks, warm start, rounds, evaluation, in this order, over any transport.

    Args:
        bundle_root: folder of the bundle.
        datalist: file made by ``samfed prepare``.
        data_root: folder that the list's paths are relative to.
        output_dir: the run's folder.
        rounds: federated rounds.
        cache_dir: adapters, soft masks and warm starts, shared by runs; ``None`` is ``<output_dir>/cache``.
        variant: an override file of ``configs/variants``.
        seed: of everything but the teacher, which has its own (``teacher#seed``).
        warm_start_steps: optimiser steps on the public set before round 0; none unless the bundle says how many.
        warm_start_held_out: part of the public images, in [0, 1), that the warm start does not train on and that says
            which of its weights are kept; 0 takes the last ones.
        adapter: an adapter to use as it is; ``None`` fits one, or finds the one that was fitted before.
        start_from: weights that the network begins with: a bundle (name or folder), a finished run's folder or a
            weights file; the warm start then goes on from them. ``None`` builds the network anew.
        masks_from: a model (likewise) that makes the soft masks of the sites' images in place of SAM: the student of an
            earlier run, for a second generation. ``None`` takes SAM.
        train: ids of ``train.json`` that this federation replaces, to values; ``None`` takes those that
            ``federate.json`` and the command line of ``python -m monai.bundle run`` set, where that runs it.
        teacher: ids of ``teacher.json`` to values.
        sites: site to its own choices: ``network`` (a name of the catalogue) and ids of ``train.json``.
        unseen: sites of the list that take no part and are evaluated at the end; a site without unlabelled images is
            one in any case.
        keep_optimizer: keep each site's optimizer moments from round to round.
        update_guard: arguments of :class:`UpdateGuard`, which limits the norm of updates and, if asked for, a site's
            share of the mean; ``None`` is its defaults.
        quorum: sites that must answer in a round; ``None`` is more than half.
        timeout: seconds that a round may take; ``None`` waits.
        allow_single_site: permit a federation of one site.
        privacy: what may leave a site, see ``docs/privacy.md``; ``None`` is the package's defaults.
        compression: how weights travel: ``float32`` (whole), ``bfloat16``, ``int8``, or the rank of their differences.
        workers: processes in which the sites work side by side; 1 has one after the other in this process, ``"auto"``
            takes one for each site and core. Nothing of the result depends on it but last bits, through the number of
            threads; a run may go on with another one. A transport that is given has its own ways.
        verify: hash every image again, although size and date are those that were checked before.

    Example::

        {"_target_": "samfed_monai.federation.FederatedJob", "bundle_root": "@bundle_root", "rounds": "@rounds", ...}
    """

    def __init__(
        self,
        *,
        bundle_root: str | Path,
        datalist: str | Path,
        data_root: str | Path,
        output_dir: str | Path,
        rounds: int,
        cache_dir: str | Path | None = None,
        variant: str = "samfed",
        seed: int = 0,
        warm_start_steps: int = 0,
        warm_start_held_out: float = 0.0,
        adapter: str | Path | None = None,
        start_from: str | Path | None = None,
        masks_from: str | Path | None = None,
        train: Mapping[str, Any] | None = None,
        teacher: Mapping[str, Any] | None = None,
        sites: Mapping[str, Mapping[str, Any]] | None = None,
        unseen: Sequence[str] = (),
        keep_optimizer: bool = True,
        update_guard: Mapping[str, Any] | None = None,
        quorum: int | None = None,
        timeout: float | None = None,
        allow_single_site: bool = False,
        privacy: Mapping[str, Any] | None = None,
        compression: str | int = "float32",
        workers: int | str = 1,
        verify: bool = False,
    ) -> None:
        given = {**locals(), "update_guard": dict(update_guard or {})}
        of_train, train_paths = split_places(training_values_of_command(bundle_root) if train is None else train)
        of_teacher, teacher_paths = split_places(teacher or {})
        choices = {site: split_places(choice) for site, choice in (sites or {}).items()}
        split = {"bundle", "train", "teacher", "sites"}
        settings, paths = (
            {each.name: given[each.name] for each in fields(of) if each.name not in split} for of in (Plan, Places)
        )
        #: All settings that decide the result; sites receive it with every site named (:meth:`Participants.settled`).
        self.plan = Plan(
            bundle=Path(bundle_root).resolve().name,
            train=of_train,
            teacher=of_teacher,
            sites={site: choice for site, (choice, _) in choices.items()},
            **settings,
        )
        #: Paths on this machine.
        self.places = Places(
            train=train_paths,
            teacher=teacher_paths,
            sites={site: there for site, (_, there) in choices.items() if there},
            **paths,
        )
        UpdateGuard.from_json(self.plan.update_guard)  # a limit that is none is refused before anything else

    def run(self, transport: Callable[[Plan], Transport] | None = None) -> dict[str, Any]:
        """Runs what is left to do and writes ``results.json``.

        Args:
            transport: makes what carries messages from the plan in which every site is named, and with it the sites,
                which make themselves ready from that plan (:class:`Site`). Of the list, only the public
                images are then read here. ``None`` runs all sites in this process.

        Returns:
            The content of ``results.json`` (``docs/results-schema.md``).

        Raises:
            Refused: bad input, here or at a site; no round was computed.
            Stopped: half-way, with the last complete round kept.
        """
        from samfed_monai.federation.run import Run  # the sites import this module, too

        return Run(self.plan, self.places).run(transport)
