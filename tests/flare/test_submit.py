"""A provisioned system with certificates: what a hospital runs, on this machine."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.cli.main import main
from samfed_monai.core.errors import Stopped
from samfed_monai.core.io import read_json, write_json
from samfed_monai.data import DataList
from samfed_monai.flare.local import Poc, Processes
from samfed_monai.flare.session import open_session
from tests.flare.carried import hashes
from tests.flare.test_equality import OPTIONS, free_port, one_thread, three_sites, words
from tests.flare.test_system import below, registered

pytestmark = pytest.mark.slow
__all__ = ["one_thread", "three_sites"]
SITES = ("site-1", "site-2", "site-3")


def own_files(folder: Path, images: Path, at: Path) -> Path:
    """Site files as hospitals write them: each with its own list, cache and folder of runs."""
    listed = DataList.load(images / "list.json")
    for name in (*SITES, "server"):
        part = listed.for_server() if name == "server" else listed.for_site(name)
        part.save(at / name / "list.json")
        own: dict[str, Any] = {key: str(at / name / key) for key in ("cache_dir", "runs_dir")}
        own |= {"datalist": str(at / name / "list.json"), "data_root": str(images), "threads": 1}
        write_json(folder / f"{name}.json", own)
    return folder


def up(poc: Poc) -> None:
    for _ in range(20):
        try:
            with open_session(poc.admin, timeout=10):
                return
        except Stopped:
            continue


def lose_site_3_and_abort(poc: Poc, processes: Processes, run: Path, log: Path) -> None:
    """After the first round the machine of site-3 dies and is started again; then an operator ends the job."""
    with open_session(poc.admin) as session:  # before the run: a session takes seconds to open
        while not (run / "rounds" / "000").is_dir():
            time.sleep(0.02)
        for process in below(processes.started["site-3"].pid):
            process.send_signal(signal.SIGKILL)
        before = registered(log)
        poc.start_site(processes, "site-3", log)
        while registered(log) == before:
            time.sleep(0.2)
        (job,) = session.list_jobs()
        session.abort_job(job["job_id"])


def test_a_killed_site_and_an_aborted_job_go_on_to_the_same_model_and_images_stay(three_sites, tmp_path):
    local, fetched, at = tmp_path / "local", tmp_path / "fetched", tmp_path / "hospitals"
    options = {**OPTIONS, "rounds": 4}
    assert main(["federate", *words(three_sites, local, variant="no_sam", **options)]) == 0
    poc = Poc(tmp_path / "system", SITES, port=free_port())
    poc.provision(own_files(tmp_path / "files", three_sites, at))
    pairs = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    job = ["samfed_skin", "--datalist", str(three_sites / "list.json"), "--variant", "no_sam", *pairs]
    assert main(["flare", "export", *job, "--job", str(tmp_path / "first")]) == 0
    with Processes() as processes:
        poc.start_server(processes, tmp_path / "server.log")
        for site in SITES:
            poc.start_site(processes, site, tmp_path / f"{site}.log")
        up(poc)
        kit = ["--kit", str(poc.admin), "--output-dir", str(fetched), "--stop-after", "300"]
        run = at / "server" / "runs_dir" / "first"
        given = (poc, processes, run, tmp_path / "site-3.log")
        operator = threading.Thread(target=lose_site_3_and_abort, args=given, daemon=True)
        operator.start()
        assert main(["flare", "submit", str(tmp_path / "first"), *kit]) == 3
        operator.join()
        stored = len(list((run / "rounds").glob("[0-9]*")))
        assert 1 <= stored < 4, "no round is complete without the site: nothing names a timeout"
        assert main(["flare", "submit", str(tmp_path / "first"), *kit]) == 0
        with open_session(poc.admin) as session:
            (done,) = [job["job_id"] for job in session.list_jobs() if job["status"] == "FINISHED:COMPLETED"]
        later = tmp_path / "later"
        assert main(["flare", "fetch", done, "--kit", str(poc.admin), "--output-dir", str(later)]) == 0
        assert main(["flare", "fetch", "none", "--kit", str(poc.admin), "--output-dir", str(later)]) == 2
    assert processes.marked() == []
    assert hashes(later) == hashes(fetched)
    assert hashes(fetched) == hashes(local)
    assert read_json(fetched / "flare.json")["state"] == "done"
    assert (fetched / "report.html").is_file()
    assert not list(fetched.rglob("*.png")), "no image, no mask"
    masks = at / "site-2" / "runs_dir" / "first" / "evaluation" / "best" / "site-2" / "test" / "masks"
    assert len(list(masks.iterdir())) == 5, "they are at the site"
