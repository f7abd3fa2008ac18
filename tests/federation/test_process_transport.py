"""Sites in processes of their own: the same bits as one after the other, and what happens when a process dies."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from monai.data import set_track_meta

from samfed_monai.bundle import images
from samfed_monai.core.errors import Problem, Refused, SamFedError, Stopped
from samfed_monai.core.io import read_json
from samfed_monai.data import DataList
from samfed_monai.federation import ProcessTransport, Site
from samfed_monai.federation.child_process import ChildDied
from samfed_monai.federation.participants import Participants
from samfed_monai.federation.plan import Paths
from samfed_monai.federation.process_transport import describe_error, rebuild_error, workers_of
from samfed_monai.protocol import Failure, Kind, Message, Task
from tests.federation.test_job import CLIENT, UNLIKE, job
from tests.federation.toys import QUIET
from tests.forking import fork_workers, start
from tests.waiting import alive, wait_until

#: Small by its own words: some of the processes are real ones, that know nothing of :mod:`tests.speedups`.
STEPS = {**CLIENT, "image_size": 64, "network_def#features": [8, 8, 8, 8, 8, 8]}


def same(first: dict, second: dict) -> None:
    for part in ("sites", "average", "worst", "unseen", "models", "hashes", "skipped", "seeds"):
        assert first.get(part) == second.get(part), part
    assert first["traffic"]["down_bytes"] == second["traffic"]["down_bytes"]


@pytest.fixture(scope="module")
def running(small_federation, tmp_path_factory):
    """Two processes that are ready, and weights to train from."""
    made = job(small_federation, tmp_path_factory.mktemp("running") / "run", train=STEPS)
    plan = Participants.of(made.plan, made.paths, DataList.load(small_federation / "list.json")).resolve(made.plan)
    network = Site("site-1", plan, made.paths).make_client().trainer.network
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with (
        pytest.MonkeyPatch.context() as patch,
        ProcessTransport(plan, made.paths, workers=2, progress=QUIET) as transport,
    ):
        fork_workers(patch)
        transport.send_and_receive(Task.PREPARE, {site: Message(Kind.METRICS, site, 0, 2) for site in transport.sites})
        yield transport, weights


def training(sites, weights, round: int = 0) -> dict[str, Message]:
    return {site: Message(Kind.WEIGHTS, site, round, 2, tensors=weights) for site in sites}


def test_workers_give_same_results_as_sequential_sites(small_federation, tmp_path, monkeypatch):
    fork_workers(monkeypatch)
    train = {**CLIENT, **UNLIKE, "batch_size": 3}  # public images are read in two batches
    ours = {"variant": "hssf", "train": train, "warm_start_steps": 0, "cache_dir": tmp_path / "cache"}
    together = job(small_federation, tmp_path / "one", **ours).run()
    set_track_meta(True)  # as a process begins: no workflow has been initialized in it, and no image read
    images._shared_items.clear()
    same(together, job(small_federation, tmp_path / "two", **ours, workers=2).run())
    assert read_json(tmp_path / "one/run.json")["config"] == read_json(tmp_path / "two/run.json")["config"]
    table = "evaluation/best/site-2/test/scores.csv"
    assert (tmp_path / "two" / table).read_bytes() == (tmp_path / "one" / table).read_bytes()


def run_with_workers(federation: Path, output: Path, rounds: int) -> None:
    """What the processes do that get a signal; their own processes are real."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    try:
        job(federation, output, train=STEPS, warm_start_steps=0, rounds=rounds, workers=2).run()
    except SamFedError as error:
        print(error, file=sys.stderr)
        sys.exit(int(error.exit_code))


@pytest.mark.slow
def test_ctrl_c_ends_workers_and_run_resumes(small_federation, tmp_path):
    folder, rounds = tmp_path / "run", 3
    process = start(run_with_workers, small_federation, folder, rounds, errors=tmp_path / "errors")
    stored = folder / "rounds/000/round.json"
    wait_until(lambda: stored.exists() or process.exitcode is not None, "a stored round", seconds=180)
    children = [
        int(number)
        for task in Path(f"/proc/{process.pid}/task").iterdir()
        for number in (task / "children").read_text().split()
    ]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all processes
    process.join(60)
    text = (tmp_path / "errors").read_text()
    assert process.exitcode == 130, text
    assert f"of {rounds} rounds are kept" in text
    assert "Traceback" not in text
    assert len(children) == 2
    wait_until(lambda: not any(map(alive, children)), "the end of its processes", seconds=20)
    resumed, whole = (
        job(small_federation, each, train=STEPS, warm_start_steps=0, rounds=rounds).run()
        for each in (folder, tmp_path / "whole")
    )
    assert resumed["hashes"] == whole["hashes"]
    assert resumed["sites"] == whole["sites"]


def test_killed_worker_is_site_failure_and_resumes_from_last_round(running, tmp_path, caplog):
    transport, weights = running
    folders = {name: tmp_path / "rounds" / name / "clients" for name in ("000", ".001.tmp", ".again.tmp")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    transport.send_and_receive(Task.TRAIN, training(transport.sites, weights))
    transport.save_state(folders["000"])
    transport.send_and_receive(Task.TRAIN, training(transport.sites, weights, 1))
    whole = transport.save_state(folders[".001.tmp"])
    assert len(whole) == 2
    victim = transport.processes[1].child
    os.kill(victim.pid, signal.SIGSTOP)
    with subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {victim.pid}"]):
        replies = transport.send_and_receive(Task.TRAIN, training(transport.sites, weights, 1))
    assert isinstance(replies["site-1"], Message)
    assert replies["site-2"] == Failure(
        "site-2", "the training process was ended by SIGKILL (killed, for instance because memory ran out)"
    )
    with caplog.at_level(logging.WARNING):
        replies = transport.send_and_receive(Task.TRAIN, training(["site-2"], weights, 1))
    assert isinstance(replies["site-2"], Message)
    assert "restarting the process of site-2" in caplog.text
    again = transport.save_state(folders[".again.tmp"])
    assert again["site-2.safetensors"] == whole["site-2.safetensors"], "moments are those of the round before, trained"
    assert again["site-1.safetensors"] == whole["site-1.safetensors"], "the same round once more, from the state before"


def test_site_past_deadline_is_failure(running):
    transport, weights = running
    os.kill(transport.processes[0].child.pid, signal.SIGSTOP)
    replies = transport.send_and_receive(Task.TRAIN, training(transport.sites, weights), timeout=5.0)
    assert replies["site-1"] == Failure("site-1", "no answer within 5 s")
    assert isinstance(replies["site-2"], Message)


class _OwnChild:
    """A process that this one plays: it has ended once, and takes its time to be started again."""

    pid, alive = 7, False

    def __init__(self, error: str = "") -> None:
        self.error, self.calls, self.killed = error, 0, threading.Event()

    def start(self) -> None:
        time.sleep(0.5)  # past the deadline of the test
        self.killed.clear()

    def ask(self, head: Any, payload: bytes = b"") -> Any:
        self.calls += 1
        if self.error or self.killed.wait(10):
            raise ChildDied(self.error or "killed")
        raise AssertionError("it was not ended")

    def kill(self) -> None:
        self.killed.set()

    def stop(self) -> None:
        self.kill()


@pytest.fixture
def playing(small_federation, tmp_path):
    """A transport of one process, none yet; a test puts one of this process in its place."""
    made = job(small_federation, tmp_path / "run")
    plan = replace(made.plan, sites={"site-1": {}}, unseen=())
    with ProcessTransport(plan, made.paths, workers=1, progress=QUIET) as transport:
        yield transport


@pytest.mark.parametrize("slow", [True, False])
def test_deadline_ends_busy_or_starting_worker(playing, slow):
    playing.processes[0].child = child = _OwnChild()
    child.alive = not slow
    replies = playing.send_and_receive(Task.TRAIN, {"site-1": Message(Kind.METRICS, "site-1", 0, 2)}, timeout=0.1)
    assert replies["site-1"].reason == "no answer within 0 s"
    assert child.calls == (not slow), "no request to one that is started too late"


def test_worker_death_at_finalize_is_logged(playing, caplog):
    playing.processes[0].child = child = _OwnChild("the training process was ended by SIGKILL")
    child.alive = True
    playing.finalize()
    assert "site-1: the training process was ended by SIGKILL" in caplog.text


def test_site_refusal_before_round_0_is_raised(small_federation, tmp_path, monkeypatch):
    fork_workers(monkeypatch)
    wrong = {**STEPS, "terms#pseudo_label#teacher": "sma"}
    with pytest.raises(Refused, match="found the guide 'sma'"):
        job(small_federation, tmp_path / "run", train=wrong, warm_start_steps=0, workers=2).run()


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (Refused([Problem("a", "1", "2", "hint")]), Refused([Problem("a", "1", "2", "hint")])),
        (Stopped("full", "make room"), Stopped("full", "make room")),
        (OSError(13, "no"), OSError(13, "Permission denied, at site-1:\nPermissionError: [Errno 13] no\n")),
        (KeyError("x"), RuntimeError("in the process of site-1:\nKeyError: 'x'\n")),
    ],
)
def test_worker_errors_are_raised_in_parent(error, again):
    raised = rebuild_error(json.loads(json.dumps(describe_error(error))), "site-1")
    assert (type(raised), str(raised)) == (type(again), str(again))


@pytest.mark.parametrize(
    ("wanted", "sites", "cores", "gpu", "train", "expected"),
    [
        (1, 4, 8, False, {}, 1),
        (3, 4, 2, False, {}, 3),
        (9, 4, 8, False, {}, 4),
        ("auto", 4, 2, False, {}, 2),
        ("auto", 2, 8, False, {}, 2),
        ("auto", 4, 1, False, {}, 1),
        ("auto", 4, 8, True, {}, 1),
        ("auto", 4, 8, True, {"device": "cpu"}, 4),
        (2, 4, 8, True, {}, 2),
    ],
)
def test_worker_count_depends_on_sites_cores_and_gpu(monkeypatch, wanted, sites, cores, gpu, train, expected):
    monkeypatch.setattr("samfed_monai.federation.process_transport.usable_cores", lambda: cores)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert workers_of(Paths("bundle", "list.json", "data", "run", workers=wanted, train=train), sites) == expected
