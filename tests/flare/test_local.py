"""FLARE's processes on one machine leave nothing behind and touch nobody else's."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from samfed_monai.core.errors import Stopped, Terminated
from samfed_monai.core.io import read_json, write_json
from samfed_monai.flare.job import NEEDED
from samfed_monai.flare.local import SERVER, Poc, Processes


@pytest.mark.parametrize(
    ("asked", "raised"), [(None, None), (KeyboardInterrupt(), KeyboardInterrupt), (Terminated("SIGTERM"), Stopped)]
)
def test_fault_53_a_mark_ends_processes_that_left_their_group(tmp_path, asked, raised):
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)"
    code = f"import subprocess, sys, time; {child}; time.sleep(60)"
    with pytest.raises(raised) if raised else contextlib.nullcontext(), Processes() as processes:
        (tmp_path / "parent.py").write_text(code)
        processes.start("parent", "parent", cwd=tmp_path, log=tmp_path / "log")
        deadline = time.monotonic() + 10
        while len(processes.marked()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(processes.marked()) == 2
        if asked:
            raise asked
    assert processes.marked() == []


def test_fault_53_a_command_that_is_asked_to_end_says_how_to_go_on():
    with (
        pytest.raises(Stopped, match=r"asked to end \(SIGTERM\)(.|\n)*type the same command again") as stopped,
        Processes(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.exit_code == 3


def test_jobs_of_one_system_lie_in_its_own_server(tmp_path):
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
