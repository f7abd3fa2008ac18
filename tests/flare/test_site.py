"""A site's part of a run: the plan that came with the job is data, and its states go from round to round."""

from __future__ import annotations

import os
from multiprocessing.connection import Pipe

import pytest
import torch

from samfed_monai.config.bundles import packaged_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import write_json
from samfed_monai.federation.plan import Plan
from samfed_monai.flare.site import SiteState, federated_site, places_of, read_plan
from samfed_monai.flare.site_file import forget_old_runs, read_site_file
from samfed_monai.flare.worker import _Worker, make_federated_site, serve
from samfed_monai.privacy.rules import PrivacyFloor
from samfed_monai.protocol.message import Kind, Message, MessageRefused, to_bytes
from samfed_monai.protocol.transport import Task
from tests.flare.test_site_file import site_file

PLAN = {"bundle": "samfed_skin", "rounds": 2, "sites": {"site-1": {}, "site-2": {}}}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"train": {"learning_rate": "$__import__('os')"}}, "learning_rate"),
        ({"train": {"loss": {"_target_": "os.system"}}}, r"os\.system"),
        ({"sites": {"site-1": {"loss#_target_": "subprocess.run"}}}, r"subprocess\.run"),
        ({"teacher": {"checkpoint": "/etc/passwd"}}, "checkpoint"),
        ({"bundle": "../../tmp/evil"}, "a bundle's name, not a path"),
        ({"round": 1}, "unknown key"),
    ],
)
def test_fault_31_a_plan_that_could_become_code_is_refused_at_the_site(tmp_path, change, match):
    write_json(tmp_path / "plan.json", {**PLAN, **change})
    with pytest.raises(Refused, match=match):
        read_plan(tmp_path / "plan.json")


def test_a_plan_that_says_where_to_write_or_what_to_read_is_refused_at_the_site(tmp_path):
    table = {"_target_": "samfed_monai.handlers.TermTable", "path": "/home/v/.bashrc"}
    write_json(tmp_path / "plan.json", {**PLAN, "train": {"after#logger": table, "sharing#plain#split": "test"}})
    with pytest.raises(Refused) as refused:
        read_plan(tmp_path / "plan.json")
    assert [problem.where for problem in refused.value.problems] == [
        "plan -> after#logger#path",
        "plan -> sharing#plain#split",
    ]


def test_a_folder_that_came_with_the_job_does_not_stand_for_the_installed_bundle(tmp_path, monkeypatch):
    write_json(tmp_path / "samfed_skin" / "configs" / "metadata.json", {})
    write_json(tmp_path / "mine" / "configs" / "metadata.json", {})
    monkeypatch.chdir(tmp_path)
    plan = Plan.from_json(PLAN)
    files = read_site_file(site_file(tmp_path))
    assert places_of(files, plan, tmp_path).bundle_root == packaged_bundle("samfed_skin")
    own = read_site_file(site_file(tmp_path, bundle_root=str(tmp_path / "mine")))
    assert places_of(own, plan, tmp_path).bundle_root == tmp_path / "mine"
    with pytest.raises(Refused, match=r"bundle: expected one of .*, found 'mine'"):
        places_of(files, Plan.from_json({**PLAN, "bundle": "mine"}), tmp_path)


def test_a_site_file_may_ask_for_more_privacy_than_the_plan(tmp_path, monkeypatch):
    write_json(tmp_path / "plan.json", PLAN)
    files = read_site_file(site_file(tmp_path, least_images=8, epsilon=2.5))
    asked = {}
    monkeypatch.setattr("samfed_monai.federation.site.Site", lambda *_, floor: asked.update(floor=floor))
    settings = {"site": "site-1", "plan": str(tmp_path / "plan.json"), "run_folder": str(tmp_path)}
    federated_site(settings, files)
    assert asked == {"floor": PrivacyFloor(8, 2.5)}
    federated_site(settings, read_site_file(site_file(tmp_path)))
    assert asked == {"floor": PrivacyFloor()}


def test_a_plain_plan_is_read(tmp_path):
    write_json(tmp_path / "plan.json", {**PLAN, "train": {"image_size": 64}})
    assert read_plan(tmp_path / "plan.json").train == {"image_size": 64}


class Counter:
    """Holds one number."""

    def __init__(self) -> None:
        self.value = torch.zeros(1)

    def state_dict(self) -> dict:
        return {"value": self.value.clone()}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


def trained(state: SiteState, round: int, keep: tuple[int, ...] = ()) -> float:
    state.before(Task.TRAIN, round)
    state.holder.value = state.holder.value + 1
    state.after(Task.TRAIN, round, keep)
    return state.holder.value.item()


def test_a_fresh_process_goes_on_from_the_newest_state_before_the_round(tmp_path):
    first = SiteState(tmp_path, Counter())
    assert [trained(first, number) for number in range(3)] == [1, 2, 3]
    again = SiteState(tmp_path, Counter())
    assert trained(again, 2) == 3, "round 2 was trained, and is trained again"
    assert trained(SiteState(tmp_path, Counter()), 7) == 4, "rounds that this site missed are stepped over"


def test_a_run_that_goes_on_is_prepared_again_and_keeps_its_states(tmp_path):
    first = SiteState(tmp_path, Counter())
    for number in range(3):
        trained(first, number)
    again = SiteState(tmp_path, Counter())
    again.after(Task.PREPARE, 0)
    assert trained(again, 3) == 4


def test_a_failed_round_is_undone_before_the_next(tmp_path):
    state = SiteState(tmp_path, Counter())
    trained(state, 0)
    state.before(Task.TRAIN, 1)
    state.holder.value += 100
    state.failed()
    assert trained(state, 2) == 2


def test_evaluation_of_an_earlier_round_looks_at_its_state_and_training_goes_on(tmp_path):
    state = SiteState(tmp_path, Counter())
    for number in range(3):
        trained(state, number, keep=(0,))
    state.before(Task.EVALUATE, 0)
    assert state.holder.value.item() == 1
    assert trained(state, 3, keep=(0, 2)) == 4
    assert sorted(path.name for path in tmp_path.glob("*")) == [f"00{n}.safetensors" for n in (0, 2, 3)]


def test_a_round_that_the_site_missed_is_stood_for_by_the_one_before_it(tmp_path):
    state = SiteState(tmp_path, Counter())
    for number in (0, 1, 2, 4, 5, 6):
        trained(state, number, keep=(3,))
    state.before(Task.EVALUATE, 3)
    assert state.holder.value.item() == 3, "that of round 2"
    assert sorted(path.name for path in tmp_path.glob("*")) == [f"00{n}.safetensors" for n in (2, 5, 6)]


def test_the_teachers_exam_does_not_move_the_state(tmp_path):
    """It comes before round 0, where a start that was given up may have left a state of round 0."""

    class Node(Counter):
        def answer(self, task, message):
            if task == Task.TRAIN:
                self.value = self.value + 1
            return message

    def ask(worker, task, round, **extra):
        message = Message(Kind.METRICS, "site-1", round, 3, extra=extra)
        return worker.answer({"task": task.value, "keep": []}, to_bytes(message))

    def starts() -> _Worker:
        return _Worker({"state": str(tmp_path)}, None, lambda *_: Node())

    first = starts()
    ask(first, Task.PREPARE, 0)
    ask(first, Task.TRAIN, 0)
    again = starts()
    ask(again, Task.EVALUATE, 0, split="test", model="teacher")
    ask(again, Task.PREPARE, 0)
    ask(again, Task.TRAIN, 0)
    assert again._site.value.item() == 1


def test_fault_79_masks_of_the_server_are_inflated_up_to_the_sites_public_set(tmp_path):
    class TakesNone:
        def state_dict(self):
            return {}

        def answer(self, task, message):
            return Message(Kind.METRICS, "site-1", 0, 1)

    class Takes48(TakesNone):
        def masks_taken(self):
            return 48

    def answered(node, pixels: int) -> str:
        masks = {"masks": torch.zeros(pixels, dtype=torch.uint8)}
        payload = to_bytes(Message(Kind.SOFT_MASKS, "site-1", 0, 1, tensors=masks))
        worker = _Worker({"state": str(tmp_path)}, None, lambda *_: node)  # type: ignore[arg-type]
        return worker.answer({"task": "train"}, payload)[1]

    assert answered(Takes48(), 48) == ""
    assert "expected at most 48 bytes, found 49 bytes once inflated" in answered(Takes48(), 49)
    assert "expected at most 0 bytes, found 1 bytes once inflated" in answered(TakesNone(), 1)


def test_states_are_private_to_the_site(tmp_path):
    trained(SiteState(tmp_path, Counter()), 0)
    assert (tmp_path / "000.safetensors").stat().st_mode & 0o777 == 0o600


def test_states_of_old_runs_are_removed_and_whoever_asks_for_them_is_told(tmp_path):
    for day, run in enumerate(("first", "second", "third", "fourth"), 1):
        trained(SiteState(tmp_path / run / "site-1", Counter()), 0)
        (tmp_path / run / "site-1" / "worker.log").touch()
        os.utime(tmp_path / run / "site-1" / "000.safetensors", (day * 86400, day * 86400))
    assert forget_old_runs(tmp_path, "first", kept=2, now=3.5 * 86400) == ["second"], "third was in use a moment ago"
    assert forget_old_runs(tmp_path, "fifth", kept=2, now=10 * 86400) == ["third", "first"]
    assert [path.parent.parent.name for path in tmp_path.glob("*/*/*.safetensors")] == ["fourth"]
    assert (tmp_path / "first" / "site-1" / "worker.log").is_file()
    again = SiteState(tmp_path / "first" / "site-1", Counter())
    for task, round in ((Task.TRAIN, 1), (Task.EVALUATE, 0)):
        with pytest.raises(MessageRefused, match=r"removed: a site keeps those of the newest 3 runs.*another name"):
            again.before(task, round)
    assert trained(again, 0) == 1, "a run that begins anew needs none"
    assert trained(again, 1) == 2


def test_the_process_that_trains_is_set_up_as_one_of_our_own(monkeypatch):
    set_up = []
    monkeypatch.setattr("samfed_monai.flare.worker.set_up_process", lambda: set_up.append(True))
    ours, theirs = Pipe()
    monkeypatch.setattr("sys.argv", ["worker", str(os.dup(theirs.fileno()))])
    theirs.close()
    ours.close()
    with pytest.raises(EOFError):
        serve(make_federated_site)
    assert set_up == [True]
