"""A run on FLARE with all of it but FLARE itself: a job, site files, the server's part, clients, processes that train.

What FLARE does, carrying bytes both ways, this process does.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.config import find_bundle
from samfed_monai.core.io import read_json, sha256_file
from samfed_monai.federation.run import Run
from samfed_monai.federation.wire_transport import Request
from samfed_monai.flare.controller import run_server
from samfed_monai.flare.executor import Trainer
from samfed_monai.flare.job import PlannedRun, export_job, planned
from samfed_monai.flare.local import write_site_files
from samfed_monai.flare.site_file import MARK, VARIABLE, read_site_file
from tests.forking import fork_workers

NAME = "carried"


class Carrier:
    """Has the clients that FLARE starts at each site answer each request at once."""

    def __init__(self, clients: Mapping[str, Trainer]) -> None:
        self.clients = clients

    def send(self, request: Request) -> None:
        words = {"task": request.task, "run_name": NAME, **request.metadata}
        content, failure = self.clients[request.site].answer(words, request.payload)
        request.answered(request.site, failure or content)

    def cancel(self, ticket: Any) -> bool:
        raise AssertionError("every request was answered")

    def check_stop(self) -> None:
        return None


def run_carried(run: PlannedRun, output: Path, folder: Path) -> None:
    """Runs what was planned into ``output``, with a forked process per site; job and site files are in ``folder``."""
    files = write_site_files(folder / "files", run.datalist, run.paths, run.sites, threads=1)
    app = export_job(folder / "job", run.plan.to_json(), run_name=NAME) / "app"
    with pytest.MonkeyPatch.context() as patch, ExitStack() as clients:
        fork_workers(patch)
        patch.setenv(VARIABLE, str(files))
        patch.setenv(MARK, "of this process")
        sites = {site: Trainer(site, read_site_file(app, site), app) for site in run.sites}
        for site in sites.values():
            clients.enter_context(closing(site))
        run_server(output, kit=folder, job_config=app / "config", post=Carrier(sites), on_transport=lambda _: None)


def run_here(
    folder: Path, local: Path, there: Path, options: Mapping[str, Any], *, listed: str = "list.json"
) -> PlannedRun:
    """Runs in this process, into ``local``, what is planned for the folder ``there``; returns the plan.

    List and images are in ``folder``; ``options`` are ids of ``federate.json`` and their values.
    """
    paths = {"datalist": str(folder / listed), "data_root": str(folder), "output_dir": str(there)}
    given = {name: value for name, value in options.items() if name != "adapter"}  # which the server's site file names
    run = planned(find_bundle("samfed_skin"), {**given, **paths}, here=False)
    run = replace(run, paths=replace(run.paths, adapter=options.get("adapter")))
    Run(run.plan, replace(run.paths, output_dir=local)).run()
    return run


def in_both(folder: Path, output: Path, options: Mapping[str, Any]) -> tuple[Path, Path]:
    """A run of the skin bundle in one process and one that is carried, with equal bits; returns both run folders."""
    local, carried = output / "local", output / "carried"
    run = run_here(folder, local, carried, options)
    run_carried(run, carried, output)
    assert [int(name) for name in hashes(local)] == list(range(run.plan.rounds))
    assert hashes(local) == hashes(carried)
    return local, carried


def hashes(run: Path) -> dict[str, str]:
    """SHA-256 of every round's model, as recorded when it was written; those that are still there have it."""
    records = sorted(run.glob("rounds/[0-9]*/round.json"))
    digests = {path.parent.name: read_json(path)["files"]["global.safetensors"] for path in records}
    for path in run.glob("rounds/[0-9]*/global.safetensors"):
        assert sha256_file(path) == digests[path.parent.name]
    return digests
