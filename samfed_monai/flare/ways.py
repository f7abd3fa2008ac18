"""The sub-commands of ``samfed flare``: export, simulate, poc, submit, fetch."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import PUBLIC, read_json, write_text
from samfed_monai.flare.job import Planned, allow_list_snippet, export_plan, exported_again, planned
from samfed_monai.flare.local import run_poc, write_site_files
from samfed_monai.flare.local import simulate as run_simulator
from samfed_monai.flare.session import fetch_results, follow, open_session, submit_job, wait_for_sites
from samfed_monai.flare.site_file import RUN_NAME
from samfed_monai.flare.watch import raise_for_status

logger = logging.getLogger(__name__)

Options = Mapping[str, Any]


def export(bundle: str, overrides: Options, arguments: argparse.Namespace, paths: Options) -> None:
    """Writes a job."""
    expected, hint = "nothing: each participant's own file says where it keeps things", "leave it out"
    if places := [name for name in ("data_root", "output_dir") if name in overrides]:
        raise Refused([Problem(f"--{name}", repr(overrides[name]), expected, hint) for name in places])
    run = planned(bundle, overrides, here=False)
    job = export_plan(paths["job"], run.plan, run_name=_name(arguments, run))
    classes = job.with_name(f"{job.name}.class_allow_list.json")
    write_text(classes, allow_list_snippet() + "\n", mode=PUBLIC)
    logger.info("classes that each participant's local/resources.json has to allow: %s", classes)
    logger.info("job: %s (%d sites; submit it with `samfed flare submit`)", paths["job"], len(run.sites))


def simulate(bundle: str, overrides: Options, arguments: argparse.Namespace, paths: Options) -> None:
    """Runs the job in the simulator."""
    run = planned(bundle, overrides)
    with _workspace(paths["workspace"], arguments.keep_workspace) as folder:
        common = _prepare(run, folder, arguments)
        run_simulator(**common)
    _report(run)


def poc(bundle: str, overrides: Options, arguments: argparse.Namespace, paths: Options) -> None:
    """Runs the job on a whole FLARE system of this machine."""
    run = planned(bundle, overrides)
    with _workspace(paths["workspace"], arguments.keep_workspace) as folder:
        common = _prepare(run, folder, arguments)
        run_poc(**common, port=arguments.port)
    _report(run)


def submit(bundle: str, overrides: Options, arguments: argparse.Namespace, paths: Options) -> None:
    """Submits a job, exported before or made now, and fetches its results."""
    kit, output = paths["kit"], Path(paths["output_dir"])
    with tempfile.TemporaryDirectory(prefix="samfed-flare-") as folder:
        if any((Path(bundle) / part).exists() for part in ("meta.json", "app")):
            _require_no_options(bundle, overrides, arguments)
            job, plan = exported_again(bundle, folder)
        else:
            run = planned(bundle, overrides, here=False)
            plan, name = run.plan, _name(arguments, run)
            job = export_plan(Path(folder) / name, plan, run_name=name)
        with open_session(kit) as session:
            sites, least = sorted((*plan.sites, *plan.unseen)), read_json(job / "meta.json")["min_clients"]
            wait_for_sites(session, sites, timeout=arguments.wait_for_sites, least=least)
            job_id = submit_job(session, job)
            if arguments.no_wait:
                return
            _follow(session, job_id, kit, output, timeout=arguments.stop_after)


def _require_no_options(job: str, overrides: Options, arguments: argparse.Namespace) -> None:
    """Refuses options that a job folder, whose plan is made, does not heed."""
    given = sorted(key for key in overrides if key != "output_dir")
    if arguments.run_name:
        given.append("run-name")
    hint = "export the job again with it, or submit the bundle instead of the job's folder"
    problems = [
        Problem(f"--{name}", found=f"beside the job {job}", expected="nothing: the job has it", hint=hint)
        for name in given
    ]
    if problems:
        raise Refused(problems)


def fetch(job_id: str, kit: str, output: Path, *, timeout: float | None) -> None:
    """Waits for the end of a job that was submitted before, and fetches its results.

    Args:
        job_id: FLARE's identifier of the job.
        kit: an admin's start-up kit.
        output: folder of the results.
        timeout: seconds to wait; ``None`` waits until it ends.
    """
    with open_session(kit) as session:
        _follow(session, job_id, kit, output, timeout=timeout)


def _follow(session: Any, job_id: str, kit: str, output: Path, *, timeout: float | None) -> None:
    command = shlex.join(["samfed", "flare", "fetch", job_id, "--kit", kit, "--output-dir", str(output)])
    ended = follow(session, job_id, fetch=f"`{command}` fetches its results", timeout=timeout)
    logger.info("FLARE's status: %s", ended)
    raise_for_status(fetch_results(session, job_id, output))
    logger.info("results: %s", output / "results.json")


WAYS = {"export": export, "simulate": simulate, "poc": poc, "submit": submit}


def _prepare(run: Planned, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Site files, the job and the arguments that both ways on one machine take."""
    if run.datalist is None:
        raise Refused([Problem("--datalist", found="nothing", expected="a data list with every site's images")])
    output = run.places.output_dir
    output.mkdir(parents=True, exist_ok=True)
    name = _name(arguments, run)
    files = write_site_files(folder / "sites", run.datalist, run.places, run.sites, threads=arguments.threads)
    job = export_plan(folder / name, run.plan, run_name=name)
    threads = {"OMP_NUM_THREADS": str(arguments.threads)} if arguments.threads else {}
    return {
        "job": job,
        "sites": run.sites,
        "workspace": folder / "workspace",
        "run_folder": output,
        "site_files": files,
        "timeout": arguments.stop_after,
        "environment": threads,
    }


def _name(arguments: argparse.Namespace, run: Planned) -> str:
    if arguments.run_name:
        return str(arguments.run_name)
    folder = Path(arguments.output_dir or arguments.job).resolve().name
    return folder if RUN_NAME.fullmatch(folder) else f"{run.plan.bundle}-{run.plan.variant}"


@contextmanager
def _workspace(named: str | None, keep: bool) -> Iterator[Path]:
    if named is not None and keep:
        Path(named).mkdir(parents=True, exist_ok=True)
        yield Path(named)
        return
    if named is not None:
        Path(named).mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="samfed-flare-", dir=named)
    try:
        yield Path(folder)
    finally:
        if keep:
            logger.info("FLARE's folder: %s", folder)
        else:
            import shutil

            shutil.rmtree(folder, ignore_errors=True)
            if named is not None and not os.listdir(named):
                os.rmdir(named)


def _report(run: Planned) -> None:
    run.report().write()
    logger.info("results: %s", run.places.output_dir / "results.json")
