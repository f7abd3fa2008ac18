"""Writes a FLARE job from a bundle's ``federate.json``: FLARE's three JSON files and the plan, no code."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.job_config.api import FedJob

from samfed_monai.config import find_bundle
from samfed_monai.config.check import check_bundle
from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.io import PUBLIC, naming, read_json, require_writable, write_json
from samfed_monai.core.validators import require
from samfed_monai.data import DataList
from samfed_monai.federation.job import job_of
from samfed_monai.federation.participants import Participants
from samfed_monai.federation.plan import Paths, Plan
from samfed_monai.federation.run import plan_problems
from samfed_monai.federation.server import quorum_of
from samfed_monai.flare.controller import FederationController
from samfed_monai.flare.executor import SiteExecutor
from samfed_monai.flare.site_file import PLAN, read_plan, require_run_name
from samfed_monai.privacy import Privacy, notes_on_statistics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedRun:
    """The plan of a command line.

    Args:
        plan: with every site named.
        paths: on this machine.
        datalist: the whole list; empty if none was given and ``federate.json`` names the sites.
        report: the bundle's own report component.
    """

    plan: Plan
    paths: Paths
    datalist: DataList
    report: Any

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all sites, including unseen ones."""
        return tuple(sorted((*self.plan.sites, *self.plan.unseen)))


_READ = frozenset(f"job#{each.name}" for each in (*fields(Plan), *fields(Paths))) - {"job#workers", "job#verify"}
"""Ids of ``federate.json`` that a job is planned from, or refused for; others are in each participant's own file."""

_HERE = _READ | {"report"}
"""The same if every participant is on this machine."""


def _require_names(plan: Plan) -> None:
    """Refuses sites with names that FLARE does not accept, before anything is started (fault 69)."""
    problems, expected = [], "letters without accents, digits, - and _ (NVIDIA FLARE accepts no others)"
    for name in sorted((*plan.sites, *plan.unseen)):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):  # FLARE 2.9: nvflare.apis.utils.format_check
            ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
            suggestion = re.sub(r"[^A-Za-z0-9_-]+", "_", ascii_name).strip("_") or "site"
            hint = f"rename its folder and its entry in the list to {suggestion!r}; `samfed federate` accepts any name"
            problems.append(Problem(f"sites -> {name}", repr(name), expected, hint))
    require(problems)


def planned(bundle: str | Path, overrides: Mapping[str, Any], *, here: bool = True) -> PlannedRun:
    """Checks the bundle with its overrides and plans the run, without running anything.

    Args:
        bundle: folder or packaged name.
        overrides: ids of ``federate.json`` and the values that the command line gives them.
        here: whether it will run on this machine, so that checkpoints and images must be here.

    Raises:
        Refused: with every problem of the bundle, the overrides or the list.
    """
    root = find_bundle(bundle)
    require(check_bundle(root, "federate", overrides=dict(overrides), ready=here, reads=_HERE if here else _READ))
    job, parser = job_of(root, overrides)
    _require_no_paths(job.paths, here=here)
    for folder in (job.paths.output_dir, job.paths.cache) if here else ():
        require_writable(folder)
    datalist = DataList.load(job.paths.datalist) if overrides.get("datalist") else None
    participants = Participants.of(job.plan, job.paths, datalist or DataList("", []))
    plan = participants.resolve(job.plan)
    _require_names(plan)
    require(plan_problems(job.plan, job.paths, participants, datalist, sites=len(participants.sites), build=True))
    for note in notes_on_statistics(Privacy.from_json(job.plan.privacy), participants.strategy, job.plan.variant):
        logger.warning("%s", note)
    return PlannedRun(plan, job.paths, datalist or DataList("", []), lambda: parser.get_parsed_content("report"))


def _require_no_paths(paths: Paths, *, here: bool) -> None:
    # a job has no paths of sites; a path on the command line is refused rather than silently ignored
    given = [f"sites#{site}#{name}" for site, ids in paths.sites.items() for name in ids]
    given += [f"teacher#{name}" for name in paths.teacher]
    given += [name for name in paths.train if not (here and name == "device")]  # which is written to all their files
    if not here:  # of the server, which would otherwise fit another teacher
        given += [name for name in ("adapter", "start_from", "masks_from", "cache_dir") if getattr(paths, name)]
    expected = "no path (paths are configured at each participant)"
    hint = "set it, or `weights` for a checkpoint, in samfed_site.json of that participant (docs/deploy.md)"
    require(Problem(f"federate.json -> {name}", "a path", expected, hint) for name in sorted(given))
    if names := [name for name, wanted in {"verify": paths.verify, "workers": paths.workers != 1}.items() if wanted]:
        logger.warning("not used on FLARE: %s (docs/deploy.md)", ", ".join(names))


def export_job(
    folder: str | Path,
    plan: Mapping[str, Any],
    *,
    run_name: str,
    min_clients: int = 1,
    controller: type[FederationController] = FederationController,
    executor: type[SiteExecutor] = SiteExecutor,
) -> Path:
    """Writes a complete job with FLARE's Job API.

    Args:
        folder: the job's folder; it is created.
        plan: settings that every participant must share, as JSON content without paths.
        run_name: name of the run and of the job.
        min_clients: number of clients that FLARE waits for before it starts the job, and below which it ends the job.
        controller: class that FLARE builds at the server, with the run's name.
        executor: class that FLARE builds at a site, without arguments.

    Returns:
        The folder.

    Raises:
        Refused: not a valid folder name.
    """
    require_run_name(run_name, "--run-name")
    job = FedJob(name=run_name, min_clients=min_clients)
    # installed at every participant: without this, FLARE copies their modules into the job
    job.set_app_packages([each.__module__.partition(".")[0] for each in (controller, executor)])
    job.to_server(controller(run_name))
    job.to_server({"server": {"task_request_interval": 0.5}})  # seconds between a site's requests for a task
    job.to_clients(executor(), tasks=["train"])
    with tempfile.TemporaryDirectory(prefix="samfed-job-") as temporary:
        write_json(Path(temporary) / PLAN, dict(plan), mode=PUBLIC)
        job.add_file_to_server(str(Path(temporary) / PLAN), app_folder_type="config")
        job.add_file_to_clients(str(Path(temporary) / PLAN), app_folder_type="config")
        with naming(Path(temporary)):
            job.export_job(temporary)
        shutil.copytree(Path(temporary) / run_name, folder, dirs_exist_ok=True)
    return Path(folder)


def export_plan(folder: str | Path, plan: Plan, *, run_name: str) -> Path:
    """Writes the job of a plan; FLARE waits for as many clients as the plan's quorum.

    Raises:
        Refused: not a valid folder name.
    """
    least = quorum_of(len(plan.sites), plan.quorum, allow_single_site=plan.allow_single_site)
    return export_job(folder, plan.to_json(), run_name=run_name, min_clients=least)


_PARTS: dict[str, Callable[[int], bool]] = {"app": S_ISDIR, "app/config": S_ISDIR, "meta.json": S_ISREG}
_PARTS |= {f"app/config/{name}": S_ISREG for name in ("config_fed_server.json", "config_fed_client.json", PLAN)}
_MOST_SHOWN = 5  # number of problems shown; a whole folder may have been copied there


def export_again(job: str | Path, folder: str | Path) -> tuple[Path, Plan]:
    """Writes an exported job again from its plan, so that nothing else of it is submitted.

    Args:
        job: folder that :func:`export_plan` wrote, which may have been changed since.
        folder: parent of the new job's folder, which has the run's name.

    Returns:
        The new job's folder, and the plan.

    Raises:
        Refused: a file, a folder or a link that no export writes, a file with other content, or a plan that every site
            would refuse.
    """
    job = Path(job)
    modes = {path.relative_to(job).as_posix(): path.lstat().st_mode for path in sorted(job.rglob("*"))}
    wrong = [f"no {part}" for part in _PARTS if part not in modes]
    wrong += [part for part, mode in modes.items() if part not in _PARTS or not _PARTS[part](mode)]
    _refuse_if_any(job, wrong, "only the four files that `samfed flare export` writes")
    meta, plan = read_json(job / "meta.json"), read_plan(job / "app" / "config" / PLAN)
    _require_names(plan)
    name = meta.get("name") if isinstance(meta, dict) else None
    require_run_name(str(name), "meta.json -> name")
    new_job = export_plan(Path(folder) / str(name), plan, run_name=str(name))
    files = [part for part, kind in _PARTS.items() if kind is S_ISREG]
    changed = [f"changed content in {part}" for part in files if _content(job / part) != _content(new_job / part)]
    _refuse_if_any(job, changed, "an unchanged export of its plan")
    return new_job, plan


def _refuse_if_any(job: Path, wrong: Sequence[str], expected: str) -> None:
    more = f" and {len(wrong) - _MOST_SHOWN} more" if len(wrong) > _MOST_SHOWN else ""
    hint = "a job contains no code, and only its plan can be changed; export it again into a new folder"
    if wrong:
        raise refused(job, ", ".join(wrong[:_MOST_SHOWN]) + more, expected, hint)


def _content(path: Path) -> str:
    return json.dumps(read_json(path), sort_keys=True)  # 1, 1.0 and true are three values


#: Classes that our jobs name: single classes, no prefix.
NEEDED = tuple(f"{each.__module__}.{each.__qualname__}" for each in (FederationController, SiteExecutor))
#: Classes that start any command that a job names.
STARTS_COMMANDS = (
    "nvflare.app_common.executors.client_api_executor.ClientAPIExecutor",
    "nvflare.app_common.launchers.subprocess_launcher.SubprocessLauncher",
)
ALLOW_LIST = {"class_allow_list": list(NEEDED)}
"""Entry that an operator adds by hand to each participant's ``local/resources.json``."""


def merge_allow_list(local: str | Path) -> Path:
    """Writes ``resources.json`` into a workspace's ``local/`` folder.

    Starts from ``resources.json`` there, else from ``resources.json.default`` (a provisioned kit has it), else from an
    empty file with FLARE's own default list; this list is kept, and our classes are added. A listed class that starts a
    job's command is kept with a warning: only the site knows what else it serves.

    Args:
        local: the ``local`` folder of a start-up kit or simulator workspace.
    """
    (key,), target = ALLOW_LIST, Path(local) / "resources.json"
    existing = [path for path in (target, target.with_name("resources.json.default")) if path.is_file()]
    content = dict(read_json(existing[0])) if existing else {}
    classes = list(content.get(key) or DEFAULT_CLASS_ALLOW_LIST)
    for name in classes:
        if name in STARTS_COMMANDS or (name.endswith(".") and any(one.startswith(name) for one in STARTS_COMMANDS)):
            logger.warning("%s lists %s: a job may start any command here; remove it, it is not needed", target, name)
    content[key] = classes + [name for name in NEEDED if name not in classes]
    write_json(target, content, mode=PUBLIC)
    return target
