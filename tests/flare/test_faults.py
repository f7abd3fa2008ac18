"""Faults on real processes: FLARE's simulator, its clients, and the processes that train."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.core.errors import SamFedError, Stopped
from samfed_monai.core.io import read_json, sha256_file
from samfed_monai.federation import LocalTransport, RoundController, RunFolder
from samfed_monai.federation.site import ClientAlgoSite
from samfed_monai.flare.local import Processes, simulate
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Message, Server, Task
from tests.federation.toys import QUIET, weights
from tests.flare.toy_worker import Stepper
from tests.flare.toys import REPO, toy_job, toy_site_files

TWO, THREE = ("site-1", "site-2"), ("site-1", "site-2", "site-3")
pytestmark = pytest.mark.slow


class Here(ClientAlgoSite):
    """A client of this process, which is not there in some rounds."""

    def __init__(self, site: str, absent: Container[int]) -> None:
        super().__init__(site, Stepper(site))
        self.absent = absent

    def answer(self, task: Task, message: Message) -> Message:
        if task == Task.TRAIN and message.round in self.absent:
            raise OSError("not there")
        return self.client.answer(task, message)


def unbroken(path: Path, *, rounds: int, sites: tuple[str, ...] = TWO, absent: dict[str, Any], quorum: int = 2) -> str:
    """SHA-256 of the last model of the same run in one process, in which nobody was killed."""
    clients = {site: Here(site, absent.get(site, ())) for site in sites}
    with RunFolder(path).open({"rounds": rounds}, seeds={"seed": 0}) as folder:
        strategy = FedAvg()
        strategy.attach(Server(sites, rounds, weights=weights()))
        transport = LocalTransport(clients, progress=QUIET)
        RoundController(
            transport=transport,
            strategy=strategy,
            folder=folder,
            rounds=rounds,
            progress=QUIET,
            quorum=quorum,
            allow_single_site=quorum == 1,
        ).run()
    return model(path, rounds - 1)


def model(run: Path, round: int) -> str:
    return sha256_file(run / "rounds" / f"{round:03d}" / "global.safetensors")


def on_flare(path: Path, sites: tuple[str, ...], *, run: Path | None = None, **options: Any) -> Path:
    """Runs the toy job; ``options`` of the plan, ``on_start`` and ``memory`` (GiB) aside."""
    run = run or path / "run"
    more = {name: options.pop(name) for name in ("on_start", "log") if name in options}
    files = toy_site_files(path / "sites", sites, run, memory=options.pop("memory", None))
    simulate(
        toy_job(path / "job", **options),
        sites=sites,
        workspace=path / "workspace",
        run_folder=run,
        site_files=files,
        timeout=300,
        more_classes=["tests."],
        environment={"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        **more,
    )
    return run


def after_the_first_round(run: Path, act: Callable[[Processes], None]) -> Callable[[Processes], None]:
    """What :func:`on_flare` takes as ``on_start``: a thread that acts once round 0 is stored."""

    def watch(processes: Processes) -> None:
        while not (run / "rounds" / "000" / "round.json").is_file():
            time.sleep(0.02)
        act(processes)

    return lambda processes: threading.Thread(target=watch, args=(processes,), daemon=True).start()


def test_fault_41_42_47_48_50_a_killed_run_goes_on_each_fault_costs_one_update_and_below_quorum_it_stops(tmp_path):
    run, deadline = tmp_path / "run", 8.0
    faults = {
        "site-2": [{"round": 2, "what": "kill"}, {"round": 6, "what": "kill"}],
        "site-3": [{"round": 3, "what": "memory"}],
        "site-1": [{"round": 5, "what": "sleep", "seconds": 4 * deadline}],  # in round 6 it still does
    }
    # processes that were killed or ran out of memory start in rounds 3 and 4, which have no deadline
    plan = {"rounds": 8, "quorum": 2, "deadline": (5, deadline), "faults": faults}

    def kill(processes: Processes) -> None:
        for pid in processes.marked():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(Stopped, match="ended before the run did"):
        on_flare(tmp_path, THREE, on_start=after_the_first_round(run, kill), **plan)
    stored = {path.name for path in (run / "rounds").glob("[0-9]*")}
    assert stored <= {"000", "001"}, "the faults are still to come"
    marks: list[Processes] = []
    with pytest.raises(SamFedError, match=r"round 7 of \d+: 1 of 3 updates, 2 needed(.|\n)*SIGKILL(.|\n)*to go on"):
        on_flare(tmp_path, THREE, memory=6, on_start=marks.append, **plan)
    assert marks[0].marked() == [], "no process is left behind"
    assert not (run / "rounds" / "006").exists()
    records = [read_json(run / "rounds" / f"{number:03d}" / "round.json") for number in range(6)]
    skipped = {
        (record["round"], site): entry["reason"]
        for record in records
        for site, entry in record["sites"].items()
        if entry["status"] != "ok"
    }
    assert set(skipped) == {(2, "site-2"), (3, "site-3"), (5, "site-1")}, skipped
    assert "SIGKILL" in skipped[2, "site-2"]
    assert "out of memory" in skipped[3, "site-3"]
    assert "no answer within" in skipped[5, "site-1"]
    absent = {"site-2": (2,), "site-3": (3,), "site-1": (5,)}
    assert model(run, 5) == unbroken(tmp_path / "whole", rounds=6, sites=THREE, absent=absent)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("a tmpfs cannot be mounted here (it needs administrator rights)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_fault_49_a_full_disk_at_the_server_stops_with_the_last_good_state(tmp_path, tiny_disk):
    run = tiny_disk / "run"

    def fill(processes: Processes) -> None:
        with contextlib.suppress(OSError), open(tiny_disk / "full", "wb") as stream:
            while True:
                stream.write(bytes(512))
                stream.flush()

    with pytest.raises(SamFedError, match=r"disk is full(.|\n)*to go on: make room"):
        on_flare(
            tmp_path, TWO, run=run, rounds=6, on_start=after_the_first_round(run, fill), log=tmp_path / "flare.log"
        )
    (tiny_disk / "full").unlink(missing_ok=True)
    kept = max(int(path.name) for path in (run / "rounds").glob("[0-9]*"))
    assert len(model(run, kept)) == 64
