"""A provisioned system with certificates: what a hospital runs, on this machine."""

from __future__ import annotations

import re
import shlex
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
from samfed_monai.flare.local import SERVER, Poc, Processes
from samfed_monai.flare.session import open_session, submit_job, wait_for_sites
from tests.flare.carried import hashes
from tests.flare.test_equality import FEW_IMAGES, OPTIONS, free_port, words
from tests.flare.toys import REPO, toy_job
from tests.flare.unbroken import unbroken
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
SITES = ("site-1", "site-2")


def own_files(folder: Path, images: Path, at: Path) -> Path:
    """Site files as hospitals write them: each with its own list, cache and folder of runs."""
    listed = DataList.load(images / "list.json")
    for name in (*SITES, "server"):
        (listed.for_server() if name == "server" else listed.for_site(name)).save(at / name / "list.json")
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

    def start(self, name: str) -> None:
        self.poc.start(self.processes, name, self.at / f"{name}.log")

    def kill(self, name: str) -> None:
        """The machine of the server or of a site dies."""
        process = psutil.Process(self.processes.started[name].pid)
        for each in (process, *process.children(recursive=True)):
            each.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def system(two_sites, forked, allowed, tmp_path_factory):
    """One system for all tests of this file, which follow each other: the later ones kill parts of it."""
    at = tmp_path_factory.mktemp("hospitals")
    poc = Poc(at / "system", SITES, port=free_port())
    poc.provision(own_files(at / "files", two_sites, at))
    with Processes({"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}) as processes:
        system = System(poc, processes, at)
        for name in (SERVER, *SITES):
            system.start(name)
        with poc.open_session() as session:
            wait_for_sites(session, SITES, timeout=120)
        yield system
    assert processes.marked() == []


@pytest.fixture(autouse=True)
def polls_often(monkeypatch):
    monkeypatch.setattr("samfed_monai.flare.session._POLL", 1.0)


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


def test_jobs_with_code_are_refused_by_submit_and_by_flare(system, tmp_path, capsys):
    assert main(["flare", "export", *NAMED, "--job", str(tmp_path / "first")]) == 0
    jobs = {name: foreign(tmp_path / "first", name, tmp_path / "marker") for name in FOREIGN}
    for folder in jobs.values():
        assert main(["flare", "submit", str(folder), "--kit", system.kit, "--output-dir", str(tmp_path)]) == 2
        assert "a job contains no code" in capsys.readouterr().err
    with open_session(system.kit) as session:
        assert session.list_jobs() == [], "nothing was sent"
        submitted = [submit_job(session, folder) for folder in jobs.values()]  # FLARE runs them side by side
        for job_id, why in zip(submitted, FOREIGN.values(), strict=True):
            for _ in range(300):  # FLARE notes the reason after the status
                meta, log = session.get_job_meta(job_id), (system.at / "site-1.log").read_text()
                found = f"{meta['status']}: {meta.get('job_deploy_detail')} {log}"
                if re.match(rf"(?s)FINISHED:(FAILED_TO_RUN|ABNORMAL).*{why}", found):
                    break
                time.sleep(0.2)
            else:
                pytest.fail(found)
    assert not (tmp_path / "marker").exists(), "no code ran"


def lose_site_2_and_abort(system: System, run: Path) -> None:
    """After the first round the machine of site-2 dies and is started again; then an operator ends the job."""
    log = system.at / "site-2.log"

    def registered() -> int:
        return log.read_text(errors="replace").count("Successfully registered client")

    with open_session(system.kit) as session:  # before the run: a session takes seconds to open
        wait_until((run / "rounds" / "000").is_dir, "the first round", seconds=240)
        before = registered()
        system.kill("site-2")
        system.start("site-2")
        wait_until(lambda: registered() > before, "a registered client", seconds=240)
        (job,) = [job for job in session.list_jobs() if job["status"] == "RUNNING"]
        session.abort_job(job["job_id"])


def test_killed_site_and_aborted_job_resume_to_same_weights(system, two_sites, tmp_path, capsys):
    local, fetched = tmp_path / "local", tmp_path / "fetched"
    options = {**OPTIONS, **FEW_IMAGES}
    assert main(["federate", *words(two_sites, local, variant="no_sam", **options)]) == 0
    pairs = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    job = ["samfed_skin", "--datalist", str(two_sites / "list.json"), "--variant", "no_sam", *pairs]
    assert main(["flare", "export", *job, "--job", str(tmp_path / "first")]) == 0
    kit, run = ["--kit", system.kit, "--output-dir", str(fetched)], system.run("first")
    operator = threading.Thread(target=lose_site_2_and_abort, args=(system, run), daemon=True)
    operator.start()
    assert main(["flare", "submit", str(tmp_path / "first"), *kit, "--stop-after", "300"]) == 3
    operator.join()
    stored = [path.name for path in (run / "rounds").glob("[0-9]*")]
    assert stored == ["000"], "no round is complete without the site: nothing names a timeout"
    assert main(["flare", "submit", str(tmp_path / "first"), *kit, "--no-wait"]) == 0
    fetch = re.findall("^next: samfed (.*)", capsys.readouterr().err, re.MULTILINE)[-1]
    assert main(shlex.split(fetch)) == 0
    assert main(["flare", "fetch", "none", *kit]) == 2
    assert hashes(fetched) == hashes(local)
    assert read_json(fetched / "flare.json")["state"] == "done"
    assert (fetched / "report.html").is_file()
    assert not list(fetched.rglob("*.png")), "no image, no mask"
    masks = system.at / "site-2" / "runs_dir" / "first" / "evaluation" / "best" / "site-2" / "test" / "masks"
    assert len(list(masks.iterdir())) == 1, "they are at the site"


def test_fault_41_killed_site_is_skipped_and_killed_server_reported(system, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("samfed_monai.flare.session._GONE", 1.0)  # how long it is: test_session.py
    run, killed = system.run("toy"), []

    def kill_site_2_and_server() -> None:
        wait_until((run / "rounds" / "001").is_dir, "the second round", seconds=240)
        system.kill("site-2")
        wait_until((run / "rounds" / "004").is_dir, "the fifth round", seconds=240)
        system.kill(SERVER)
        killed.append(time.monotonic())
        system.start(SERVER)  # as start.sh does

    threading.Thread(target=kill_site_2_and_server, daemon=True).start()
    asleep = {"site-2": [{"round": 2, "what": "sleep", "seconds": 600}]}  # it is killed while it works
    with open_session(system.kit) as session:
        job_id = submit_job(session, toy_job(tmp_path / "job", rounds=500, hurried_from=2, faults=asleep))
    assert main(["flare", "fetch", job_id, "--kit", system.kit, "--output-dir", str(tmp_path / "killed")]) == 3
    assert time.monotonic() - killed[0] < 60
    error = capsys.readouterr().err
    assert "the FLARE server was restarted and no longer runs its earlier jobs" in error
    assert "of 500 rounds are stored at the server\n  to continue: run the same command again" in error
    assert "cannot send to" not in error, "nothing of FLARE's own log"
    sites = [read_json(run / "rounds" / f"{number:03d}" / "round.json")["sites"] for number in range(5)]
    assert [entry["site-1"]["status"] for entry in sites] == ["ok"] * 5
    assert [entry["site-2"]["status"] for entry in sites] == ["ok", "ok", "skipped", "skipped", "skipped"]
    left = [re.search(r"no answer within \d+ s(; not waited for)?", each["site-2"]["reason"]) for each in sites[2:]]
    assert [bool(found and found[1]) for found in left] == [False, True, True], "no round waits for it again"
    alone = unbroken(tmp_path / "whole", rounds=5, absent={"site-1": [], "site-2": [2, 3, 4]})
    assert hashes(alone).items() <= hashes(run).items()
