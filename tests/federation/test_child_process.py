"""The process that trains as its client sees it, asked, killed, replaced; and SIGTERM, at once or deferred."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from samfed_monai.core.errors import ExitCode
from samfed_monai.federation.child_process import Child, ChildDied
from samfed_monai.federation.signals import Interrupted, Terminated, Termination
from tests.waiting import alive, wait_until

ECHO = "tests.federation.echo_worker"


@pytest.fixture
def child(tmp_path):
    made = Child(ECHO, {"greeting": "hello"}, log=tmp_path / "log")
    yield made
    made.stop()


def test_fault_41_killed_child_raises_and_new_child_answers(child):
    child.start()
    assert child.ask({"task": "train"}, b"abc") == ({"greeting": "hello", "task": "train"}, b"abc")
    first = child.pid
    os.kill(first, signal.SIGKILL)
    with pytest.raises(ChildDied, match="ended by SIGKILL"):
        child.ask({"task": "train"}, b"")
    assert not child.alive
    child.start()
    os.kill(child.pid, signal.SIGINT)  # Ctrl-C, which reaches the whole group, is for this process
    assert child.ask({"task": "train"}, b"x")[1] == b"x"
    assert child.pid != first


def test_child_exit_code_is_reported_and_stop_ends_child(child):
    child.start()
    with pytest.raises(ChildDied, match="ended with code 3; see its log at the site"):
        child.ask({"task": "exit"}, b"")
    child.start()
    pid = child.pid
    child.stop()
    child.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_child_ends_when_parent_is_killed():
    code = (
        "from samfed_monai.federation.child_process import Child\nimport time\n"
        f"child = Child({ECHO!r}, {{}})\nchild.start()\nchild.ask({{'task': 'train'}}, b'')\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pid = int(client.stdout.readline())
    client.kill()
    client.wait()
    wait_until(lambda: not alive(pid), "the end of the process that would hold the site's memory", seconds=10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_fault_53_signal_raises_once_and_old_handler_is_restored(number, monkeypatch):
    before = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored
    try:
        with Termination():
            with pytest.raises(Terminated):
                os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # a closed terminal sends two
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_IGN)  # under nohup
    assert Termination().__enter__()._previous == {}


def test_fault_53_sigterm_is_deferred_until_block_ends():
    events = []
    try:
        with Termination() as termination, termination.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            events.append("written")
    except Terminated:
        events.append("raised")
    assert events == ["written", "raised"]
    assert not issubclass(Terminated, Exception)
    assert Interrupted("x").exit_code == ExitCode.INTERRUPTED


def test_forked_child_exits_with_code_of_sigterm():
    with Termination() as outer:
        child = os.fork()
        if not child:
            try:
                outer._receive(signal.SIGTERM, None)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
