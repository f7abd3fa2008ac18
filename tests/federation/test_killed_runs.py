"""Runs in processes of their own that are killed, terminated, or out of disk or memory; they go on."""

from __future__ import annotations

import contextlib
import errno
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
from tests.federation.toys import FixedClient, ToyTerms, controller, run_clients, run_toy, weights
from tests.forking import start
from tests.waiting import wait_until

ROUNDS, DONE = 4, 2


def run(folder: Path, **options: Any) -> None:
    """What the killed processes do."""
    try:
        run_toy(folder, rounds=ROUNDS, splits=(), **options)
    except SamFedError as error:
        print(error, file=sys.stderr)
        sys.exit(int(error.exit_code))


def wait_half_way(folder: Path) -> None:
    """A process that has stored half of its rounds when it is ended."""
    run(folder, on_round=lambda records: time.sleep(60) if len(records) == DONE else None)


def wait_while_writing(folder: Path) -> None:
    """A process that has written all of a round but for its name when it is ended."""
    replace = os.replace

    def waiting(source: Any, target: Any) -> None:
        if Path(target).name == f"{DONE:03d}":
            (folder / "ready").touch()
            time.sleep(60)
        replace(source, target)

    os.replace = waiting
    run(folder)


@contextlib.contextmanager
def started(folder: Path, work: Callable[[Path], None], ready: str = "") -> Iterator[Any]:
    """A process that works in a folder, once ``ready`` is there; ``errors`` is what it writes to standard error."""
    process = start(work, folder, errors=folder / "errors")
    try:
        wait_until(lambda: (folder / ready).exists() or process.exitcode is not None, ready, seconds=120)
        assert (folder / ready).exists(), (folder / "errors").read_text()
        yield process
        process.join(60)
    finally:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, str]:
    """Files of the last round of a run that nothing ended, to their hashes."""
    folder = tmp_path_factory.mktemp("whole")
    run_toy(folder, rounds=ROUNDS, splits=())
    return final_files(folder)


def final_files(folder: Path) -> dict[str, str]:
    return read_json(folder / f"rounds/{ROUNDS - 1:03d}/round.json")["files"]


@pytest.mark.parametrize(
    ("work", "ready", "unfinished"), [(wait_half_way, "rounds/001/round.json", 0), (wait_while_writing, "ready", 1)]
)
def test_fault_48_killed_run_resumes_to_same_hash(tmp_path, whole, work, ready, unfinished):
    with started(tmp_path, work, ready) as process:
        os.kill(process.pid, signal.SIGKILL)
    assert len(list(tmp_path.glob("rounds/.*.tmp"))) == unfinished
    assert len(RunFolder(tmp_path).store.rounds()) == DONE
    run_toy(tmp_path, rounds=ROUNDS, splits=())
    assert final_files(tmp_path) == whole
    assert sha256_file(tmp_path / f"rounds/{ROUNDS - 1:03d}/global.safetensors") == whole["global.safetensors"]
    assert not list(tmp_path.glob("rounds/.*.tmp"))


def test_fault_53_sigterm_exits_with_hint_and_run_resumes(tmp_path, whole):
    with started(tmp_path, wait_half_way, "rounds/001/round.json") as process:
        os.kill(process.pid, signal.SIGTERM)
    text = (tmp_path / "errors").read_text()
    assert process.exitcode == 3, text
    assert "stopped: received SIGTERM" in text
    assert f"{DONE} of {ROUNDS} rounds are kept in" in text
    assert "to continue: run the same command again" in text
    assert "Traceback" not in text
    run_toy(tmp_path, rounds=ROUNDS, splits=())
    assert final_files(tmp_path) == whole


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here; test_round_store.py has the same fault with a failing fsync")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_fault_49_full_disk_stops_run_and_run_resumes(small_disk):
    clients = {site: FixedClient(site, step=1.0) for site in "ab"}
    begin = {**weights(), "large": torch.zeros(60_000)}  # 240 kB a round; three rounds and the one written fit
    ballast = small_disk / "ballast"
    with RunFolder(small_disk).open({}) as folder:
        ballast.write_bytes(bytes(400_000))
        full = r"the disk is full \(.*/global.safetensors\); 2 of 9 rounds are kept(.|\n)*make room, then run"
        with pytest.raises(Stopped, match=full):
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
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (192 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    run(folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to set a limit just above what the process has")
def test_fault_50_sites_out_of_memory_stop_run_and_run_resumes(tmp_path, whole):
    with started(tmp_path, run_within_limits) as limited:
        pass
    text = (tmp_path / "errors").read_text()
    assert limited.exitcode == 3, text
    assert re.search(r"round 3 of \d+: 0 of 2 updates, 2 needed", text), text
    assert "site-1: out of memory" in text
    assert f"{DONE} of {ROUNDS} rounds are kept in" in text
    assert len(RunFolder(tmp_path).store.rounds()) == DONE
    run_toy(tmp_path, rounds=ROUNDS, splits=())
    assert final_files(tmp_path) == whole


OUT = r"memory ran out; 1 of 3 rounds are kept(.|\n)*add memory, or lower"
GONE = r"/drive/a failed with 'Input/output error'; 1 of 3 rounds are kept(.|\n)*check that its drive is connected"
NO_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory")
NO_DRIVE = OSError(errno.EIO, "", "/drive/a")


@pytest.mark.parametrize(("error", "message"), [(MemoryError(), OUT), (NO_MEMORY, OUT), (NO_DRIVE, GONE)])
def test_fault_50_failing_server_stops_run_and_run_resumes(tmp_path, error, message):
    class Hungry(FedAvg):
        def finish(self, round):
            if round == 1:
                raise error
            super().finish(round)

    clients = {site: FixedClient(site, step=1.0) for site in "ab"}
    with pytest.raises(Stopped, match=message):
        run_clients(tmp_path, clients, strategy=Hungry(), rounds=3)
    run_clients(tmp_path, clients, rounds=3)
    assert RunFolder(tmp_path).store.weights(2)["w"][0, 0].item() == 4.0
