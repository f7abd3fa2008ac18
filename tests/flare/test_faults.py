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
from tests.flare.patience import patience
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


def unbroken(
    path: Path, *, rounds: int, sites: tuple[str, ...] = TWO, absent: dict[str, Any] | None = None, quorum: int = 2
) -> str:
    """SHA-256 of the last model of the same run in one process, in which nobody was killed."""
    clients = {site: Here(site, (absent or {}).get(site, ())) for site in sites}
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
        timeout=max(240, 5 * options.get("timeout", 0)),
        more_classes=["tests."],
        environment={"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        **more,
    )
    return run


def test_fault_41_42_50_a_killed_trainer_a_straggler_and_want_of_memory_cost_one_update_each(tmp_path):
    deadline = patience(10, imports=8)  # waited for once in full, and a trainer that was killed starts within it
    faults = {
        "site-2": {"round": 1, "what": "kill"},
        "site-3": {"round": 2, "what": "memory"},
        "site-1": {"round": 3, "what": "sleep", "seconds": 2 * deadline},
    }
    marks: list[Processes] = []
    plan = {"rounds": 4, "quorum": 2, "timeout": deadline, "faults": faults}
    run = on_flare(tmp_path, THREE, memory=6, on_start=marks.append, **plan)
    records = [read_json(run / "rounds" / f"{number:03d}" / "round.json") for number in range(4)]
    skipped = {
        (record["round"], site): entry["reason"]
        for record in records
        for site, entry in record["sites"].items()
        if entry["status"] != "ok"
    }
    assert set(skipped) == {(1, "site-2"), (2, "site-3"), (3, "site-1")}, skipped
    assert "SIGKILL" in skipped[1, "site-2"]
    assert "out of memory" in skipped[2, "site-3"]
    assert "no answer within" in skipped[3, "site-1"]
    assert records[2]["sites"]["site-2"]["status"] == "ok", "a fresh process took part again"
    absent = {"site-2": (1,), "site-3": (2,), "site-1": (3,)}
    assert model(run, 3) == unbroken(tmp_path / "whole", rounds=4, sites=THREE, absent=absent)
    assert marks[0].marked() == [], "no process is left behind"


def after_the_first_round(run: Path, act: Callable[[Processes], None]) -> Callable[[Processes], None]:
    """What :func:`on_flare` takes as ``on_start``: a thread that acts once round 0 is stored."""

    def watch(processes: Processes) -> None:
        while not (run / "rounds" / "000" / "round.json").is_file():
            time.sleep(0.02)
        act(processes)

    return lambda processes: threading.Thread(target=watch, args=(processes,), daemon=True).start()


def test_fault_53_nothing_is_left_behind_when_the_command_is_asked_to_end(tmp_path):
    started: list[Processes] = []

    def end(processes: Processes) -> None:
        started.append(processes)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=r"asked to end \(SIGTERM\)(.|\n)*type the same command again") as stopped:
        on_flare(tmp_path, TWO, rounds=500, on_start=after_the_first_round(tmp_path / "run", end))
    assert stopped.value.exit_code == 3
    assert started[0].marked() == []


def test_fault_47_48_a_killed_server_goes_on_to_the_same_model_and_below_quorum_stops(tmp_path):
    options = {"rounds": 4, "quorum": 2, "timeout": 240, "faults": {"site-2": {"round": 2, "what": "kill"}}}
    run = tmp_path / "run"

    def kill(processes: Processes) -> None:
        for pid in processes.marked():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(Stopped, match="ended before the run did"):
        on_flare(tmp_path, TWO, on_start=after_the_first_round(run, kill), **options)
    stored = {path.name for path in (run / "rounds").glob("[0-9]*")}
    assert stored <= {"000", "001"}
    with pytest.raises(SamFedError, match=r"round 3 of \d+: 1 of 2 updates, 2 needed(.|\n)*SIGKILL(.|\n)*to go on"):
        on_flare(tmp_path, TWO, **options)
    assert not (run / "rounds" / "002").exists()
    assert model(run, 1) == unbroken(tmp_path / "whole", rounds=2)


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
