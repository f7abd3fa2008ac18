"""A provisioned system with certificates: what a hospital runs, on this machine."""

from __future__ import annotations

import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.cli.main import main
from samfed_monai.core.io import read_json, write_json
from samfed_monai.data import DataList
from samfed_monai.flare.local import SERVER, Poc, Processes
from samfed_monai.flare.session import open_session, submit_job
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
        with poc.open_session():
            pass
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


TWO = ("site-1", "site-2")


@pytest.fixture(scope="module")
def hospitals(three_sites, tmp_path_factory):
    """A provisioned system of two sites that runs, with its processes and the folder of all of it."""
    at = tmp_path_factory.mktemp("hospitals")
    poc = Poc(at / "system", TWO, port=free_port())
    poc.provision(own_files(at / "files", three_sites, at))
    with Processes() as processes:
        poc.start_server(processes, at / "server.log")
        for site in TWO:
            poc.start_site(processes, site, at / f"{site}.log")
        with poc.open_session():
            pass
        yield poc, processes, at
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
        write_json(folder / "meta.json", {**meta, "deploy_map": {"app": ["server"], "evil": [*TWO]}})
    if name.startswith("code"):
        (app / "custom").mkdir()
        (app / "custom" / "evil.py").write_text(EVIL.format(str(marker)))
    command = ["touch", str(marker)]
    if name == "class":
        built = {"path": "subprocess.Popen", "args": {"args": command}}
    if name == "command":
        built = {"path": CLIENT_API, "args": {"execution_mode": "external_process", "command": command}}
    path = app / "config" / "config_fed_client.json"
    write_json(path, {**read_json(path), "executors": [{"tasks": ["train"], "executor": built}]})
    return folder


#: Foreign jobs, and who refuses them when they are submitted without this package.
FOREIGN = {
    "code": "server: BYOC not permitted",
    "code-for-sites": "site-1: NVFLARE_ERROR: BYOC not permitted",
    "class": "Component 'subprocess.Popen' at config path .* is not in allow_list",
    "command": f"Component '{CLIENT_API}' at config path .* is not in allow_list",
}
NAMED = ["samfed_skin", "--variant", "no_sam", "--sites", '{"site-1": {}, "site-2": {}}']


def test_jobs_with_code_are_refused_by_submit_and_without_it_by_server_and_sites(hospitals, tmp_path, capsys):
    poc, _, at = hospitals
    assert main(["flare", "export", *NAMED, "--job", str(tmp_path / "first")]) == 0
    jobs = {name: foreign(tmp_path / "first", name, tmp_path / "marker") for name in FOREIGN}
    for folder in jobs.values():
        assert main(["flare", "submit", str(folder), "--kit", str(poc.admin), "--output-dir", str(tmp_path)]) == 2
        assert "a job holds no code" in capsys.readouterr().err
    with open_session(poc.admin) as session:
        assert session.list_jobs() == [], "nothing was sent"
        for name, folder in jobs.items():
            job_id = submit_job(session, folder)
            while not (meta := session.get_job_meta(job_id))["status"].startswith("FINISHED"):
                time.sleep(0.2)
            assert meta["status"] in ("FINISHED:FAILED_TO_RUN", "FINISHED:ABNORMAL")
            said = f"{meta['job_deploy_detail']}{(at / 'site-1.log').read_text()}"
            assert re.search(FOREIGN[name], said), said
    assert not (tmp_path / "marker").exists(), "no code ran"


def test_a_killed_server_ends_the_command_within_a_minute_with_3(hospitals, tmp_path, capsys):
    poc, processes, at = hospitals
    rounds, killed = at / "server" / "runs_dir" / "killed" / "rounds", []

    def kill_server() -> None:
        while not (rounds / "001").is_dir():  # that the first one is stored has been logged
            time.sleep(0.02)
        for process in below(processes.started[SERVER].pid)[::-1]:
            process.send_signal(signal.SIGKILL)
        killed.append(time.monotonic())
        poc.start_server(processes, at / "again.log")  # as start.sh does

    threading.Thread(target=kill_server, daemon=True).start()
    options = {**OPTIONS, "rounds": 500, "privacy#least_images": 1}
    pairs = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    kit = ["--kit", str(poc.admin), "--output-dir", str(tmp_path / "killed")]
    assert main(["flare", "submit", *NAMED, *pairs, *kit]) == 3
    assert time.monotonic() - killed[0] < 60
    told = capsys.readouterr().err
    assert "the FLARE server was started again, and what it ran before is gone" in told
    assert "of 500 rounds are stored at the server\n  to go on: type the same command again" in told
    assert "cannot send to" not in told, "nothing of FLARE's own log"
