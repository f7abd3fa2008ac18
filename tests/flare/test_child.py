"""The process that trains as its client sees it: asked, killed, replaced; and a client that stays light."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samfed_monai.federation.child import Child, ChildDied, Ended, read_frame, write_frame
from samfed_monai.flare.client import Site
from samfed_monai.flare.site_file import read_site_file
from tests.flare.toys import toy_site_files

ECHO = "tests.flare.echo_worker"


@pytest.fixture
def child(tmp_path):
    made = Child(ECHO, {"greeting": "hello"}, log=tmp_path / "log")
    yield made
    made.stop()


def test_a_frame_comes_back_and_a_torn_one_is_the_end():
    stream = io.BytesIO()
    write_frame(stream, {"task": "train"}, b"\x00\xff" * 3)
    whole = stream.getvalue()
    assert read_frame(io.BytesIO(whole)) == ({"task": "train"}, b"\x00\xff" * 3)
    for torn in (b"", whole[:5], whole[:-1]):
        with pytest.raises(Ended):
            read_frame(io.BytesIO(torn))


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


def test_a_child_ends_when_its_client_is_killed(tmp_path):
    code = (
        "from samfed_monai.federation.child import Child\nimport time\n"
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


def test_the_flare_client_never_imports_torch():
    code = (
        "import sys, numpy, samfed_monai.flare.client, nvflare.client\n"
        "heavy = {'torch', 'monai', 'ignite', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_site_answers_reports_a_dead_child_and_starts_another(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_SITE", str(toy_site_files(tmp_path / "sites", ("site-1",), tmp_path / "run")))
    site = Site("site-1", read_site_file(tmp_path, "site-1"), tmp_path, worker=ECHO)
    try:
        words = {"task": "train", "run": "ab12", "run_name": "first", "keep": [0, "rm -rf"]}
        assert site.answer(words, b"abc") == (b"abc", "")
        content, failure = site.answer({**words, "task": "exit"}, b"abc")
        assert (content, failure) == (b"", "the process that trains ended with code 3; see its log at the site")
        assert site.answer(words, b"again") == (b"again", "")
        assert site.state == tmp_path / "sites" / "cache" / "site-1" / "state" / "ab12" / "site-1"
        assert site.answer({**words, "run": "../../etc"}, b"")[1] == "the message names no run"
        for name in ("../../etc/x", "/etc/x", ""):
            content, failure = site.answer({**words, "run": "cd34", "run_name": name}, b"abc")
            assert (content, failure[:52]) == (b"", "message -> run_name: expected up to 100 letters, dig")
        assert not site.state.with_name("cd34").exists()
        assert site.answer({**words, "run": "cd34"}, b"abc") == (b"abc", "")
    finally:
        site.close()
