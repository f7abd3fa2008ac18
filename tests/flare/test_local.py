"""FLARE on one machine: processes that leave nothing behind, and the commands that start them."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest

from samfed_monai.cli.main import main
from samfed_monai.core.errors import Refused, Stopped, Terminated
from samfed_monai.core.io import read_json, write_json
from samfed_monai.federation.run_folder import RunFolder, take_lock
from samfed_monai.flare.job import NEEDED
from samfed_monai.flare.local import SERVER, Poc, Processes, run_poc, simulate
from samfed_monai.flare.site_file import read_site_file
from tests.flare.test_equality import free_port
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("ends", "raised"),
    [
        (partial(signal.default_int_handler, signal.SIGINT, None), pytest.raises(KeyboardInterrupt)),
        (partial(os.kill, os.getpid(), signal.SIGTERM), pytest.raises(Terminated, match="received SIGTERM")),
    ],
    ids=["ctrl-c", "sigterm"],
)
def test_fault_53_processes_outside_group_are_ended(tmp_path, ends, raised):
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)"
    code = f"import subprocess, sys, time; {child}; time.sleep(60)"
    with raised, Processes() as processes:
        (tmp_path / "parent.py").write_text(code)
        processes.start("parent", "parent", cwd=tmp_path, log=tmp_path / "log")
        wait_until(lambda: len(processes.marked()) == 2, "a parent and its child", seconds=10)
        ends()
    assert processes.marked() == []


def test_poc_stores_jobs_in_own_server_and_can_be_reprovisioned(tmp_path):
    for name in ("server", "site-1"):
        write_json(tmp_path / "sites" / f"{name}.json", {})
    poc = Poc(tmp_path / "poc", ["site-1"], port=1)
    poc.provision(tmp_path / "sites")
    text = (poc.kits / SERVER / "local" / "resources.json").read_text()
    assert "/tmp/nvflare" not in text
    assert f"{poc.kits / SERVER}/jobs-storage" in text
    assert all(name in text for name in NEEDED)
    write_json(tmp_path / "sites" / "site-2.json", {})
    later = Poc(tmp_path / "poc", ["site-1", "site-2"], port=2)  # the same folder, another system
    later.provision(tmp_path / "sites")
    assert {later.kits, poc.kits} == {tmp_path / "poc" / "samfed" / "prod_01"}
    assert (later.kits / "site-2" / "startup" / "fed_client.json").is_file()
    assert read_json(later.admin / "startup" / "fed_admin.json")["admin"]["port"] == 2


@pytest.mark.parametrize("way", ["simulate", "poc"])
def test_relative_paths_are_resolved_from_command_folder(two_sites, tmp_path, monkeypatch, way):
    def started(job, *, site_files, sites, **_):
        monkeypatch.setenv("SAMFED_SITE", str(site_files))
        monkeypatch.setenv("SAMFED_FLARE_MARK", "of the command")
        for name in (*sites, "server"):
            files = read_site_file(tmp_path, name)
            caches = tmp_path / "cache" / "sites" / name if name in sites else tmp_path / "cache"
            assert (files.cache_dir, files.data_root, files.output_dir) == (caches, two_sites, tmp_path / "run")
            assert files.bundle_root == tmp_path / "mine"
        raise KeyboardInterrupt  # nothing is run

    monkeypatch.setattr(f"samfed_monai.flare.local.{'simulate' if way == 'simulate' else 'run_poc'}", started)
    monkeypatch.chdir(tmp_path)
    assert main(["init", "samfed_skin", "mine"]) == 0
    here = os.path.relpath(two_sites)
    words = ["--datalist", f"{here}/list.json", "--data-root", here, "--output-dir", "run", "--cache-dir", "cache"]
    words += ["--workspace", "space", "--variant", "no_sam", "--network_name", "basic_unet", "--privacy#least_images=1"]
    assert main(["flare", way, "./mine", *words]) == 130
    assert (tmp_path / "space").is_dir(), "a folder that was named is kept"


def test_relative_environment_paths_are_resolved_for_child(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["lib", "/opt/lib", ""]))
    monkeypatch.setenv("SAMFED_WEIGHTS", "weights")
    monkeypatch.setenv("SAMFED_SITE", "/hospital/site.json")  # kits have files of their own
    monkeypatch.setattr("sys.argv", ["samfed", "flare", "poc"])  # the run's command line
    code = "import os; print(*map(os.environ.get, ('PYTHONPATH', 'SAMFED_WEIGHTS', 'SAMFED_COMMAND', 'SAMFED_SITE')))"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "shown.py").write_text(code)
    with Processes() as processes:
        processes.start("one", "shown", cwd=tmp_path / "elsewhere", log=tmp_path / "log").wait()
    imports = os.pathsep.join([f"{tmp_path}/lib", "/opt/lib", str(tmp_path)])
    assert (tmp_path / "log").read_text() == f"{imports} {tmp_path}/weights samfed flare poc \n"


WAYS = pytest.mark.parametrize("way", [simulate, partial(run_poc, port=free_port())])


@WAYS
def test_path_that_flare_would_split_is_refused(tmp_path, monkeypatch, way):
    for workspace, python in (("my space", "/usr/bin/python3"), ("space", "/my envs/python3")):
        monkeypatch.setattr(sys, "executable", python)
        with pytest.raises(Refused, match=r"FLARE: expected a path without spaces.*my (space|envs).*; choose another"):
            way("job", sites=["a"], workspace=tmp_path / workspace, run_folder=tmp_path / "run", site_files=tmp_path)


def test_poc_ends_when_flare_has_ended_job(tmp_path, monkeypatch):
    session = SimpleNamespace(get_job_meta=lambda _: {"status": "FINISHED:EXECUTION_EXCEPTION"})
    fakes = {"wait_for_sites": None, "submit_job": "id", "Poc.provision": None}  # the run's folder has no status
    fakes |= {"Poc.start": SimpleNamespace(poll=lambda: None), "Poc.open_session": nullcontext(session)}
    for name, given in fakes.items():
        monkeypatch.setattr(f"samfed_monai.flare.local.{name}", lambda *_, given=given, **__: given)
    where = {"workspace": tmp_path / "space", "run_folder": tmp_path / "run", "site_files": tmp_path}
    with pytest.raises(Stopped, match=r"FLARE ended the job \(FINISHED:EXECUTION_EXCEPTION\); logs: .*/run/flare"):
        run_poc("job", sites=["a"], port=free_port(), timeout=0, **where)


@WAYS
@pytest.mark.parametrize("at_work", ["run", "run/flare"])
def test_fault_51_second_command_is_refused_and_removes_nothing(tmp_path, way, at_work):
    (tmp_path / "run" / "flare").mkdir(parents=True)
    for name in ("flare.json", "flare.log"):
        (tmp_path / "run" / name).write_text("of the first")
    take_lock(tmp_path / at_work)
    with RunFolder(tmp_path / at_work), pytest.raises(Refused, match=rf"{at_work}: expected an unused folder"):
        way("job", sites=["a"], workspace=tmp_path / "space", run_folder=tmp_path / "run", site_files="sites")
    assert [path.read_text() for path in tmp_path.glob("**/flare.*")] == ["of the first"] * 2
    assert not (tmp_path / "space").exists()


def test_missing_flare_is_reported_with_install_hint(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nvflare", None)
    words = ["--datalist", "l", "--data-root", "d", "--rounds", "1", "--output-dir", "o"]
    assert main(["flare", "simulate", "samfed_skin", *words]) == 2
    assert "pip install 'samfed-monai[flare]'" in capsys.readouterr().err


def test_export_into_job_folder_and_options_beside_it_are_refused(tmp_path, capsys):
    (tmp_path / "meta.json").write_text("{}")
    assert main(["flare", "export", "samfed_skin", "--job", str(tmp_path)]) == 2
    assert "--job: expected a new name, found" in capsys.readouterr().err
    words = ["flare", "submit", str(tmp_path), "--kit", "kit", "--output-dir", str(tmp_path / "out")]
    assert main([*words, "--rounds", "3", "--run-name", "b", "--job#quorum", "2"]) == 2
    error = capsys.readouterr().err
    for name in ("--rounds", "--run-name", "--job#quorum"):
        assert f"{name}: expected no such option: the job sets it, found it with the job" in error
    assert "--output-dir" not in error
