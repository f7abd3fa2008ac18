"""``samfed flare``: the same federation on NVIDIA FLARE, in its simulator, on one machine, or in hospitals."""

from __future__ import annotations

import argparse
import logging
import shlex
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.cli.arguments import absolute, add_bundle, add_data, take_overrides
from samfed_monai.cli.federate import overrides_from
from samfed_monai.core.errors import ExitCode, Problem, Refused, refused
from samfed_monai.core.io import PUBLIC, read_json, write_text

if TYPE_CHECKING:
    from samfed_monai.flare.job import Planned

logger = logging.getLogger(__name__)

_ABOUT = {
    "export": "write a complete FLARE job and change nothing else",
    "simulate": "run it in FLARE's simulator: one machine, no network security",
    "poc": "run it on a whole FLARE system of this machine: certificates, real server and client processes",
    "submit": "hand it to a running FLARE system with an admin's start-up kit, wait, and fetch the results",
}


def add_flare_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed flare export|simulate|poc|submit BUNDLE ...`` and ``samfed flare fetch JOB``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "flare",
        help="the same federation on NVIDIA FLARE: export | simulate | poc | submit | fetch",
        description="Runs a federation on NVIDIA FLARE with the bundle's federate.json as it is; results are those of "
        "`samfed federate`. Needs `pip install 'samfed-monai[flare]'`; docs/deploy.md is the operator's guide.",
        allow_abbrev=False,
    )
    ways = parser.add_subparsers(title="ways", metavar="WAY", required=True)
    for way, about in _ABOUT.items():
        _add_way(ways, way, about)
    _add_fetch(ways)
    return parser


def _add_fetch(ways: argparse._SubParsersAction) -> None:
    about = "wait for a job that was submitted before, and fetch its results"
    parser = ways.add_parser("fetch", help=about, description=f"{about.capitalize()}.", allow_abbrev=False)
    parser.add_argument("job", metavar="JOB", help="FLARE's identifier of the job, as `samfed flare submit` prints it")
    parser.add_argument("--kit", metavar="DIR", required=True, help="an admin's start-up kit")
    parser.add_argument("--output-dir", metavar="RUN", required=True, help="where results go")
    parser.add_argument("--stop-after", metavar="SECONDS", type=float, help="stop waiting after this long")
    parser.set_defaults(run=run_fetch)


def _add_way(ways: argparse._SubParsersAction, way: str, about: str) -> None:
    parser = ways.add_parser(way, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False)
    whole = ", or the folder of a job that `samfed flare export` wrote" if way == "submit" else ""
    add_bundle(parser, whole)
    local = way in ("simulate", "poc")
    if local:
        add_data(parser)
    else:
        parser.add_argument("--datalist", metavar="LIST", help="data list that names the sites")
        parser.set_defaults(data_root=None)
    parser.add_argument("--rounds", metavar="N", type=int, help="federated rounds (default: those of federate.json)")
    parser.add_argument("--variant", metavar="NAME", help="a baseline or ablation, see `samfed variants`")
    parser.add_argument("--run-name", metavar="NAME", help="name of the job and, at every place, of the run's folder")
    if way != "export":
        parser.add_argument("--output-dir", metavar="RUN", required=True, help="the run's folder, or where results go")
        ends = "stop waiting after this long; the job goes on" if way == "submit" else "end everything after this long"
        parser.add_argument("--stop-after", metavar="SECONDS", type=float, help=ends)
    if way == "export":
        parser.add_argument("--job", metavar="DIR", required=True, help="folder of the job")
        parser.set_defaults(output_dir=None)
    if local:
        parser.add_argument("--cache-dir", metavar="DIR", help="adapters, soft masks and warm starts that runs share")
        parser.add_argument("--workspace", metavar="DIR", help="keep FLARE's own folder there (default: temporary)")
        parser.add_argument("--threads", metavar="N", type=int, help="threads of each process that computes")
    else:
        parser.set_defaults(cache_dir=None)
    if way == "poc":
        parser.add_argument("--port", metavar="N", type=int, default=8102, help="of the FLARE server (default 8102)")
    if way == "submit":
        parser.add_argument("--kit", metavar="DIR", required=True, help="an admin's start-up kit")
        parser.add_argument(
            "--wait-for-sites",
            metavar="SECONDS",
            type=float,
            default=300.0,
            help="how long to wait for sites that are not connected; then the quorum is enough for a run that goes on",
        )
        parser.add_argument(
            "--no-wait", action="store_true", help="submit and return; `samfed flare fetch` gets the results"
        )
    take_overrides(parser, "federate.json, or that option of the sites' train.json", "federate.json", "train.json")
    parser.set_defaults(run=run, way=way)


def run(arguments: argparse.Namespace) -> int:
    """Runs one way."""
    require_flare()
    _WAYS[arguments.way](arguments, overrides_from(arguments))
    return int(ExitCode.DONE)


def require_flare() -> None:
    """Refuses to go on without NVIDIA FLARE, which is an optional extra.

    Raises:
        Refused: it is not installed; the message has the command that installs it.
    """
    if find_spec("nvflare") is None:
        hint = "install it with `pip install 'samfed-monai[flare]'`"
        raise refused("NVIDIA FLARE", found="not installed", expected="nvflare 2.9 or later", hint=hint)


def _export(arguments: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from samfed_monai.flare.job import allow_list_snippet, export_plan, planned

    expected, hint = "nothing: paths are configured at each participant", "leave it out"
    if given := [name for name in ("data_root", "output_dir") if name in overrides]:
        raise Refused([Problem(f"--{name}", repr(overrides[name]), expected, hint) for name in given])
    run = planned(arguments.bundle, overrides, here=False)
    job = export_plan(str(absolute(arguments.job)), run.plan, run_name=_run_name(arguments, run))
    classes = job.with_name(f"{job.name}.class_allow_list.json")
    write_text(classes, allow_list_snippet() + "\n", mode=PUBLIC)
    logger.info("classes that each participant's local/resources.json has to allow: %s", classes)
    logger.info("job: %s (%d sites; submit it with `samfed flare submit`)", job, len(run.sites))


def _on_this_machine(arguments: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from samfed_monai.flare import local
    from samfed_monai.flare.job import export_plan, planned

    run = planned(arguments.bundle, overrides)
    if run.datalist is None:
        raise refused("--datalist", found="nothing", expected="a data list with every site's images")
    output = run.places.output_dir
    output.mkdir(parents=True, exist_ok=True)
    name = _run_name(arguments, run)
    with _workspace(absolute(arguments.workspace)) as place:
        folder = Path(place)
        start: Callable[..., Any] = local.simulate
        if arguments.way == "poc":
            start = partial(local.run_poc, port=arguments.port)
        start(
            export_plan(folder / name, run.plan, run_name=name),
            sites=run.sites,
            workspace=folder / "workspace",
            run_folder=output,
            site_files=local.write_site_files(
                folder / "sites", run.datalist, run.places, run.sites, threads=arguments.threads
            ),
            timeout=arguments.stop_after,
            environment={"OMP_NUM_THREADS": str(arguments.threads)} if arguments.threads else {},
        )
    run.report().write()
    logger.info("results: %s", output / "results.json")


def _submit(arguments: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    from samfed_monai.flare.job import export_plan, exported_again, planned
    from samfed_monai.flare.session import open_session, submit_job, wait_for_sites

    with tempfile.TemporaryDirectory(prefix="samfed-flare-") as folder:
        if any((Path(arguments.bundle) / part).exists() for part in ("meta.json", "app")):
            _require_no_options(arguments, overrides)
            job, plan = exported_again(arguments.bundle, folder)
        else:
            run = planned(arguments.bundle, overrides, here=False)
            plan, name = run.plan, _run_name(arguments, run)
            job = export_plan(Path(folder) / name, plan, run_name=name)
        with open_session(str(absolute(arguments.kit))) as session:
            sites, least = sorted((*plan.sites, *plan.unseen)), read_json(job / "meta.json")["min_clients"]
            wait_for_sites(session, sites, timeout=arguments.wait_for_sites, least=least)
            job_id = submit_job(session, job)
            if not arguments.no_wait:
                _follow(session, job_id, arguments)


def _require_no_options(arguments: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    """Refuses options beside a job folder: its plan is made."""
    given = sorted(key for key in overrides if key != "output_dir")
    if arguments.run_name:
        given.append("run-name")
    found, hint = f"beside the job {arguments.bundle}", "export the job again with it, or submit the bundle instead"
    if given:
        raise Refused([Problem(f"--{name}", found, "nothing: the job has it", hint) for name in given])


def run_fetch(arguments: argparse.Namespace) -> int:
    """Waits for the end of a job that was submitted before, and fetches its results."""
    require_flare()
    from samfed_monai.flare.session import open_session

    with open_session(str(absolute(arguments.kit))) as session:
        _follow(session, arguments.job, arguments)
    return int(ExitCode.DONE)


def _follow(session: Any, job_id: str, arguments: argparse.Namespace) -> None:
    from samfed_monai.flare.session import fetch_results, follow
    from samfed_monai.flare.status import raise_for_status

    kit, output = str(absolute(arguments.kit)), Path(str(absolute(arguments.output_dir)))
    command = shlex.join(["samfed", "flare", "fetch", job_id, "--kit", kit, "--output-dir", str(output)])
    ended = follow(session, job_id, fetch=f"`{command}` fetches its results", timeout=arguments.stop_after)
    logger.info("FLARE's status: %s", ended)
    raise_for_status(fetch_results(session, job_id, output))
    logger.info("results: %s", output / "results.json")


_WAYS = {"export": _export, "simulate": _on_this_machine, "poc": _on_this_machine, "submit": _submit}


def _run_name(arguments: argparse.Namespace, run: Planned) -> str:
    from samfed_monai.flare.site_file import RUN_NAME

    if arguments.run_name:
        return str(arguments.run_name)
    folder = Path(arguments.output_dir or arguments.job).resolve().name
    return folder if RUN_NAME.fullmatch(folder) else f"{run.plan.bundle}-{run.plan.variant}"


def _workspace(kept: str | None) -> AbstractContextManager[str]:
    """FLARE's own folder: ``kept``, or a temporary one."""
    if kept is None:
        return tempfile.TemporaryDirectory(prefix="samfed-flare-", ignore_cleanup_errors=True)
    Path(kept).mkdir(parents=True, exist_ok=True)
    return nullcontext(kept)
