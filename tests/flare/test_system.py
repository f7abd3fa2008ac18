"""Whole hospitals that go down, and a user who types Ctrl-C, on FLARE's real processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from samfed_monai.cli.main import main
from samfed_monai.core.io import read_json
from samfed_monai.flare.local import MARK, Poc, Processes, run_poc
from tests.flare.patience import patience
from tests.flare.test_equality import free_port, words
from tests.flare.test_faults import THREE, model, unbroken
from tests.flare.toys import REPO, toy_job, toy_site_files
from tests.forking import start

pytestmark = pytest.mark.slow


def below(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def registered(log: Path) -> int:
    """How often a site has connected anew."""
    return log.read_text(errors="replace").count("Successfully registered client")


def test_fault_41_a_whole_site_killed_costs_one_deadline_and_the_others_go_on(tmp_path):
    run, deadline = (
        tmp_path / "run",
        patience(12, imports=7),
    )  # waited for once in full, and three trainers import beside each other within it
    log = run / "flare" / "site-3.log"

    def kill_site_3(poc: Poc, processes: Processes, job_id: str) -> None:
        def watch() -> None:
            while not (run / "rounds" / "000").is_dir():
                time.sleep(0.02)
            for process in below(processes.started["site-3"].pid):
                process.send_signal(signal.SIGKILL)
            poc.start_site(processes, "site-3", log)  # its operator starts it again: FLARE has it wait for the next job

        threading.Thread(target=watch, daemon=True).start()

    faults = {site: {"round": 1, "what": "sleep", "seconds": 2} for site in THREE}  # it is killed while it works
    run_poc(
        toy_job(tmp_path / "job", rounds=4, quorum=2, timeout=deadline, faults=faults),
        sites=THREE,
        workspace=tmp_path / "system",
        run_folder=run,
        site_files=toy_site_files(tmp_path / "sites", THREE, run),
        port=free_port(),
        timeout=max(240, 8 * deadline),
        more_classes=["tests."],
        environment={"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        on_start=kill_site_3,
    )
    records = [read_json(run / "rounds" / f"{number:03d}" / "round.json") for number in range(4)]
    assert [record["sites"]["site-3"]["status"] for record in records] == ["ok", "skipped", "skipped", "skipped"]
    assert [record["sites"]["site-1"]["status"] for record in records] == ["ok"] * 4
    assert deadline <= records[1]["seconds"]["training"] < 2 * deadline
    assert sum(sum(record["seconds"].values()) for record in records[2:]) < deadline, "nobody waits for it again"
    assert registered(log) == 2
    absent = {"site-3": range(1, 4)}
    assert model(run, 3) == unbroken(tmp_path / "whole", rounds=4, sites=THREE, absent=absent)


def typed(words: list[str], folder: Path) -> None:
    """The command, in a process of its own with ``folder`` for what is temporary."""
    os.environ["TMPDIR"] = str(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    sys.exit(main(words))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 3)])
def test_nothing_is_left_behind_when_the_command_is_ended(two_sites, tmp_path, number, code):
    options = words(two_sites, tmp_path / "run", variant="no_sam", rounds=50, **{"privacy#least_images": 1})
    process = start(typed, ["flare", "simulate", *options], tmp_path, errors=tmp_path / "errors")
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "rounds" / "000").is_dir() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, number)
    process.join(120)
    told = (tmp_path / "errors").read_text()
    assert process.exitcode == code, told[-2000:]
    assert "type the same command again" in told or number == signal.SIGINT
    assert list(tmp_path.glob("samfed-flare-*")) == []
    assert [each.pid for each in psutil.process_iter() if _of(each, tmp_path)] == []


def _of(process: psutil.Process, folder: Path) -> bool:
    try:
        environment = process.environ()
    except psutil.Error:
        return False
    return MARK in environment and environment.get("TMPDIR") == str(folder)
