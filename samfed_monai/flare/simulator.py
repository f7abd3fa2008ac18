"""Runs a job in FLARE's simulator: server and clients on this machine, without network security."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samfed_monai.flare.allow_list import merge_allow_list
from samfed_monai.flare.needs import require_flare
from samfed_monai.flare.processes import Processes
from samfed_monai.flare.status import clear_status
from samfed_monai.flare.watch import Watch


def simulate(
    job: str | Path,
    *,
    sites: Sequence[str],
    workspace: str | Path,
    run_folder: str | Path,
    site_files: str | Path,
    timeout: float | None = None,
    more_classes: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    on_start: Any = None,
    log: str | Path | None = None,
) -> dict[str, Any]:
    """Runs the job and waits for its end.

    Args:
        job: folder made by :func:`samfed_monai.flare.job.export_job`.
        sites: names of the clients.
        workspace: the simulator's folder; what is in it is removed by the simulator.
        run_folder: the run's folder, as the server's site file names it.
        site_files: folder of ``<site>.json`` and ``server.json``.
        timeout: seconds; ``None`` waits.
        more_classes: added to the list of classes that a job may name.
        environment: on top of this process's own.
        on_start: called with the :class:`Processes` once they run.
        log: file of what FLARE prints; ``None`` is ``flare.log`` in the run's folder.

    Raises:
        SamFedError: as the server said, or FLARE failed.
    """
    require_flare()
    workspace, run_folder = Path(workspace), Path(run_folder)
    merge_allow_list(workspace / "local", more_classes)
    (workspace / "startup").mkdir(parents=True, exist_ok=True)
    clear_status(run_folder)
    log = Path(log) if log is not None else run_folder / "flare.log"
    command = [
        *(sys.executable, "-u", "-m", "samfed_monai.flare.simulator_process", str(Path(job).resolve())),
        *("-w", str(workspace.resolve()), "-c", ",".join(sites), "-t", str(len(sites)), "-l", "concise"),
    ]
    with Processes({"SAMFED_SITE": str(Path(site_files).resolve()), **(environment or {})}) as processes:
        log.unlink(missing_ok=True)
        simulator = processes.start("simulator", command, cwd=workspace, log=log)
        if on_start is not None:
            on_start(processes)

        def gone() -> str:
            return "" if simulator.poll() is None else "FLARE's simulator ended before the run did"

        status = Watch(run_folder, log).until_done(gone, timeout=timeout)
        _let_end(simulator)
    return status


def _let_end(process: Any, seconds: float = 20.0) -> None:
    import subprocess

    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
