"""Files that a site (or the server) reads before a run on FLARE: its own site file, and the job's plan.

The site file has the paths of its data, caches and results, its memory and threads, and the minimum privacy that it
requires. It is never sent. Neither torch nor MONAI is imported before there is a plan to read.

Example (``local/samfed_site.json`` in a FLARE workspace)::

    {
        "datalist": "/hospital/samfed/list.json",
        "data_root": "/hospital/images",
        "cache_dir": "/hospital/samfed/cache",
        "runs_dir": "/hospital/samfed/runs"
    }
"""

from __future__ import annotations

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.config.bundles import find_bundle, packaged_bundles
from samfed_monai.config.strict import strict_problems
from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.io import read_json
from samfed_monai.core.process_setup import DEVICE
from samfed_monai.core.validators import require, schema_problems

if TYPE_CHECKING:
    from samfed_monai.federation.plan import Paths, Plan

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def require_run_name(name: str, where: str) -> None:
    """Refuses a name that would be a path.

    Args:
        name: of the run.
        where: its place, for messages.

    Raises:
        Refused: it is not a name of up to 100 letters, digits, dots, dashes and underscores.
    """
    if not RUN_NAME.fullmatch(name):
        expected = "up to 100 letters, digits, dots, dashes and underscores, starting with a letter or digit"
        raise refused(where, repr(name[:120]), expected, "submit the job with another --run-name")


NAME, PLAN = "samfed_site.json", "samfed_plan.json"
VARIABLE, MARK = "SAMFED_SITE", "SAMFED_FLARE_MARK"
"""Environment variables: a site's file or a folder of them, and the mark of ``samfed flare poc`` and ``simulate``."""
_PATHS = ("datalist", "data_root", "cache_dir", "output_dir", "runs_dir", "weights", "bundle_root", "adapter")
_MODELS = {"start_from", "masks_from"}  # paths, or names of bundles
_SERVER_KEYS, _SITE_KEYS = {"adapter", *_MODELS}, {"least_images", "epsilon", "statistics"}
_SCHEMA: dict[str, Any] = read_json(Path(__file__).with_name("site_file.schema.json"))


@dataclass(frozen=True)
class SiteFile:
    """A checked site file.

    Args:
        path: where it was read from.
        datalist: this site's data list: the public part and its own images (the server's: the public part).
        data_root: folder that the list's paths are relative to.
        cache_dir: adapters, soft masks, and the site's state between rounds.
        output_dir: the run's folder itself, if ``samfed flare poc`` or ``simulate`` wrote the file; otherwise
        runs_dir: a folder with one folder per run, named by the job.
        weights: folder of checkpoints (``SAMFED_WEIGHTS``); ``None`` keeps the environment's.
        bundle_root: the bundle's folder; ``None`` takes the packaged bundle of the job's name.
        adapter: server only: an adapter to use as it is.
        start_from: server only: a bundle, a finished run or a weights file with the network's initial weights.
        masks_from: server only: the same for a model that makes the soft masks in place of SAM.
        device: torch device (``cuda:0``); ``None`` leaves it to the bundle.
        memory_limit_gib: maximum memory (data segment, GiB) of the process that trains; ``None`` sets no limit.
        threads: threads of torch in that process; ``None`` leaves it to torch.
        least_images, epsilon, statistics: sites only: arguments of :class:`~samfed_monai.privacy.rules.PrivacyFloor`;
            ``None`` leaves it to the run's plan.
    """

    path: Path
    datalist: Path
    data_root: Path
    cache_dir: Path
    output_dir: Path | None = None
    runs_dir: Path | None = None
    weights: Path | None = None
    bundle_root: Path | None = None
    adapter: Path | None = None
    start_from: str | None = None
    masks_from: str | None = None
    device: str | None = None
    memory_limit_gib: float | None = None
    threads: int | None = None
    least_images: int | None = None
    epsilon: float | None = None
    statistics: tuple[str, ...] | None = None

    def run_folder(self, run_name: str) -> Path:
        """The folder of a run at this site."""
        return self.output_dir or (self.runs_dir or Path()) / run_name

    def paths(self, plan: Plan, run_folder: Path) -> Paths:
        """The paths of a run, from this file alone; a folder that came with the job is never used as the bundle.

        Raises:
            MessageRefused: the file names no bundle, and none of the plan's name comes with the package.
        """
        from samfed_monai.federation.plan import Paths
        from samfed_monai.protocol.message import message_refused

        known = packaged_bundles()
        if not self.bundle_root and plan.bundle not in known:
            raise message_refused("bundle", repr(plan.bundle), f"one of {sorted(known)}", f"set bundle_root in {NAME}")
        return Paths(
            bundle_root=find_bundle(self.bundle_root) if self.bundle_root else known[plan.bundle],
            datalist=self.datalist,
            data_root=self.data_root,
            output_dir=run_folder,
            cache_dir=self.cache_dir,
            adapter=self.adapter,
            start_from=self.start_from,
            masks_from=self.masks_from,
            train={"device": self.device} if self.device else {},
        )


def read_site_file(start: str | Path, site: str | None = None) -> SiteFile:
    """Finds, reads and checks a site file.

    ``$SAMFED_SITE`` names the file, or a folder with one ``<site>.json`` per site; without it, ``local/`` of ``start``
    or of the nearest folder above it has ``samfed_site.json``.

    Args:
        start: a folder inside the FLARE workspace.
        site: the site's name, for a folder of files; ``None`` is ``server``.

    Raises:
        Refused: no file, or with all of its problems.
    """
    path = _find(Path(start), site or "server")
    content = read_json(path)
    problems = schema_problems(content, _SCHEMA, path.name)
    items = content.items() if isinstance(content, dict) else ()
    values = {name: value for name, value in items if value not in (None, "")}
    for name in ("datalist", "data_root", "cache_dir", *(() if "output_dir" in values else ("runs_dir",))):
        if name not in values:
            problems.append(Problem(f"{path.name} -> {name}", "nothing", "a path", "add it; see docs/deploy.md"))
    others = dict.fromkeys(*((_SITE_KEYS, "a site's file") if site is None else (_SERVER_KEYS, "the server's file")))
    if MARK not in os.environ:
        others["output_dir"] = "files that `samfed flare poc` and `simulate` write; here runs_dir has a folder per run"
    for name in sorted(others.keys() & values.keys()):
        expected = f"no value: this key belongs in {others[name]}"
        problems.append(Problem(f"{path.name} -> {name}", "a value", expected, "remove it; see docs/deploy.md"))
    # relative to the site's file: FLARE's working directory is the job's
    texts = {name: text for name, text in values.items() if name in (*_PATHS, *_MODELS) and isinstance(text, str)}
    bundles = {name for name in _MODELS & texts.keys() if texts[name] in packaged_bundles()}
    paths = {name: path.parent / Path(text).expanduser() for name, text in texts.items() if name not in bundles}
    for name in ("datalist", "data_root"):
        if name in paths and not paths[name].exists():
            found = f"{values[name]}, which does not exist"
            problems.append(Problem(f"{path.name} -> {name}", found, "an existing path"))
    require(problems)
    models = {name: str(paths[name]) for name in _MODELS & paths.keys()}
    statistics = {"statistics": tuple(values["statistics"])} if "statistics" in values else {}
    return SiteFile(path=path, **{**values, **paths, **models, **statistics})


def _find(start: Path, site: str) -> Path:
    candidates = [folder / "local" / NAME for folder in (start.resolve(), *start.resolve().parents)]
    if variable := os.environ.get(VARIABLE):
        path = Path(variable).absolute()
        candidates = [path / f"{site}.json" if path.is_dir() else path]
    for path in candidates:
        if path.is_file():
            return path
    hint = f"write {NAME} into local/ of this site's start-up kit (docs/deploy.md), or set ${VARIABLE}"
    raise refused(f"{site}: {NAME}", "no such file", str(candidates[0]), hint)


def read_plan(path: str | Path) -> Plan:
    """Reads the plan of a job; it may not contain expressions, paths, or classes that are not listed.

    Raises:
        Refused: with all of its problems.
    """
    from samfed_monai.federation.plan import Plan

    plan = Plan.from_json(read_json(path))
    rest = {name: dict(getattr(plan, name) or {}) for name in ("teacher", "privacy", "update_guard")}
    problems = [*strict_problems(dict(plan.train), "plan"), *strict_problems(rest, "plan")]
    for site, choices in plan.sites.items():
        problems += strict_problems(dict(choices), f"plan -> sites -> {site}")
    if "/" in plan.bundle or "\\" in plan.bundle or plan.bundle.startswith("."):
        problems.append(Problem("plan -> bundle", found=repr(plan.bundle), expected="a bundle's name, not a path"))
    require(problems)
    return plan


def apply_limits(files: SiteFile) -> None:
    """Applies the file's settings to the whole process; call it before torch is imported, if possible."""
    if files.device is not None:  # also for the teacher, which the configuration of the sites' training does not reach
        os.environ[DEVICE] = files.device
    if files.weights is not None:
        os.environ["SAMFED_WEIGHTS"] = str(files.weights)
    if files.memory_limit_gib is not None:
        most = int(files.memory_limit_gib * 1024**3)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    if files.threads is not None:
        import torch

        torch.set_num_threads(files.threads)
