"""Runs in processes of their own that are killed, terminated, or out of disk or memory; they go on."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from samfed_monai.core.errors import SamFedError, Stopped
from samfed_monai.core.io import read_json, sha256_file
from samfed_monai.federation import RunFolder
from samfed_monai.methods.fedavg import FedAvg
from tests.federation.toys import FixedClient, ToyTerms, controller, run_toy, weights
from tests.forking import start

ROUNDS = 24


def run(folder: Path, rounds: int = ROUNDS) -> None:
    """What the killed processes do."""
    try:
        run_toy(folder, rounds=rounds, splits=())
    except SamFedError as error:
        print(error, file=sys.stderr)
        sys.exit(int(error.exit_code))


@contextlib.contextmanager
def started(folder: Path, work: Callable[[Path], None] = run) -> Iterator[Any]:
    """A process that works in a folder; ``errors`` in it is what it writes to standard error."""
    process = start(work, folder, errors=folder / "errors")
    try:
        yield process
        process.join(60)
    finally:
        process.kill()
        process.join()


def wait_for(folder: Path, name: str, process: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not (folder / name).exists():
        assert process.exitcode is None, (folder / "errors").read_text()
        assert time.monotonic() < deadline, f"{name} did not appear"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_toy(folder, rounds=ROUNDS, splits=())
    return folder


def final_files(folder: Path) -> dict[str, str]:
    return read_json(folder / f"rounds/{ROUNDS - 1:03d}/round.json")["files"]


def test_fault_48_a_killed_run_resumes_to_the_same_hash(tmp_path, whole):
    with started(tmp_path) as process:
        wait_for(tmp_path, "rounds/004/round.json", process)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    done = len(RunFolder(tmp_path).store.rounds())
    assert 5 <= done < ROUNDS, "it was killed half-way"
    run_toy(tmp_path, rounds=ROUNDS, splits=())
    assert final_files(tmp_path) == final_files(whole)
    assert (
        sha256_file(tmp_path / f"rounds/{ROUNDS - 1:03d}/global.safetensors")
        == final_files(whole)["global.safetensors"]
    )


def test_fault_48_a_run_killed_in_the_middle_of_writing_resumes_to_the_same_hash(tmp_path, whole):
    with started(tmp_path) as process:
        wait_for(tmp_path, "rounds/002", process)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("rounds/.*.tmp")) and time.monotonic() < deadline:
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    run_toy(tmp_path, rounds=ROUNDS, splits=())
    assert final_files(tmp_path) == final_files(whole)
    assert not list(tmp_path.glob("rounds/.*.tmp"))


def test_fault_53_sigterm_exits_cleanly_with_what_was_done_and_how_to_go_on(tmp_path, whole):
    with started(tmp_path) as process:
        wait_for(tmp_path, "rounds/001/round.json", process)
        os.kill(process.pid, signal.SIGTERM)
    text = (tmp_path / "errors").read_text()
    assert process.exitcode == 3, text
    assert "stopped: asked to end (SIGTERM)" in text
    assert f"of {ROUNDS} rounds are kept in" in text
    assert "to go on: type the same command again" in text
    assert "Traceback" not in text
    run_toy(tmp_path, rounds=ROUNDS, splits=())
    assert final_files(tmp_path) == final_files(whole)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here; test_round_store.py has the same fault with a failing fsync")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_fault_49_a_full_disk_stops_with_the_last_good_round_and_goes_on_after_room_is_made(small_disk):
    clients = {site: FixedClient(site, step=1.0) for site in "ab"}
    begin = {**weights(), "large": torch.zeros(60_000)}  # 240 kB a round; three rounds and the one written fit
    ballast = small_disk / "ballast"
    with RunFolder(small_disk).open({}) as folder:
        ballast.write_bytes(bytes(400_000))
        with pytest.raises(Stopped, match=r"the disk is full .*; 2 of 9 rounds are kept(.|\n)*make room, then type"):
            controller(folder, clients, start=begin, rounds=9).run()
        assert folder.store.latest()["round"] == 1
        ballast.unlink()
        controller(folder, clients, start=begin, rounds=9).run()
        assert folder.store.weights(8)["w"][0, 0].item() == 10.0


def run_within_limits(folder: Path) -> None:
    """A process that may not grow by more than 192 MiB, in whose third round images take 256."""
    modest = ToyTerms.__call__

    def grow(self: ToyTerms, engine: Any) -> None:
        modest(self, engine)
        if engine.state.round == 2:
            self.grown = torch.ones(256 << 20, dtype=torch.uint8)

    ToyTerms.__call__ = grow
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (192 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    run(folder, rounds=4)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to set a limit just above what the process has")
def test_fault_50_sites_over_a_memory_limit_stop_the_run_and_it_resumes_to_the_same_hash(tmp_path):
    (tmp_path / "run").mkdir()
    with started(tmp_path / "run", run_within_limits) as limited:
        pass
    told = (tmp_path / "run" / "errors").read_text()
    assert limited.exitcode == 3, told
    assert re.search(r"round 3 of \d+: 0 of 2 updates, 2 needed", told), told
    assert "site-1: out of memory" in told
    assert "2 of 4 rounds are kept in" in told
    assert len(RunFolder(tmp_path / "run").store.rounds()) == 2
    for name in ("run", "whole"):
        run_toy(tmp_path / name, rounds=4, splits=())
    files = [read_json(tmp_path / name / "rounds/003/round.json")["files"] for name in ("run", "whole")]
    assert files[0] == files[1]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_fault_50_a_server_without_memory_stops_with_its_rounds_kept_and_goes_on(tmp_path, error):
    class Hungry(FedAvg):
        def finish(self, round):
            if round == 1:
                raise error
            super().finish(round)

    clients = {site: FixedClient(site, step=1.0) for site in "ab"}
    with RunFolder(tmp_path).open({}) as folder:
        message = r"memory ran out at the server; 1 of 3 rounds are kept(.|\n)*give it more memory"
        with pytest.raises(Stopped, match=message):
            controller(folder, clients, strategy=Hungry(), rounds=3).run()
        controller(folder, clients, rounds=3).run()
        assert folder.store.weights(2)["w"][0, 0].item() == 4.0
