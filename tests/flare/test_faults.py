"""Faults on real processes: FLARE's simulator, its clients, and the processes that train."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from samfed_monai.core.errors import SamFedError, Stopped
from samfed_monai.core.io import read_json
from samfed_monai.flare.local import Processes, simulate
from tests.flare.carried import hashes
from tests.flare.toys import REPO, toy_job, toy_site_files
from tests.flare.unbroken import unbroken
from tests.waiting import wait_until

SITES = ("site-1", "site-2")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("allowed")]


@pytest.fixture
def started(monkeypatch):
    """Whatever starts and ends processes, one for each simulator."""
    enter, entered = Processes.__enter__, list[Processes]()
    monkeypatch.setattr(Processes, "__enter__", lambda self: (entered.append(self), enter(self))[1])
    return entered


def test_fault_41_42_47_48_50_killed_run_resumes_and_stops_below_quorum(tmp_path, started):
    run = tmp_path / "run"
    faults = {
        "site-1": [{"round": 5, "what": "sleep", "seconds": 600}],  # in round 6 it still does
        "site-2": [{"round": number, "what": what} for number, what in ((2, "kill"), (3, "memory"), (6, "kill"))],
    }
    job = toy_job(tmp_path / "job", rounds=8, hurried_from=5, faults=faults)
    where = {"workspace": tmp_path / "workspace", "run_folder": run}
    where["site_files"] = toy_site_files(tmp_path / "sites", SITES, run, memory=6)
    environment = {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}

    def kill_all() -> None:
        wait_until((run / "rounds" / "000" / "round.json").is_file, "the first round", seconds=300)
        for pid in started[0].marked():
            os.kill(pid, signal.SIGKILL)

    def on_flare() -> None:
        simulate(job, sites=SITES, **where, timeout=300, environment=environment)

    threading.Thread(target=kill_all, daemon=True).start()
    with pytest.raises(Stopped, match="ended before the run did"):
        on_flare()
    assert {path.name for path in (run / "rounds").glob("[0-9]*")} <= {"000", "001"}, "the faults are still to come"
    with pytest.raises(SamFedError, match=r"round 7 of 8: 0 of 2 updates, 1 needed(.|\n)*SIGKILL(.|\n)*to continue"):
        on_flare()
    assert started[1].marked() == [], "no process is left behind"
    records = [read_json(path) for path in sorted((run / "rounds").glob("[0-9]*/round.json"))]
    sites = {(record["round"], site): entry for record in records for site, entry in record["sites"].items()}
    skipped = {where: entry["reason"] for where, entry in sites.items() if entry["status"] != "ok"}
    assert skipped.keys() == {(2, "site-2"), (3, "site-2"), (5, "site-1")}
    assert "SIGKILL" in skipped[2, "site-2"]
    assert "out of memory" in skipped[3, "site-2"]
    assert "no answer within" in skipped[5, "site-1"]
    assert hashes(run) == hashes(unbroken(tmp_path / "whole", rounds=6, absent={"site-1": [5], "site-2": [2, 3]}))
