"""A provisioned system with certificates: what a hospital runs, on this machine."""

from __future__ import annotations

import re
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from samfed_monai.cli.main import main
from samfed_monai.core.io import read_json, write_json
from samfed_monai.data import DataList
from samfed_monai.flare.local import SERVER, Poc, Processes, _until_done
from samfed_monai.flare.session import open_session, submit_job, wait_for_sites
from tests.flare.carried import hashes
from tests.flare.test_equality import FEW_IMAGES, OPTIONS, free_port, words
from tests.flare.test_faults import model, unbroken
from tests.flare.toys import REPO, toy_job

pytestmark = pytest.mark.slow
SITES = ("site-1", "site-2")


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


@dataclass
class System:
    """A provisioned system that runs, and the folder of all of it."""

    poc: Poc
    processes: Processes
    at: Path

    @property
    def kit(self) -> str:
        return str(self.poc.admin)

    def run(self, name: str) -> Path:
        """A run's folder at the server."""
        return self.at / "server" / "runs_dir" / name

    def lose_and_start(self, site: str) -> None:
        """The site's machine dies, and is started again until it is registered."""
        log = self.at / f"{site}.log"
        before = registered(log)
        for process in below(self.processes.started[site].pid):
            process.send_signal(signal.SIGKILL)
        self.poc.start(self.processes, site, log)
        while registered(log) == before:
            time.sleep(0.2)


def below(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def registered(log: Path) -> int:
    """How often a site has connected anew."""
    return log.read_text(errors="replace").count("Successfully registered client")


@pytest.fixture(scope="module")
def system(two_sites, tmp_path_factory):
    """One system for all tests of this file, which follow each other: the later ones kill parts of it."""
    at = tmp_path_factory.mktemp("hospitals")
    poc = Poc(at / "system", SITES, port=free_port(), more_classes=["tests."])
    poc.provision(own_files(at / "files", two_sites, at))
    with Processes({"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}) as processes:
        poc.start(processes, SERVER, at / "server.log")
        for site in SITES:
            poc.start(processes, site, at / f"{site}.log")
        with poc.open_session() as session:
            wait_for_sites(session, SITES, timeout=120)
        yield System(poc, processes, at)
    assert processes.marked() == []


EVIL = """
from pathlib import Path
from nvflare.apis.executor import Executor
Path({!r}).touch()
class Evil(Executor): pass
"""
CLIENT_API = "nvflare.app_common.executors.client_api_executor.ClientAPIExecutor"


def foreign(job: Path, name: str, marker: Path) -> Path:
    """A job that would run code, made of an exported one."""
    folder = Path(shutil.copytree(job, marker.parent / name))
    app, built = folder / "app", {"path": "evil.Evil", "args": {}}
    if name == "code-for-sites":
        app = Path(shutil.copytree(app, folder / "evil"))
        meta = read_json(folder / "meta.json")
        write_json(folder / "meta.json", {**meta, "deploy_map": {"app": ["server"], "evil": [*SITES]}})
    if name.startswith("code"):
        (app / "custom").mkdir()
        (app / "custom" / "evil.py").write_text(EVIL.format(str(marker)))
    if name == "command":
        arguments = {"execution_mode": "external_process", "command": ["touch", str(marker)]}
        built = {"path": CLIENT_API, "args": arguments}
    path = app / "config" / "config_fed_client.json"
    write_json(path, {**read_json(path), "executors": [{"tasks": ["train"], "executor": built}]})
    return folder


#: Foreign jobs, and who refuses them when they are submitted without this package.
FOREIGN = {
    "code": "server: BYOC not permitted",
    "code-for-sites": "site-1: NVFLARE_ERROR: BYOC not permitted",
    "command": f"Component '{CLIENT_API}' at config path .* is not in allow_list",
}
NAMED = ["samfed_skin", "--variant", "no_sam", "--sites", '{"site-1": {}, "site-2": {}}']


def test_jobs_with_code_are_refused_by_submit_and_without_it_by_server_and_sites(system, tmp_path, capsys):
    assert main(["flare", "export", *NAMED, "--job", str(tmp_path / "first")]) == 0
    jobs = {name: foreign(tmp_path / "first", name, tmp_path / "marker") for name in FOREIGN}
    for folder in jobs.values():
        assert main(["flare", "submit", str(folder), "--kit", system.kit, "--output-dir", str(tmp_path)]) == 2
        assert "a job holds no code" in capsys.readouterr().err
    with open_session(system.kit) as session:
        assert session.list_jobs() == [], "nothing was sent"
        submitted = {
            name: submit_job(session, folder) for name, folder in jobs.items()
        }  # which FLARE runs side by side
        for name, job_id in submitted.items():
            while not (meta := session.get_job_meta(job_id))["status"].startswith("FINISHED"):
                time.sleep(0.2)
            assert meta["status"] in ("FINISHED:FAILED_TO_RUN", "FINISHED:ABNORMAL")
            said = f"{meta.get('job_deploy_detail')}{(system.at / 'site-1.log').read_text()}"
            assert re.search(FOREIGN[name], said), said
    assert not (tmp_path / "marker").exists(), "no code ran"


def lose_site_2_and_abort(system: System, run: Path) -> None:
    """After the first round the machine of site-2 dies and is started again; then an operator ends the job."""
    with open_session(system.kit) as session:  # before the run: a session takes seconds to open
        while not (run / "rounds" / "000").is_dir():
            time.sleep(0.02)
        system.lose_and_start("site-2")
        (job,) = [job for job in session.list_jobs() if job["status"] == "RUNNING"]
        session.abort_job(job["job_id"])


def test_a_killed_site_and_an_aborted_job_go_on_to_the_same_model_and_images_stay(system, two_sites, tmp_path):
    local, fetched = tmp_path / "local", tmp_path / "fetched"
    options = {**OPTIONS, **FEW_IMAGES}
    assert main(["federate", *words(two_sites, local, variant="no_sam", **options)]) == 0
    pairs = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    job = ["samfed_skin", "--datalist", str(two_sites / "list.json"), "--variant", "no_sam", *pairs]
    assert main(["flare", "export", *job, "--job", str(tmp_path / "first")]) == 0
    kit = ["--kit", system.kit, "--output-dir", str(fetched), "--stop-after", "300"]
    run = system.run("first")
    operator = threading.Thread(target=lose_site_2_and_abort, args=(system, run), daemon=True)
    operator.start()
    assert main(["flare", "submit", str(tmp_path / "first"), *kit]) == 3
    operator.join()
    stored = len(list((run / "rounds").glob("[0-9]*")))
    assert 1 <= stored < 3, "no round is complete without the site: nothing names a timeout"
    assert main(["flare", "submit", str(tmp_path / "first"), *kit]) == 0
    with open_session(system.kit) as session:
        (done,) = [job["job_id"] for job in session.list_jobs() if job["status"] == "FINISHED:COMPLETED"]
    later = ["--kit", system.kit, "--output-dir", str(tmp_path / "later")]
    assert main(["flare", "fetch", done, *later]) == 0
    assert main(["flare", "fetch", "none", *later]) == 2
    assert hashes(tmp_path / "later") == hashes(fetched)
    assert hashes(fetched) == hashes(local)
    assert read_json(fetched / "flare.json")["state"] == "done"
    assert (fetched / "report.html").is_file()
    assert not list(fetched.rglob("*.png")), "no image, no mask"
    masks = system.at / "site-2" / "runs_dir" / "first" / "evaluation" / "best" / "site-2" / "test" / "masks"
    assert len(list(masks.iterdir())) == 1, "they are at the site"


def test_a_killed_server_ends_the_command_within_a_minute_with_3(system, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("samfed_monai.flare.session._GONE", 1.0)  # how long it is: test_session.py
    rounds, killed = system.run("killed") / "rounds", []

    def kill_server() -> None:
        while not (rounds / "001").is_dir():  # that the first one is stored has been logged
            time.sleep(0.02)
        for process in below(system.processes.started[SERVER].pid)[::-1]:
            process.send_signal(signal.SIGKILL)
        killed.append(time.monotonic())
        system.poc.start(system.processes, SERVER, system.at / "again.log")  # as start.sh does

    threading.Thread(target=kill_server, daemon=True).start()
    with open_session(system.kit) as session:
        job_id = submit_job(session, toy_job(tmp_path / "job", "killed", rounds=500, run="def456"))
    assert main(["flare", "fetch", job_id, "--kit", system.kit, "--output-dir", str(tmp_path / "killed")]) == 3
    assert time.monotonic() - killed[0] < 60
    told = capsys.readouterr().err
    assert "the FLARE server was started again, and what it ran before is gone" in told
    assert "of 500 rounds are stored at the server\n  to go on: type the same command again" in told
    assert "cannot send to" not in told, "nothing of FLARE's own log"


def test_fault_41_a_whole_site_killed_costs_one_deadline_and_the_others_go_on(system, tmp_path):
    deadline, run = 10.0, system.run("toy")

    def kill_site_2() -> None:  # and start it again: FLARE has it wait for the next job
        while not (run / "rounds" / "000").is_dir():
            time.sleep(0.02)
        system.lose_and_start("site-2")

    threading.Thread(target=kill_site_2, daemon=True).start()
    faults = {site: [{"round": 1, "what": "sleep", "seconds": 2}] for site in SITES}  # it is killed while it works
    plan = {"rounds": 4, "deadline": (1, deadline), "faults": faults, "allow_single_site": True, "quorum": 1}
    job = toy_job(tmp_path / "job", **plan)
    with system.poc.open_session() as session:  # the server was killed a moment ago
        wait_for_sites(session, SITES, timeout=120)
        submit_job(session, job)
    _until_done(run, system.at / "none", str, timeout=240)
    records = [read_json(run / "rounds" / f"{number:03d}" / "round.json") for number in range(4)]
    assert [record["sites"]["site-2"]["status"] for record in records] == ["ok", "skipped", "skipped", "skipped"]
    assert [record["sites"]["site-1"]["status"] for record in records] == ["ok"] * 4
    assert deadline <= records[1]["seconds"]["training"] < 2 * deadline
    assert sum(sum(record["seconds"].values()) for record in records[2:]) < deadline, "no round waits for it again"
    absent = {"site-2": range(1, 4)}
    assert model(run, 3) == unbroken(tmp_path / "whole", rounds=4, absent=absent, quorum=1)
