"""Renewed soft masks: exact numbers, the round from which they count, what stays at a site, what a kill leaves."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, safe_load, write_json
from samfed_monai.data import DataList, SoftMaskStore
from samfed_monai.federation import Plan, Site
from samfed_monai.federation.renewal import Renewal, SiteRenewal, masks_read, renewed_mask
from samfed_monai.federation.round_store import RoundStore
from samfed_monai.federation.site_teacher import SiteMasks
from samfed_monai.protocol import Kind, Message, MessageRefused, Task
from samfed_monai.results import validate_results
from samfed_monai.transforms.loading import LoadSoftMaskd, plain
from tests.federation.half_teacher import SHA256, install
from tests.federation.test_job import job
from tests.federation.wired import Homes
from tests.forking import fork_workers, start

ONCE = {"after": [1], "weight_of_student": 0.25, "views": 2}


@pytest.fixture
def knobs(monkeypatch) -> dict[str, Any]:
    return {"variant": "samfed", "rounds": 3, "adapter": install(monkeypatch.setattr)}


@pytest.fixture
def kept(monkeypatch) -> None:
    """Renewed masks outlive the run, to be looked at."""
    remove = SiteRenewal.remove
    monkeypatch.setattr(SiteRenewal, "remove", lambda self, below=0: remove(self, below))


def models(run: Path) -> list[str]:
    records = sorted(run.glob("rounds/*/round.json"))
    return [read_json(path)["files"]["global.safetensors"] for path in records]


def renewed(store: Path) -> list[Path]:
    """Folders of renewed masks in a site's store, by generation."""
    return sorted((path.parent for path in store.glob("*/origin.json")), key=lambda path: generation_of(path))


def generation_of(folder: Path) -> int:
    return read_json(folder / "origin.json")["generation"]


def test_a_renewed_mask_is_the_weighted_mean():
    sam, student = torch.tensor([0.0, 1.0, 0.8]), torch.tensor([1.0, 1.0, 0.4])
    torch.testing.assert_close(renewed_mask(sam, student, 0.25), torch.tensor([0.25, 1.0, 0.7]))
    assert torch.equal(renewed_mask(sam, student, 1.0), student)


def test_the_generation_of_a_round():
    recipe = Renewal.from_json({"after": [2, 5]}, 10)
    assert recipe == Renewal((2, 5), 0.5, 4)
    assert [recipe.generation(round) for round in (0, 1, 2, 4, 5, 9)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("content", [None, {}, {"after": []}, {"after": [], "weight_of_student": 0.5, "views": 4}])
def test_without_rounds_nothing_is_renewed(content):
    assert Renewal.from_json(content, 10) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"after": [10]},
            r"renewal#after: expected rising numbers of rounds below 10, .*, found \[10\]; for instance \[5\]; \[\] is",
        ),
        ({"after": [0]}, "renewal#after#0: expected at least 1, found 0"),
        ({"after": [5, 3]}, r"renewal#after: .* found \[5, 3\]"),
        ({"after": [3, 3]}, r"renewal#after: .* found \[3, 3\]"),
        ({"after": 5}, "renewal#after: expected a list, found 5"),
        ({"after": [True]}, "renewal#after#0: expected a whole number, found True"),
        ({"after": [5], "weight_of_student": 0}, "renewal#weight_of_student: expected above 0, found 0"),
        ({"after": [5], "weight_of_student": 1.5}, r"renewal#weight_of_student: .* found 1.5"),
        ({"after": [], "views": 3}, r"renewal#views: expected one of \[1, 2, 4, 8\], found 3"),
        ({"after": [5], "veiws": 4}, "renewal#veiws: expected one of .*, found an unknown key; did you mean 'views'"),
    ],
)
def test_a_knob_that_says_something_else_is_refused(content, message):
    with pytest.raises(Refused, match=message):
        Renewal.from_json(content, 10)


def test_a_run_learns_from_renewed_masks_from_that_round_on(small_federation, tmp_path, knobs, caplog, kept):
    with caplog.at_level(logging.INFO):
        results = job(small_federation, tmp_path / "run", renewal=ONCE, **knobs).run()
    told = "site-1: soft masks of generation 1 from SAM and the model after 1 rounds: 4 made, 0 there"
    assert caplog.text.count(told) == 1
    assert validate_results(results) == []
    assert results["teacher"]["renewed_after"] == [1]
    assert read_json(tmp_path / "run" / "run.json")["config"]["renewal"] == ONCE
    without = job(small_federation, tmp_path / "plain", cache_dir=tmp_path / "run" / "cache", **knobs).run()
    assert "renewed_after" not in without["teacher"]
    assert "renewal" not in read_json(tmp_path / "plain" / "run.json")["config"]
    changed, same = models(tmp_path / "run"), models(tmp_path / "plain")
    assert changed[0] == same[0], "no round before it has another bit"
    assert changed[1] != same[1], "the round after it learns from other masks"

    store = tmp_path / "run" / "cache" / "soft_masks" / "site-1"
    (folder,) = renewed(store)
    about = read_json(folder / "origin.json")
    assert (about["teacher"], about["generation"], about["round"], about["views"]) == (SHA256, 1, 1, 2)
    assert folder.stat().st_mode & 0o077 == 0
    masks, images = SoftMaskStore(store, teacher_sha256=folder.name), DataList.load(small_federation / "list.json")
    teacher = torch.zeros(1, 32, 32)
    teacher[..., :16] = 1
    for item in images.sites["site-1"].unlabelled:
        mask = masks.get(item.sha256)
        assert mask.shape == (1, 32, 32), "the size of the network's input"
        assert mask[..., :15].min() >= 0.75 - 1 / 255, "a quarter is the model's, three are SAM's"
        assert mask[..., 17:].max() <= 0.25 + 1 / 255
        assert mask[..., 17:].max() > 0, "and the model has its say"


def sites(knobs: dict[str, Any]) -> dict[str, Any]:
    return {**knobs, "sites": {"site-1": {}, "site-2": {}}}


def test_wherever_the_sites_are_the_models_are_the_same_bits_and_no_message_is_longer(
    small_federation, tmp_path, knobs, kept, monkeypatch
):
    fork_workers(monkeypatch)
    monkeypatch.setattr("samfed_monai.federation.process_transport.PROCESS", "tests.federation.half_teacher")
    ours = {**knobs, "renewal": {"after": [1, 2], "views": 2}}
    together = job(small_federation, tmp_path / "together", **ours).run()
    beside = job(small_federation, tmp_path / "beside", workers=2, **ours).run()
    homes = Homes(small_federation, tmp_path / "homes")
    apart = job(small_federation, tmp_path / "apart", datalist=homes.lists["server"], **sites(ours)).run(homes)
    assert models(tmp_path / "apart") == models(tmp_path / "beside") == models(tmp_path / "together")
    here = renewed(tmp_path / "homes" / "site-1" / "cache" / "soft_masks" / "site-1")
    assert [generation_of(folder) for folder in here] == [1, 2]
    assert not (tmp_path / "apart" / "cache" / "soft_masks").exists(), "private masks stay at their sites"
    homes = Homes(small_federation, tmp_path / "plain-homes")
    without = job(small_federation, tmp_path / "plain", datalist=homes.lists["server"], **sites(knobs)).run(homes)
    rounds = [run["traffic"]["up_bytes_per_round"] for run in (apart, without)]
    assert abs(rounds[0] - rounds[1]) < 64, "numbers of other lengths in JSON"
    for run in (beside, apart):
        assert together["models"]["last"]["sites"] == run["models"]["last"]["sites"]


def trained(node: Any, round: int, weights: dict[str, torch.Tensor]) -> Message:
    message = Message(Kind.WEIGHTS, node.site, round, 3, tensors={name: t.clone() for name, t in weights.items()})
    return node.answer(Task.TRAIN, message)


def copied(state: Any) -> dict[str, torch.Tensor]:
    """A state that further training leaves alone."""
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.fixture
def finished(small_federation, tmp_path, knobs, kept) -> SimpleNamespace:
    """A run of three rounds whose masks were renewed after the first one, and its sites."""
    homes = Homes(small_federation, tmp_path / "homes")
    ours = {**sites(knobs), "renewal": ONCE}
    job(small_federation, tmp_path / "run", datalist=homes.lists["server"], **ours).run(homes)
    weights = safe_load(tmp_path / "run" / "rounds" / "002" / "global.safetensors")
    node = homes.nodes["site-1"]
    return SimpleNamespace(homes=homes, node=node, weights=weights, state=copied(node.state_dict()))


def test_a_site_that_is_made_again_goes_on_with_the_masks_of_its_state(finished):
    again = finished.homes.node("site-1", finished.node.plan)
    again.load_state_dict(copied(finished.state))
    answer = trained(again, 2, finished.weights)
    finished.node.load_state_dict(copied(finished.state))
    same = trained(finished.node, 2, finished.weights)
    assert all(torch.equal(answer.tensors[name], same.tensors[name]) for name in same.tensors)
    assert len(renewed(again.masks().folder)) == 1, "none was made of another model"
    assert again.state_dict()["renewal.masks"].numpy().tobytes().hex() == again.renewal.sha256


def test_a_site_that_was_away_renews_with_the_model_that_it_is_sent(finished):
    late = finished.homes.node("site-1", finished.node.plan)
    late.load_state_dict({name: t for name, t in copied(finished.state).items() if name != "renewal.masks"})
    assert late.renewal.sha256 is None
    trained(late, 2, finished.weights)
    masks, record = late.masks(), late.masks().records("unlabelled")[0]
    folders = {read_json(folder / "origin.json")["round"]: folder for folder in renewed(masks.folder)}
    assert sorted(folders) == [1, 2]

    client = late.client
    image = client.eval_workflow.parser.get_parsed_content("validate#preprocessing")(dict(record))["image"]
    network = client.trainer.network
    network.load_state_dict(finished.weights, strict=False)
    with torch.no_grad():
        both = network.eval()(torch.stack([plain(image), plain(image).flip(-1)])).sigmoid()
    student = (both[0] + both[1].flip(-1)) / 2
    sam = torch.zeros(1, 16, 16)
    sam[..., :8] = 1
    expected = 0.75 * torch.nn.functional.interpolate(sam[None], (32, 32), mode="bilinear")[0] + 0.25 * student
    mask = SoftMaskStore(masks.folder, teacher_sha256=folders[2].name).get(record["image_sha256"])
    torch.testing.assert_close(mask, expected, atol=1 / 510 + 1e-6, rtol=0)  # 8 bits


def test_masks_that_are_gone_are_refused_as_their_model_is_gone_too(finished):
    again = finished.homes.node("site-1", finished.node.plan)
    again.load_state_dict(copied(finished.state))
    (folder,) = renewed(again.masks().folder)
    next(iter(folder.glob("*/*.mask"))).unlink()
    with pytest.raises(MessageRefused, match=r"renewed soft masks: expected a mask of .*found 1 missing; put this"):
        trained(again, 2, finished.weights)
    shutil.rmtree(folder)
    with pytest.raises(MessageRefused, match="found none; put this site's cache_dir back, or start a run in another"):
        trained(again, 2, finished.weights)


def test_masks_made_of_another_teacher_are_refused(finished):
    again = finished.homes.node("site-1", finished.node.plan)
    again.load_state_dict(copied(finished.state))
    (folder,) = renewed(again.masks().folder)
    write_json(folder / "origin.json", {**read_json(folder / "origin.json"), "teacher": "e" * 64})
    with pytest.raises(
        MessageRefused, match=r"this run's teacher, dddddddddddd…, found .* generation 1, made of teacher ee"
    ):
        trained(again, 2, finished.weights)


def test_a_site_that_goes_back_behind_its_masks_learns_from_the_teachers_own_again(finished):
    again = finished.homes.node("site-1", finished.node.plan)
    again.load_state_dict(copied(finished.state))
    asked = []
    again.renewal._renew = lambda *given: asked.append(given)
    trained(again, 0, finished.weights)
    assert asked == []
    assert "renewal.masks" not in again.state_dict()
    (reader,) = masks_read(again.client)[1]
    assert reader.store.teacher_sha256 == SHA256

    del again.renewal._renew
    again.renewal.recipe = Renewal((1, 1, 2, 2), 0.25, 2)
    store = again.masks().folder
    assert [generation_of(folder) for folder in renewed(store)] == [1]
    trained(again, 2, finished.weights)
    assert [generation_of(folder) for folder in renewed(store)] == [4], "three generations are kept: from the second on"


def test_a_run_keeps_three_generations_and_none_when_it_is_over(tmp_path):
    def store(run: str, generation: int) -> SoftMaskStore:
        made = SoftMaskStore(tmp_path / "soft_masks" / "site-1", teacher_sha256=f"{run}{generation}" * 32)
        made.write_origin({"run": str(tmp_path / run), "generation": generation})
        made.put("0" * 64, torch.zeros(1, 1, 1))
        return made

    mine, other = [store("a", generation) for generation in range(1, 6)], store("b", 1)
    own = SoftMaskStore(other.folder, teacher_sha256=SHA256)
    own.put("0" * 64, torch.zeros(1, 1, 1))
    masks = SiteMasks("site-1", tmp_path, DataList("", []), tmp_path)
    teacher: Any = SimpleNamespace(sha256=SHA256)
    site = SiteRenewal(Renewal((1,)), run=tmp_path / "a", teacher=teacher, masks=masks)
    site.sha256 = mine[0].teacher_sha256  # the site was away in between
    site.remove(below=3)
    assert [len(each) for each in mine] == [1, 0, 1, 1, 1]
    site.remove()
    assert [len(each) for each in (*mine, other, own)] == [0, 0, 0, 0, 0, 1, 1]
    assert sorted(path.name for path in other.folder.iterdir()) == sorted([other.teacher_sha256, SHA256])


def test_a_variant_without_a_teacher_renews_nothing_and_says_so(small_federation, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run = job(small_federation, tmp_path / "run", renewal=ONCE).run()
    assert "renewal: none, as the variant no_sam has no teacher" in caplog.text
    without = job(small_federation, tmp_path / "plain", cache_dir=tmp_path / "run" / "cache").run()
    assert run["hashes"]["model_last"] == without["hashes"]["model_last"]
    assert read_json(tmp_path / "run/run.json")["config_hash"] == read_json(tmp_path / "plain/run.json")["config_hash"]


def without_masks_for_anybody() -> Any:
    """A dataset whose reader reads nothing, as ``guides#sam`` is disabled."""
    return SimpleNamespace(transform=Compose([LoadSoftMaskd("store", "d" * 64, masks_for=None)]))


@pytest.mark.parametrize("content", [{}, {"unlabelled": {"dataset": without_masks_for_anybody()}}])
def test_images_without_soft_masks_are_refused(content):
    client: Any = SimpleNamespace(train_workflow=SimpleNamespace(parser=ConfigParser(content)))
    with pytest.raises(MessageRefused, match=r"unlabelled#dataset: expected LoadSoftMaskd, .*, found images"):
        masks_read(client)


def test_the_plan_carries_it():
    plan = Plan("samfed_skin", 3, renewal=ONCE)
    assert Plan.from_json(plan.to_json()).renewal == ONCE
    with pytest.raises(Refused, match=r"plan -> renewal: expected an object or null, found 5 \(int\)"):
        Plan("samfed_skin", 3, renewal=5)


def run_until(federation: Path, run: Path, kill_at: str) -> None:
    """A run that is killed at a point, in a process of its own; without one, ``made`` holds how many masks it made."""
    put, write, answer, made = SoftMaskStore.put, RoundStore.write, Site.answer, []

    def now(point: str) -> None:
        if point == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def put_or_die(self: SoftMaskStore, image: str, mask: torch.Tensor) -> None:
        if self.origin() is not None:
            made.append(image)
            now(f"mask {len(made)}")
        put(self, image, mask)

    def write_or_die(self: RoundStore, round: int, *given: Any, **more: Any) -> Any:
        now(f"end of round {round}")
        return write(self, round, *given, **more)

    def answer_or_die(self: Site, task: Task, message: Message) -> Message:
        now(f"{Task(task).value} of {self.site} in round {message.round}")
        return answer(self, task, message)

    for owner, name, replaced in (
        (SoftMaskStore, "put", put_or_die),
        (RoundStore, "write", write_or_die),
        (Site, "answer", answer_or_die),
    ):
        setattr(owner, name, replaced)
    job(federation, run, variant="samfed", rounds=3, renewal=ONCE, adapter=install()).run()
    (run / "made").write_text(str(len(made)))


@pytest.mark.slow
def test_fault_48_a_run_killed_in_a_renewal_and_after_it_ends_in_the_same_bits(small_federation, tmp_path):
    stores = tmp_path / "killed" / "cache" / "soft_masks"

    def run(name: str, kill_at: str = "") -> int | None:
        process = start(run_until, small_federation, tmp_path / name, kill_at, errors=tmp_path / "errors")
        process.join()
        return process.exitcode

    def told() -> str:
        return (tmp_path / "errors").read_text()

    def masks() -> list[int]:
        """Renewed masks by site."""
        return [
            len(list(folder.glob("*/*.mask"))) for site in ("site-1", "site-2") for folder in renewed(stores / site)
        ]

    assert run("whole") == 0, told()
    assert (tmp_path / "whole" / "made").read_text() == "8"
    shutil.copytree(tmp_path / "whole" / "cache" / "warm_start", tmp_path / "killed" / "cache" / "warm_start")
    for kill_at, rounds, there in (
        ("mask 3", 1, [2]),
        ("mask 5", 1, [4, 2]),
        ("end of round 1", 1, [4, 4]),
        ("train of site-2 in round 2", 2, [4, 4]),
    ):
        assert run("killed", kill_at) == -signal.SIGKILL, told()
        assert (len(models(tmp_path / "killed")), masks()) == (rounds, there), kill_at
    assert run("killed") == 0, told()
    assert (tmp_path / "killed" / "made").read_text() == "0"
    assert models(tmp_path / "killed") == models(tmp_path / "whole")
    assert masks() == [], "nobody goes on from them any more"
