"""The process that trains as its client sees it: asked, killed, replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samfed_monai.federation.child_process import Child, ChildDied

ECHO = "tests.federation.echo_worker"


@pytest.fixture
def child(tmp_path):
    made = Child(ECHO, {"greeting": "hello"}, log=tmp_path / "log")
    yield made
    made.stop()


def test_a_child_gets_its_settings_and_answers(child):
    child.start()
    assert child.ask({"task": "train"}, b"abc") == ({"greeting": "hello", "task": "train"}, b"abc")


def test_fault_41_a_killed_child_is_a_failure_and_the_next_one_is_fresh(child):
    child.start()
    first = child.pid
    os.kill(first, signal.SIGKILL)
    with pytest.raises(ChildDied, match="ended by SIGKILL"):
        child.ask({"task": "train"}, b"")
    assert not child.alive
    child.start()
    assert child.ask({"task": "train"}, b"x")[1] == b"x"
    assert child.pid != first


def test_a_child_that_ends_by_itself_says_its_code_and_nothing_else(child):
    child.start()
    with pytest.raises(ChildDied, match="ended with code 3; see its log at the site"):
        child.ask({"task": "exit"}, b"")


def test_a_stopped_child_is_gone_with_its_pipes(child):
    child.start()
    pid = child.pid
    child.stop()
    child.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_child_ends_when_its_client_is_killed():
    code = (
        "from samfed_monai.federation.child_process import Child\nimport time\n"
        f"child = Child({ECHO!r}, {{}})\nchild.start()\nchild.ask({{'task': 'train'}}, b'')\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pid = int(client.stdout.readline())
    client.kill()
    client.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        if Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists(), "nobody is left who would hold the site's memory"
