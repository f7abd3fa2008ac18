"""The server's part of a run: the plan that came with the job, the places of the server's own file, the rounds."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.core.io import read_json, write_json
from samfed_monai.flare.client import PLAN
from samfed_monai.flare.limits import limit
from samfed_monai.flare.post import Post
from samfed_monai.flare.site_file import read_site_file
from samfed_monai.flare.site_job import places_of, read_plan
from samfed_monai.flare.status import RUN_ID
from samfed_monai.flare.transport import FlareTransport

if TYPE_CHECKING:
    from samfed_monai.federation.plan import Plan

logger = logging.getLogger(__name__)


def run_server(
    folder: Path, *, kit: Path, job_config: Path, post: Post, opened: Callable[[FlareTransport], None]
) -> None:
    """Runs what is left of the run in ``folder``.

    Args:
        folder: the run's folder.
        kit: folder of the server's start-up kit, with its site file.
        job_config: folder of the job's configuration files, with the plan.
        post: carries the letters to the sites.
        opened: is given the transport as soon as there is one, before any letter is sent.

    Raises:
        SamFedError: the run is refused or stopped; what there is of it is kept.
    """
    from samfed_monai.federation.job_run import JobRun

    logging.getLogger("samfed_monai").setLevel(logging.INFO)
    files = read_site_file(kit)
    limit(files)
    plan = read_plan(job_config / PLAN)

    def transport(settled: Plan) -> FlareTransport:
        sites = tuple(sorted({*settled.sites, *settled.unseen}))
        run = run_identifier(folder)
        made = FlareTransport(post, sites, run=run, patience=settled.timeout)
        opened(made)
        return made

    JobRun(plan, places_of(files, plan, folder)).run(transport)
    if files.output_dir is None:
        _report(folder, files.datalist, files.data_root)


def run_identifier(folder: Path) -> str:
    """The run's own random name: made with its folder, the same when it goes on."""
    path = folder / RUN_ID
    if not path.is_file():
        write_json(path, {"run": secrets.token_hex(8)})
    return str(read_json(path)["run"])


def _report(folder: Path, datalist: Path, data_root: Path) -> None:
    # no overlays: the images are at the sites
    from samfed_monai.reports import Report

    Report(run_folder=folder, datalist=datalist, data_root=data_root, overlays=False).write()
