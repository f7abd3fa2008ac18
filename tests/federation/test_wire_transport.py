"""The transport over FLARE, with a post office of this process: made messages, and no FLARE."""

from __future__ import annotations

import errno
import logging
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from samfed_monai.core.errors import Stopped
from samfed_monai.core.io import sha256_file
from samfed_monai.federation.site import ClientAlgoSite
from samfed_monai.federation.wire_transport import Request, WireTransport, waiting
from samfed_monai.protocol import Kind, Message
from samfed_monai.protocol.message import MessageRefused, from_bytes, to_bytes
from samfed_monai.protocol.transport import NOT_HELD, Failure, HeldWeights, Task, scrub
from tests.federation.toys import QUIET, FixedClient, run_clients, weights

SITES = ("site-1", "site-2", "site-3")


class PostOffice:
    """Has clients of this process answer requests; ``meddle`` may do anything else with one."""

    def __init__(self, meddle: Any = None, sites: tuple[str, ...] = SITES) -> None:
        self.workers = {
            site: ClientAlgoSite(site, FixedClient(site, step=float(number + 1), n=number + 1))
            for number, site in enumerate(sites)
        }
        self.held = {site: HeldWeights() for site in sites}
        self.meddle = meddle
        self.requests: list[Request] = []
        self.cancelled: list[Request] = []
        self.stop = ""

    def answer(self, request: Request) -> bytes:
        message = self.held[request.site].complete(from_bytes(request.payload))
        return to_bytes(self.workers[request.site].answer(Task(request.task), message))

    def send(self, request: Request) -> Request:
        self.requests.append(request)
        if self.meddle is None or not self.meddle(self, request):
            try:
                request.answered(request.site, self.answer(request))
            except MessageRefused as error:
                request.answered(request.site, scrub(error))
        return request

    def cancel(self, request: Request) -> None:
        self.cancelled.append(request)

    def check_stop(self) -> None:
        if self.stop:
            raise Stopped(self.stop, "submit the same job again")


def make(meddle: Any = None, sites: tuple[str, ...] = SITES, **options: Any) -> tuple[WireTransport, PostOffice]:
    post = PostOffice(meddle, sites)
    return WireTransport(post, sites, run="ab", progress=QUIET, **options), post


def run(path: Path, meddle: Any = None, *, sites: tuple[str, ...] = SITES, timeout: float = 5.0, **options: Any) -> Any:
    transport, post = make(meddle, sites, patience=1.0)
    return run_clients(path, dict.fromkeys(sites), transport=transport, timeout=timeout, **options), post


def model(path: Path, round: int = 1) -> str:
    return sha256_file(path / "rounds" / f"{round:03d}" / "global.safetensors")


def training(request: Request, site: str, round: int) -> bool:
    return (request.task, request.site, request.round) == ("train", site, round)


def message(site: str = "site-1", **fields: Any) -> Message:
    return Message(Kind.WEIGHTS, site, 0, 2, tensors=weights(), **fields)


def test_exchange_returns_answers_and_counts_bytes():
    transport, post = make()
    replies = transport.send_and_receive(Task.TRAIN, {site: message(site) for site in SITES})
    assert [replies[site].n for site in SITES] == [1, 2, 3]  # type: ignore[union-attr]
    assert replies["site-2"].tensors["b"].tolist() == [3.0, 3.0]  # type: ignore[union-attr]
    traffic = transport.take_traffic()
    assert traffic["site-1"].down == len(post.requests[0].payload)
    assert traffic["site-1"].up == len(post.answer(post.requests[0]))
    assert transport.take_traffic() == {}


def test_scored_model_is_not_sent_again_for_training(tmp_path):
    _, post = run(tmp_path)
    sizes = [(request.task, len(request.payload)) for request in post.requests if request.site == "site-1"]
    whole = len(to_bytes(message()))
    # round 0 trains, its model is validated, round 1 trains from that one, its model is validated, then tested
    assert [task for task, _ in sizes[:4]] == ["train", "evaluate", "train", "evaluate"]
    bare = len(to_bytes(replace(message(extra={"held": "0" * 32}), tensors={})))
    assert [size >= whole for _, size in sizes[:4]] == [True, True, False, True]
    assert sizes[2][1] <= bare


def test_restarted_site_is_sent_weights_in_same_round(tmp_path):
    def meddle(post: PostOffice, request: Request) -> bool:
        if training(request, "site-1", 1):
            post.held["site-1"] = post.held["site-1"] if "site-1" in restarted else HeldWeights()
            restarted.append("site-1")
        return False

    restarted: list[str] = []
    result, post = run(tmp_path / "killed", meddle)
    run(tmp_path / "whole")
    assert [entry["status"] for entry in result.records[1]["sites"].values()] == ["ok"] * 3
    assert len([request for request in post.requests if training(request, "site-1", 1)]) == 2
    assert model(tmp_path / "killed") == model(tmp_path / "whole")


def test_site_never_holding_weights_is_failure():
    def meddle(post: PostOffice, request: Request) -> bool:
        if request.site == "site-1":
            request.answered("site-1", NOT_HELD)
        return request.site == "site-1"

    transport, post = make(meddle)
    replies = transport.send_and_receive(Task.TRAIN, {site: message(site) for site in SITES})
    assert replies["site-1"] == Failure("site-1", NOT_HELD)
    assert [request.site for request in post.requests] == ["site-1", "site-2", "site-3", "site-1"]


class Backwards:
    """Keeps requests until all sites have theirs; the last then answers first."""

    def __init__(self) -> None:
        self.kept: list[Request] = []

    def __call__(self, post: PostOffice, request: Request) -> bool:
        self.kept.append(request)
        if len(self.kept) == len(SITES):
            for each in reversed(self.kept):
                each.answered(each.site, post.answer(each))
            self.kept = []
        return True


def test_replies_are_taken_in_order_of_sites(tmp_path):
    transport, _ = make(Backwards(), spool=tmp_path)
    order: list[str] = []
    replies = transport.send_and_receive(
        Task.TRAIN, {site: message(site) for site in SITES}, on_reply=lambda site, _: order.append(site)
    )
    traffic = transport.take_traffic()
    assert (list(replies), order) == (list(SITES), list(SITES))
    assert all(traffic[site].up for site in SITES)
    assert all(reply.tensors == {} for reply in replies.values()), "let go once they were taken in"


def test_fault_49_full_disk_of_waiting_answers_stops_run(monkeypatch):
    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    transport, _ = make()
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space left on device"):
        transport.send_and_receive(Task.TRAIN, {"site-1": message()})


def test_malformed_answers_and_unknown_sites_are_failures():
    def meddle(post: PostOffice, request: Request) -> bool:
        if request.site == "site-1":
            request.answered("site-1", b"\x80\x04cos\nsystem\n")
        if request.site == "site-2":
            request.answered("site-2", bytes(5000))
        if request.site == "site-4":  # in the terminal, and a line of the log
            request.answered("site-4", "\x1b]0;owned\n2026-01-01 00:00:00,000 - c - ERROR - refused: " + "x" * 3000)
        return request.site != "site-3"

    transport, _ = make(meddle, (*SITES, "site-4"))
    asked = {site: message(site) for site in (*SITES, "site-4", "site-9")}
    replies = transport.send_and_receive(Task.TRAIN, asked, max_bytes=lambda site: 4000)
    assert replies["site-9"] == Failure("site-9", "no such site in this federation")
    assert "safetensors" in replies["site-1"].reason  # type: ignore[union-attr]
    assert "5000 bytes" in replies["site-2"].reason  # type: ignore[union-attr]
    assert isinstance(replies["site-3"], Message)
    forged = replies["site-4"].reason  # type: ignore[union-attr]
    assert forged.startswith("\\x1b]0;owned\\n2026-01-01 00:00:00,000 - c - ERROR - refused: xxx")
    assert len(forged) == 2000


def test_fault_37_answer_inflating_beyond_limit_is_refused(tmp_path):
    def meddle(post: PostOffice, request: Request) -> bool:
        if training(request, "site-1", 0):
            masks = {"m": torch.zeros(64, 1024, 1024, dtype=torch.uint8)}
            bomb = to_bytes(Message(Kind.SOFT_MASKS, "site-1", 0, 2, n=1, tensors=masks))
            assert len(bomb) < 400_000
            request.answered("site-1", bomb)
        return training(request, "site-1", 0)

    result, _ = run(tmp_path, meddle)
    entry = result.records[0]["sites"]["site-1"]
    asked = 2 * sum(tensor.numel() * tensor.element_size() for tensor in weights().values()) + 1024**2
    assert entry["status"] == "skipped"
    assert f"expected at most {asked} bytes, found 67108864 bytes once inflated" in entry["reason"]


def test_sites_are_sent_rounds_to_keep(tmp_path):
    _, post = run(tmp_path, rounds=4)
    last = [request for request in post.requests if request.task == "train"][-1]
    assert (last.metadata["run"], last.metadata["keep"]) == ("ab", [1, 2])


def test_fault_52_torn_rounds_are_not_listed_to_keep(tmp_path):
    transport, post = make()
    for name in ("002", "010", "011.torn"):
        (tmp_path / "rounds" / name / "clients").mkdir(parents=True)
    transport.load_state(tmp_path / "rounds" / "010" / "clients")
    transport.send_and_receive(Task.TRAIN, {"site-1": message()})
    assert post.requests[-1].metadata["keep"] == [2, 10]


def test_waiting_message_names_sites_and_time_left():
    assert waiting("train", {"b", "a"}, 245.0) == "train: waiting for a, b (4 min left)"
    assert waiting("train", ["a"], 90.0) == "train: waiting for a (2 min left)"
    assert waiting("train", ["a"], 89.4) == "train: waiting for a (89 s left)"
    assert waiting("train", ["a"], None) == "train: waiting for a"


def test_waiting_for_site_is_logged(caplog):
    def meddle(post: PostOffice, request: Request) -> bool:
        threading.Timer(0.5, lambda: request.answered(request.site, post.answer(request))).start()
        return True

    transport, _ = make(meddle, notice=0.1)
    with caplog.at_level(logging.INFO, "samfed_monai"):
        transport.send_and_receive(Task.TRAIN, {"site-1": message()}, timeout=60)
    assert "train: waiting for site-1 (60 s left)" in caplog.text


def test_fault_42_straggler_is_skipped_and_not_awaited_again(tmp_path):
    late: list[Request] = []

    def meddle(post: PostOffice, request: Request) -> bool:
        if request.site == "site-3" and (request.round, request.task) == (0, "train"):
            late.append(request)
        return request.site == "site-3" and request.round < 2

    started = time.monotonic()
    result, post = run(tmp_path, meddle, rounds=3, timeout=1.0)
    assert time.monotonic() - started < 5, "one deadline, not one per exchange"
    reasons = [record["sites"]["site-3"]["reason"] for record in result.records]
    assert "no answer within 1 s" in reasons[0]
    assert "; not waited for" in reasons[1]
    assert reasons[2] is None, "it answered again, and took part"
    assert late[0] in post.cancelled


def test_fault_42_answers_during_slow_aggregation_are_counted():
    kept: list[Request] = []
    transport, post = make(lambda post, request: request.site != "site-1" and not kept.append(request))

    def slow(site: str, reply: Message) -> None:
        if site == "site-1":
            kept[0].answered("site-2", post.answer(kept[0]))
            time.sleep(0.3)

    replies = transport.send_and_receive(
        Task.TRAIN, {site: message(site) for site in SITES}, timeout=0.1, quorum=1, on_reply=slow
    )
    assert [isinstance(replies[site], Message) for site in SITES] == [True, True, False]


def test_fault_42_model_is_made_of_answering_sites_only(tmp_path):
    run(tmp_path / "two", sites=SITES[:2])
    run(tmp_path / "three", lambda post, request: request.site == "site-3", timeout=0.5)
    assert model(tmp_path / "two") == model(tmp_path / "three")


def test_missing_site_is_awaited_if_quorum_requires():
    def meddle(post: PostOffice, request: Request) -> bool:
        if request.site != "site-1" or request.round > 0:
            threading.Timer(0.6, lambda: request.answered(request.site, post.answer(request))).start()
        return True

    transport, _ = make(meddle, SITES[:2])
    first = transport.send_and_receive(Task.TRAIN, {s: message(s) for s in SITES[:2]}, quorum=1, timeout=1.0)
    assert isinstance(first["site-1"], Failure)
    again = {s: replace(message(s), round=1) for s in SITES[:2]}
    second = transport.send_and_receive(Task.TRAIN, again, quorum=2, timeout=10.0)
    assert not any(isinstance(reply, Failure) for reply in second.values())


def test_silent_site_is_not_awaited_when_quorum_is_zero():
    transport, post = make(lambda post, request: request.site == "site-2", SITES[:2], patience=30.0)
    transport.send_and_receive(Task.TRAIN, {site: message(site) for site in SITES[:2]}, quorum=1, timeout=0.5)
    replies = transport.send_and_receive(Task.EVALUATE, {"site-2": replace(message("site-2"), round=1)}, quorum=0)
    assert replies == {"site-2": Failure("site-2", "no answer within 0 s; not waited for after an earlier time-out")}
    assert [request.site for request in post.cancelled] == ["site-2", "site-2"]


def test_fault_43_late_and_repeated_answers_are_dropped(tmp_path, caplog):
    kept: dict[str, Request] = {}

    def meddle(post: PostOffice, request: Request) -> bool:
        if training(request, "site-2", 0):
            kept["site-2"] = request
        if training(request, "site-1", 1):  # what was asked in round 0 comes now, and now's answer comes twice
            kept["site-2"].answered("site-2", post.answer(kept["site-2"]))
            request.answered("site-1", post.answer(request))
            request.answered("site-1", post.answer(request))
        return False

    run(tmp_path / "clean")
    run(tmp_path / "faulty", meddle)
    assert "site-2: dropped a late answer" in caplog.text
    assert "site-1: dropped a second answer" in caplog.text
    assert model(tmp_path / "clean") == model(tmp_path / "faulty")


def test_faults_44_and_45_stale_answer_is_refused_after_restart(tmp_path):
    recorded: list[bytes] = []

    def record_and_stop(post: PostOffice, request: Request) -> bool:
        if training(request, "site-1", 0):
            recorded.append(post.answer(request))
        if training(request, "site-1", 1):
            post.stop = "FLARE ended the job"
        return False

    def replay(post: PostOffice, request: Request) -> bool:
        if training(request, "site-1", 1):
            request.answered("site-1", recorded[0])
        return training(request, "site-1", 1)

    with pytest.raises(Stopped, match="FLARE ended the job"):
        run(tmp_path / "run", record_and_stop)
    assert model(tmp_path / "run", 0)
    assert not (tmp_path / "run" / "rounds" / "001").exists()
    result, _ = run(tmp_path / "run", replay)
    assert "expected round 1, found round 0" in result.records[1]["sites"]["site-1"]["reason"]
    run(tmp_path / "without", lambda post, request: training(request, "site-1", 1), timeout=0.5)
    assert model(tmp_path / "run") == model(tmp_path / "without"), "the others make the model"


def test_fault_46_unknown_or_impersonating_client_is_refused(tmp_path, caplog):
    def meddle(post: PostOffice, request: Request) -> bool:
        if training(request, "site-1", 0):
            request.answered("site-9", to_bytes(replace(from_bytes(post.answer(request)), site="site-9")))
        if training(request, "site-2", 0):  # one site in another's name
            request.answered("site-2", to_bytes(replace(from_bytes(post.answer(request)), site="site-1")))
            return True
        return False

    result, _ = run(tmp_path, meddle)
    assert "dropped an answer from 'site-9', which received no request" in caplog.text
    assert "another site's name" in result.records[0]["sites"]["site-2"]["reason"]
    assert "site-9" not in result.records[0]["sites"]
