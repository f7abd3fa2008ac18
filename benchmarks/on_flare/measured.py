"""Runs the payload's job in FLARE's simulator, and measures the memory of all processes of a run."""

from __future__ import annotations

import json
import os
import secrets
import threading
from pathlib import Path
from types import TracebackType

import psutil

from on_flare.executor import BenchExecutor
from on_flare.payload import STAMPS
from on_flare.server import BenchController
from samfed_monai.core.io import write_json
from samfed_monai.flare.job import export_job
from samfed_monai.flare.local import simulate

BENCHMARKS = Path(__file__).resolve().parents[1]
MARK = "BENCH_MARK"
#: Substring of a command line to the kind of its process; the first match counts.
KINDS = {
    "samfed_monai.flare.worker": "site: the process that trains",
    "on_flare.site": "site: the process that trains",
    "simulator_worker": "site: FLARE's client",
    "samfed_monai.flare.simulator_process": "server (FLARE's simulator)",
    "samfed_monai federate": "one process",
}


def site_names(sites: int) -> list[str]:
    """``site-1`` to ``site-<sites>``."""
    return [f"site-{number + 1}" for number in range(sites)]


def on_flare(folder: Path, sites: int, **plan: int | bool) -> Path:
    """Runs ``on_flare.server.BenchController`` in the simulator; returns the run's folder.

    Args:
        folder: is created; its folder ``stamps`` receives the times that sites record.
        sites: number of sites.
        plan: ``rounds``, ``megabytes`` and ``evaluate``.
    """
    (folder / "stamps").mkdir(parents=True)
    run, files = folder / "run", folder / "sites"
    for site in (*site_names(sites), "server"):
        paths = {"datalist": __file__, "data_root": str(folder), "cache_dir": str(folder / "cache" / site)}
        write_json(files / f"{site}.json", {**paths, "output_dir": str(run if site == "server" else folder / site)})
    job = export_job(
        folder / "job", plan, run_name="bench", min_clients=sites, controller=BenchController, executor=BenchExecutor
    )
    environment = {"PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": "1", STAMPS: str(folder / "stamps")}
    simulate(
        job,
        sites=site_names(sites),
        workspace=folder / "workspace",
        run_folder=run,
        site_files=files,
        timeout=1200,
        more_classes=["on_flare."],
        environment=environment,
    )
    return run


def bytes_per_round(run: Path) -> dict[str, float]:
    """Bytes ``down`` and ``up`` in the last round, summed over sites."""
    last = json.loads(max((run / "rounds").glob("[0-9]*/round.json")).read_text())
    keys = {"down": "down_bytes", "up": "up_bytes"}
    return {name: float(sum(site[key] for site in last["sites"].values())) for name, key in keys.items()}


class MemoryWatch:
    """A context manager that measures the peak resident memory of the processes that are started in its block.

    ``peaks`` maps each kind of process to the highest peak of a single process, in MiB.
    """

    def __init__(self, every: float = 0.5) -> None:
        self.every, self.peaks = every, dict[str, float]()
        self._mark, self._stop = secrets.token_hex(8), threading.Event()

    def __enter__(self) -> MemoryWatch:
        os.environ[MARK] = self._mark
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        del os.environ[MARK]

    def _watch(self) -> None:
        while not self._stop.wait(self.every):
            for process in psutil.process_iter():
                try:
                    kind = _kind(process.cmdline()) if process.environ().get(MARK) == self._mark else ""
                    if kind:
                        self.peaks[kind] = max(self.peaks.get(kind, 0.0), _peak_memory(process.pid))
                except (psutil.Error, OSError):
                    continue


def _kind(command: list[str]) -> str:
    line = " ".join(command)
    return next((kind for part, kind in KINDS.items() if part in line), "")


def _peak_memory(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0
