"""A job as data: its ``Plan`` decides the result, its ``Paths`` are paths on one machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from samfed_monai.config.parse import flat
from samfed_monai.core.errors import Problem
from samfed_monai.core.io import canonical_hash, read_json
from samfed_monai.core.validators import require, schema_problems, whole
from samfed_monai.federation.workflow import PATHS, bundle_content
from samfed_monai.protocol import compression

AUTO = "auto"
SCHEMA: Mapping[str, Any] = read_json(Path(__file__).with_name("plan.schema.json"))
"""JSON Schema of a plan."""


@dataclass(frozen=True)
class Plan:
    """All settings that decide a run's result, as JSON content, without any path.

    Args:
        bundle: the bundle's name.
        train, teacher: overrides of ``train.json`` and ``teacher.json``, ids to values, without paths.
        sites: site to its own overrides, without paths. :meth:`Participants.resolve` names every site.

    The other arguments are those of :class:`FederatedJob`.

    Raises:
        Refused: a field of the wrong type or out of range, or content that is not JSON; all problems at once.

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
        problems = schema_problems(content, SCHEMA, "plan")
        for name, value in content.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                problems.append(Problem(f"plan -> {name}", "a value that JSON cannot represent", "plain values"))
        require(problems)
        object.__setattr__(self, "unseen", tuple(self.unseen))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON content."""
        return _as_json(self)

    @classmethod
    def from_json(cls, content: Any) -> Plan:
        """Reads the result of :meth:`to_json`.

        Raises:
            Refused: unknown or missing keys, or values of the wrong type; all problems at once.
        """
        require(schema_problems(content, SCHEMA, "plan"))
        return cls(**content)

    @property
    def hash(self) -> str:
        """SHA-256 of the plan."""
        return canonical_hash(self.to_json())

    @property
    def updates_hash(self) -> str:
        """SHA-256 of all settings that decide the sites' updates: not quorum, timeout, one-site permit and guard."""
        plain = replace(self, timeout=None, quorum=None, allow_single_site=False, update_guard={})
        return canonical_hash(plain.to_json())

    def fingerprint(self, bundle_root: str | Path) -> str:
        """SHA-256 of the plan and of the bundle's files that it uses, without paths and notes."""
        return canonical_hash({"plan": self.to_json(), "bundle": bundle_content(bundle_root, self.variant)})


@dataclass(frozen=True)
class Paths:
    """Paths, and other settings of one machine that do not change the result.

    Args:
        datalist: file made by ``samfed prepare``; at a site, one with its own images is enough.
        start_from, masks_from: read only at the server, which sends their weights to the sites; the hash of their
            content is in ``run.json -> hashes``.
        train, teacher: ids that are paths or devices (``checkpoint``, ``device``, …) to values.
        sites: site to such ids, for sites that share this machine.

    The other arguments are those of :class:`FederatedJob`; the result does not depend on them.

    Raises:
        Refused: an invalid number of workers.
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
        """The arguments as JSON content, for another process on this machine."""
        return _as_json(self)

    def overrides(self) -> dict[str, Any]:
        """Ids of ``train.json`` that are paths, with their values here."""
        given = {name: str(getattr(self, name)) for name in ("datalist", "data_root", "bundle_root", "output_dir")}
        return {**self.train, **given}


def split_paths(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits overrides by id into (settings that decide the result, paths)."""
    pairs = flat(overrides)
    paths = {name: value for name, value in pairs.items() if name in PATHS}
    return {name: value for name, value in pairs.items() if name not in PATHS}, paths


def _as_json(part: Plan | Paths) -> dict[str, Any]:
    return {each.name: json.loads(json.dumps(getattr(part, each.name), default=str)) for each in fields(part)}
