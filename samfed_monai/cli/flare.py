"""``samfed flare``: runs a federation on NVIDIA FLARE, in its simulator, on one machine, or in hospitals."""

from __future__ import annotations

import argparse
import logging
import shlex
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from samfed_monai.cli.arguments import absolute, add_bundle, add_command, add_data, take_overrides
from samfed_monai.cli.federate import overrides_from
from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.io import PUBLIC, absent, atomic_folder, read_json, require_writable, write_json
from samfed_monai.core.run_log import command_line
from samfed_monai.core.validators import COUNT, NOT_NEGATIVE, POSITIVE, installed, require

if TYPE_CHECKING:
    from samfed_monai.federation.plan import Plan

logger = logging.getLogger(__name__)

_ABOUT = {
    "export": "write a complete FLARE job and change nothing else",
    "simulate": "run it in FLARE's simulator: one machine, no network security",
    "poc": "run it on a complete FLARE system on this machine: certificates, real server and client processes",
    "submit": "submit a job to a running FLARE system with an admin's start-up kit, wait, and fetch the results",
    "fetch": "wait for a submitted job, and fetch its results",
}

_SUBMITTED = "flare.job.json"
"""File in the results' folder with the submitted job and the command that submitted it, which FLARE does not know."""

_NUMBERS = {
    "stop_after": partial(POSITIVE, what="a number of seconds"),
    "wait_for_sites": partial(NOT_NEGATIVE, what="a number of seconds"),
    **{"threads": COUNT, "port": partial(COUNT, most=65535)},
}
"""Checks of options with a number."""


def add_flare_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed flare export|simulate|poc|submit BUNDLE ...`` and ``samfed flare fetch JOB``."""
    parser = add_command(subparsers, "flare", kept="stored rounds are kept")
    ways = parser.add_subparsers(title="ways", metavar="WAY", required=True)
    for way, about in _ABOUT.items():
        _add_way(ways, way, about)


def _add_way(ways: argparse._SubParsersAction, way: str, about: str) -> None:
    parser = ways.add_parser(way, help=about, description=f"{about[0].upper()}{about[1:]}.")
    parser.set_defaults(run=run, way=way, data_root=None, output_dir=None, cache_dir=None)
    add, local = parser.add_argument, way in ("simulate", "poc")
    if way == "fetch":
        add("job", metavar="JOB", help="FLARE's identifier of the job, as `samfed flare submit` prints it")
    else:
        add_bundle(parser, ", or the folder of a job that `samfed flare export` wrote" if way == "submit" else "")
        add("--rounds", metavar="N", type=int, help="federated rounds (default: as in federate.json)")
        add("--variant", metavar="NAME", help="a baseline or ablation, see `samfed variants`")
        add("--run-name", metavar="NAME", help="name of the job, and of the run's folder at the server and the sites")
        take_overrides(parser, "federate.json, or that option of the sites' train.json", "federate.json", "train.json")
    if way in ("submit", "export"):
        add("--datalist", metavar="LIST", help="data list that names the sites")
    if way == "export":
        add("--job", metavar="DIR", required=True, help="folder of the job")
    else:
        add("--output-dir", metavar="RUN", required=True, help="the run's folder, or the folder for the results")
        about_stop = "end the run after this time" if local else "stop waiting after this time; the job continues"
        add("--stop-after", metavar="SECONDS", type=float, help=about_stop)
    if local:
        add_data(parser)
        add("--cache-dir", metavar="DIR", help="adapters, soft masks and warm starts that runs share")
        add("--workspace", metavar="DIR", help="keep FLARE's workspace in this folder (default: a temporary folder)")
        add("--threads", metavar="N", type=int, help="threads of each training process")
    if way == "poc":
        add("--port", metavar="N", type=int, default=8102, help="port of the FLARE server (default: 8102)")
    if way in ("submit", "fetch"):
        add("--kit", metavar="DIR", required=True, help="an admin's start-up kit")
    if way == "submit":
        about = "time to wait for sites that are not connected; after it, a resumed run continues with the quorum"
        add("--wait-for-sites", metavar="SECONDS", type=float, default=300.0, help=about)
        add("--no-wait", action="store_true", help="submit and return; `samfed flare fetch` gets the results")


def run(arguments: argparse.Namespace) -> None:
    """Runs ``export``, ``simulate``, ``poc``, ``submit`` or ``fetch``.

    Raises:
        Refused: NVIDIA FLARE, an optional extra, is not installed; the message shows how to install it.
    """
    given = {name: value for name in _NUMBERS if (value := getattr(arguments, name, None)) is not None}
    if arguments.way in ("submit", "fetch"):
        arguments.kit, arguments.output_dir = map(absolute, (arguments.kit, arguments.output_dir))
        require_writable(arguments.output_dir)  # before the job, which may take days
    numbers = [_NUMBERS[name](f"--{name.replace('_', '-')}", value) for name, value in given.items()]
    require(installed("nvflare", "flare", "NVIDIA FLARE", "no nvflare", "nvflare 2.9 or later"), *numbers)
    {"export": _export, "submit": _submit, "fetch": _fetch}.get(arguments.way, _run_locally)(arguments)


def _export(arguments: argparse.Namespace) -> None:
    from samfed_monai.flare.job import ALLOW_LIST, export_plan, planned

    overrides = overrides_from(arguments)
    expected, hint = "no path in a job: paths are configured at each participant", "leave it out"
    given = [name for name in ("data_root", "output_dir") if name in overrides]
    problems = [Problem(f"--{name}", repr(overrides[name]), expected, hint) for name in given]
    require([*problems, *absent("--job", Path(str(absolute(arguments.job))))])
    plan = planned(arguments.bundle, overrides, here=False).plan
    job = Path(str(absolute(arguments.job)))
    classes = job.with_name(f"{job.name}.class_allow_list.json")
    with atomic_folder(job) as folder:  # a part of a job would be in the way of the next export
        export_plan(folder, plan, run_name=_run_name(arguments, plan))
        write_json(classes, ALLOW_LIST, mode=PUBLIC)
    logger.info("class allow-list for local/resources.json of each participant: %s", classes)
    logger.info("job: %s (%d sites; submit it with `samfed flare submit`)", job, len(plan.sites) + len(plan.unseen))


def _run_locally(arguments: argparse.Namespace) -> None:
    from samfed_monai.flare import local
    from samfed_monai.flare.job import export_plan, planned

    run = planned(arguments.bundle, overrides_from(arguments))
    output, threads, given = run.paths.output_dir, arguments.threads, absolute(arguments.workspace)
    name = _run_name(arguments, run.plan)
    start = partial(local.run_poc, port=arguments.port) if arguments.way == "poc" else local.simulate
    workspace = nullcontext(given) if given else TemporaryDirectory(prefix="samfed-flare-", ignore_cleanup_errors=True)
    with workspace as workspace_path:
        folder = Path(workspace_path)
        start(
            export_plan(folder / name, run.plan, run_name=name),
            sites=run.sites,
            workspace=folder / "workspace",
            run_folder=output,
            site_files=local.write_site_files(folder / "sites", run.datalist, run.paths, run.sites, threads=threads),
            timeout=arguments.stop_after,
            environment={"OMP_NUM_THREADS": str(threads)} if threads else {},
        )
    run.report().write()
    logger.info("results: %s", output / "results.json")


def _submit(arguments: argparse.Namespace) -> None:
    from samfed_monai.flare.job import export_again, export_plan, planned
    from samfed_monai.flare.session import open_session, submit_job, wait_for_sites

    overrides = overrides_from(arguments)
    if arguments.no_wait and arguments.stop_after is not None:
        raise refused("--stop-after", "it with --no-wait", "a command that waits", "give it to `samfed flare fetch`")
    with TemporaryDirectory(prefix="samfed-flare-") as folder:
        if any((Path(arguments.bundle) / part).exists() for part in ("meta.json", "app")):
            given = sorted(overrides.keys() - {"output_dir"}) + ["run-name"] * bool(arguments.run_name)
            found, hint = f"it with the job {arguments.bundle}", "export the job with this option, or submit the bundle"
            require(Problem(f"--{name}", found, "no such option: the job sets it", hint) for name in given)
            job, plan = export_again(arguments.bundle, folder)
        else:
            plan = planned(arguments.bundle, overrides, here=False).plan
            name = _run_name(arguments, plan)
            job = export_plan(Path(folder) / name, plan, run_name=name)
        with open_session(arguments.kit) as session:
            sites, least = sorted((*plan.sites, *plan.unseen)), read_json(job / "meta.json")["min_clients"]
            wait_for_sites(session, sites, timeout=arguments.wait_for_sites, least=least)
            job_id = submit_job(session, job)
            write_json(Path(arguments.output_dir) / _SUBMITTED, {job_id: command_line()}, mode=PUBLIC)
            if arguments.no_wait:
                logger.info("next: %s", _fetch_command(job_id, arguments))
            else:
                _follow(session, job_id, arguments)


def _fetch(arguments: argparse.Namespace) -> None:
    from samfed_monai.flare.session import open_session

    with open_session(arguments.kit) as session:
        _follow(session, arguments.job, arguments)


def _follow(session: Any, job_id: str, arguments: argparse.Namespace) -> None:
    from samfed_monai.flare.session import fetch_results, follow, raise_for_status

    output, fetch = Path(arguments.output_dir), f"`{_fetch_command(job_id, arguments)}`"
    submitted = read_json(output / _SUBMITTED) if (output / _SUBMITTED).is_file() else {}
    status = follow(session, job_id, fetch=f"{fetch} fetches its results", timeout=arguments.stop_after)
    logger.info("FLARE's status: %s", status)
    raise_for_status(fetch_results(session, job_id, output, submitted.get(job_id)))
    logger.info("results: %s", output / "results.json")


def _fetch_command(job: str, arguments: argparse.Namespace) -> str:
    return shlex.join(["samfed", "flare", "fetch", job, "--kit", arguments.kit, "--output-dir", arguments.output_dir])


def _run_name(arguments: argparse.Namespace, plan: Plan) -> str:
    from samfed_monai.flare.site_file import RUN_NAME

    if arguments.run_name:
        return str(arguments.run_name)
    folder = Path(arguments.output_dir or arguments.job).resolve().name
    return folder if RUN_NAME.fullmatch(folder) else f"{plan.bundle}-{plan.variant}"
