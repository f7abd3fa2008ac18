"""``Plan``: the settings that decide a run's result, sent to sites; ``Places``: paths on one machine, never sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from samfed_monai.config.parse import flat
from samfed_monai.core.errors import Problem, Problems, Refused, did_you_mean
from samfed_monai.core.io import canonical_hash
from samfed_monai.federation.workflow import PLACES, bundle_content

AUTO = "auto"
_NUMBER = (int, float)
_TYPES: dict[str, tuple[type, ...]] = {
    "bundle": (str,),
    "rounds": (int,),
    "variant": (str,),
    "seed": (int,),
    "warm_start_steps": (int,),
    "warm_start_held_out": _NUMBER,
    "train": (Mapping,),
    "teacher": (Mapping,),
    "sites": (Mapping,),
    "unseen": (list, tuple),
    "keep_optimizer": (bool,),
    "update_guard": (Mapping,),
    "quorum": (int, type(None)),
    "timeout": (*_NUMBER, type(None)),
    "allow_single_site": (bool,),
    "privacy": (Mapping, type(None)),
    "renewal": (Mapping, type(None)),
}
_LEAST = {"rounds": 1, "seed": 0, "warm_start_steps": 0, "quorum": 1}
_WORDS = {Mapping: "an object", list: "a list", tuple: "a list", str: "a string", int: "a whole number"}
_WORDS |= {float: "a number", bool: "true or false", type(None): "null"}


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
        renewal: after which rounds sites renew their soft masks (``federate.json -> renewal``); ``None`` is never.

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
    renewal: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _problems(self).refuse_if_any()
        object.__setattr__(self, "unseen", tuple(self.unseen))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON content."""
        content: dict[str, Any] = json.loads(json.dumps({name: _plain(getattr(self, name)) for name in _TYPES}))
        return content

    @classmethod
    def from_json(cls, content: Any) -> Plan:
        """Reads what :meth:`to_json` wrote.

        Raises:
            Refused: unknown or missing keys, or values of another type; every problem at once.
        """
        if not isinstance(content, Mapping):
            raise Refused([Problem("plan", found=type(content).__name__, expected="a JSON object")])
        problems, known = Problems(), [each.name for each in fields(cls)]
        for name in content:
            if name not in known:
                hint = did_you_mean(str(name), known)
                problems.add(f"plan -> {name}", found="an unknown key", expected=f"one of {known}", hint=hint)
        for name in ("bundle", "rounds"):
            if name not in content:
                problems.add(f"plan -> {name}", found="no such key", expected="one")
        problems.refuse_if_any()
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
        """SHA-256 of the plan and of the bundle's files that it runs with; places and notes in them do not count."""
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
        adapter: an adapter to use as it is, or several to average; ``None`` fits one, or finds a fitted one.
        start_from: a bundle, a finished run or a weights file that the network begins with; read at the server alone,
            whose weights the sites receive. Its content is in ``run.json -> hashes#start``.
        train, teacher: ids that are places (``checkpoint``, ``device``, …) to values.
        sites: site to such ids, for sites that share this machine.
        workers: processes in which the sites of this machine work side by side; 1 is this process, ``"auto"`` as many
            as there are sites and cores (:func:`samfed_monai.federation.process_transport.workers_of`). Nothing of the
            result depends on it.
        verify: hash every image again, although they were checked before.
        mlflow: MLflow's store, see :func:`samfed_monai.federation.tracking.mlflow_store`; ``None`` is none.

    Raises:
        Refused: another number of workers.
    """

    bundle_root: Path
    datalist: Path
    data_root: Path
    output_dir: Path
    cache_dir: Path | None = None
    adapter: str | Path | Sequence[str | Path] | None = None
    start_from: str | Path | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, Any] = field(default_factory=dict)
    sites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    workers: int | str = 1
    verify: bool = False
    mlflow: bool | str | None = None

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
        """The folder that ``cache_dir`` stands for."""
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
        """Ids of ``train.json`` that are places, with their values here."""
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


def _problems(plan: Plan) -> Problems:
    problems = Problems()
    for name, kinds in _TYPES.items():
        value = getattr(plan, name)
        wrong_bool = isinstance(value, bool) and bool not in kinds
        if wrong_bool or not isinstance(value, kinds):
            expected = " or ".join(dict.fromkeys(_WORDS[kind] for kind in kinds))
            problems.add(f"plan -> {name}", found=f"{value!r} ({type(value).__name__})"[:80], expected=expected)
            continue
        least = _LEAST.get(name)
        if least is not None and isinstance(value, int) and value < least:
            problems.add(f"plan -> {name}", found=repr(value), expected=f"at least {least}")
        try:
            json.dumps(_plain(value), allow_nan=False)
        except (TypeError, ValueError):
            problems.add(f"plan -> {name}", found="something that JSON cannot hold", expected="plain values")
    held_out = plan.warm_start_held_out
    if isinstance(held_out, _NUMBER) and not 0 <= held_out < 1:
        problems.add("plan -> warm_start_held_out", found=repr(held_out), expected="a part in [0, 1)")
    if isinstance(plan.timeout, _NUMBER) and not plan.timeout > 0:
        problems.add("plan -> timeout", found=repr(plan.timeout), expected="seconds above 0, or null, which waits")
    if isinstance(plan.sites, Mapping):
        for site, choice in plan.sites.items():
            if not isinstance(choice, Mapping):
                found = type(choice).__name__
                problems.add(f"plan -> sites -> {site}", found=found, expected="an object of choices, or an empty one")
    return problems
