"""``samfed flare``: the same federation on NVIDIA FLARE, in its simulator, on one machine, or in hospitals."""

from __future__ import annotations

import argparse
from pathlib import Path

from samfed_monai.cli.arguments import absolute, add_bundle, add_data, take_overrides
from samfed_monai.cli.federate import overrides_from
from samfed_monai.core.errors import ExitCode

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
    parser.add_argument("job", metavar="JOB", help="FLARE's identifier of the job, as `samfed flare submit` told it")
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
        parser.add_argument("--workspace", metavar="DIR", help="FLARE's own folder (default: a temporary one)")
        parser.add_argument("--keep-workspace", action="store_true", help="leave FLARE's own folder for inspection")
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
    take_overrides(parser, "federate.json, or that knob of the sites' train.json", "federate.json", "train.json")
    parser.set_defaults(run=run, way=way)


def run(arguments: argparse.Namespace) -> int:
    """Runs one way."""
    from samfed_monai.flare.needs import require_flare

    require_flare()
    from samfed_monai.flare import ways

    options = {name: absolute(getattr(arguments, name, None)) for name in ("workspace", "job", "kit", "output_dir")}
    ways.WAYS[arguments.way](arguments.bundle, overrides_from(arguments), arguments, options)
    return int(ExitCode.DONE)


def run_fetch(arguments: argparse.Namespace) -> int:
    """Fetches the results of a job."""
    from samfed_monai.flare.needs import require_flare

    require_flare()
    from samfed_monai.flare.ways import fetch

    kit, output = (str(absolute(each)) for each in (arguments.kit, arguments.output_dir))
    fetch(arguments.job, kit, Path(output), timeout=arguments.stop_after)
    return int(ExitCode.DONE)
