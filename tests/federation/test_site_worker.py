"""Sites in a process of their own: their states go from round to round, and messages are read with care."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest
import torch

from samfed_monai.federation.site_worker import SiteState, SiteWorker, remove_old_states
from samfed_monai.protocol.message import Kind, Message, MessageRefused, from_bytes, to_bytes
from samfed_monai.protocol.transport import Task


class Counter:
    """Holds one number."""

    def __init__(self) -> None:
        self.value = torch.zeros(1)

    def state_dict(self) -> dict:
        return {"value": self.value.clone()}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


def trained(state: SiteState, round: int, keep: tuple[int, ...] = ()) -> float:
    state.restore(Task.TRAIN, round)
    state.site.value = state.site.value + 1
    state.store(Task.TRAIN, round, keep)
    return state.site.value.item()


def test_fresh_process_resumes_from_newest_earlier_state(tmp_path):
    first = SiteState(tmp_path, Counter())
    assert [trained(first, number) for number in range(3)] == [1, 2, 3]
    assert (tmp_path / "002.safetensors").stat().st_mode & 0o777 == 0o600, "private to the site"
    again = SiteState(tmp_path, Counter())
    again.store(Task.PREPARE, 0)  # a run that goes on is prepared again, and keeps its states
    assert trained(again, 2) == 3, "round 2 was trained, and is trained again"
    assert trained(SiteState(tmp_path, Counter()), 7) == 4, "rounds that this site missed are stepped over"


def test_failed_round_is_undone_before_next_round(tmp_path):
    state = SiteState(tmp_path, Counter())
    trained(state, 0)
    state.restore(Task.TRAIN, 1)
    state.site.value += 100
    state.failed()
    assert trained(state, 2) == 2


def test_evaluation_uses_earlier_state_and_training_continues(tmp_path):
    state = SiteState(tmp_path, Counter())
    for number in range(3):
        trained(state, number, keep=(0,))
    state.restore(Task.EVALUATE, 0)
    assert state.site.value.item() == 1
    assert trained(state, 3, keep=(0, 2)) == 4
    assert sorted(path.name for path in tmp_path.glob("*")) == [f"00{n}.safetensors" for n in (0, 2, 3)]


def test_missed_round_is_evaluated_with_previous_state(tmp_path):
    state = SiteState(tmp_path, Counter())
    for number in (0, 1, 2, 4, 5, 6):
        trained(state, number, keep=(3,))
    state.restore(Task.EVALUATE, 3)
    assert state.site.value.item() == 3, "that of round 2"
    assert sorted(path.name for path in tmp_path.glob("*")) == [f"00{n}.safetensors" for n in (2, 5, 6)]


class Node(Counter):
    """Counts its rounds."""

    def answer(self, task, message):
        self.value = self.value + (task == Task.TRAIN)
        return message


def test_teacher_evaluation_keeps_state(tmp_path):
    def started() -> tuple[Node, SiteWorker]:
        node = Node()
        return node, SiteWorker(lambda _: node, lambda _: tmp_path)

    def ask(worker: SiteWorker, task: Task, **extra: str) -> None:
        worker.answer("site-1", task, to_bytes(Message(Kind.METRICS, "site-1", 0, 3, extra=extra)))

    _, first = started()
    ask(first, Task.PREPARE)
    ask(first, Task.TRAIN)
    node, again = started()  # the start was given up, and left a state of round 0
    ask(again, Task.EVALUATE, split="test", model="teacher")
    ask(again, Task.PREPARE)
    ask(again, Task.TRAIN)
    assert node.value.item() == 1


def test_fault_79_inflated_mask_size_is_limited_by_public_set(tmp_path):
    def answered(pixels: int, **taken) -> int:
        reply = Message(Kind.METRICS, "site-1", 0, 1, n=7)
        node = SimpleNamespace(state_dict=dict, answer=lambda task, message: reply, **taken)
        masks = {"masks": torch.zeros(pixels, dtype=torch.uint8)}
        payload = to_bytes(Message(Kind.SOFT_MASKS, "site-1", 0, 1, tensors=masks))
        return from_bytes(SiteWorker(lambda _: node, lambda _: tmp_path).answer("site-1", Task.TRAIN, payload)).n

    takes = {"max_mask_pixels": lambda: 48}
    assert answered(48, **takes) == 7
    for taken, most, pixels in ((takes, 48, 49), ({}, 0, 1)):
        with pytest.raises(MessageRefused, match=f"at most {most} bytes, found {pixels} bytes once inflated"):
            answered(pixels, **taken)


def test_states_of_old_runs_are_removed_and_reported(tmp_path):
    for run, days in {"first": 5, "second": 4, "third": 0.5, "fourth": 0.4, "fifth": 0.3}.items():
        trained(SiteState(tmp_path / run / "site-1", Counter()), 0)
        (tmp_path / run / "site-1" / "worker.log").touch()
        os.utime(tmp_path / run / "site-1" / "000.safetensors", (time.time() - days * 86400,) * 2)
    for run, left in {"first": ["fifth", "first", "fourth", "third"], "sixth": ["fifth", "fourth", "third"]}.items():
        remove_old_states(tmp_path, run)  # third was in use a moment ago
        assert sorted(path.parent.parent.name for path in tmp_path.glob("*/*/*.safetensors")) == left
    assert (tmp_path / "first" / "site-1" / "worker.log").is_file()
    again = SiteState(tmp_path / "first" / "site-1", Counter())
    for task, round in ((Task.TRAIN, 1), (Task.EVALUATE, 0)):
        with pytest.raises(MessageRefused, match=r"none \(a site keeps states of its newest 3 runs\).*another name"):
            again.restore(task, round)
    assert trained(again, 0) == 1, "a run that begins anew needs none"
    assert trained(again, 1) == 2
