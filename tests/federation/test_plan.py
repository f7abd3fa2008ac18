"""What decides a run, as JSON, and where things lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.federation import FederatedJob, Places, Plan
from samfed_monai.federation.plan import split_places

CONTENT = {
    "bundle": "samfed_skin",
    "rounds": 3,
    "variant": "heterogeneous",
    "train": {"image_size": 64, "terms#sam_kd#weight": 0.5},
    "sites": {"site-1": {"network": "basic_unet"}, "site-2": {}},
    "unseen": ["site-3"],
    "timeout": 60,
    "privacy": {"least_images": 3},
}


def test_a_plan_comes_back_from_json_as_it_was():
    plan = Plan.from_json(json.loads(json.dumps(CONTENT)))
    assert plan.unseen == ("site-3",)
    assert plan.to_json() | CONTENT == plan.to_json()
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(json.dumps(plan.to_json())) == plan.to_json()


@pytest.mark.parametrize(
    "changed",
    [{"rounds": 4}, {"seed": 1}, {"train": {"image_size": 32}}, {"unseen": []}, {"privacy": None}, {"quorum": 2}],
)
def test_everything_in_it_is_in_its_hash(changed):
    assert Plan.from_json(CONTENT | changed).hash != Plan.from_json(CONTENT).hash


def test_whom_the_server_waits_for_does_not_decide_an_update():
    plan = Plan.from_json(CONTENT)
    for changed in ({"timeout": 90}, {"quorum": 2}, {"update_guard": {"limit": 3.0}}):
        assert Plan.from_json(CONTENT | changed).updates_hash == plan.updates_hash
    assert Plan.from_json(CONTENT | {"seed": 1}).updates_hash != plan.updates_hash


def test_every_mistake_is_told_at_once():
    wrong = {"bundle": "b", "rounds": "3", "quorum": True, "train": {"x": {1, 2}}, "sites": {"a": "basic_unet"}}
    with pytest.raises(Refused) as caught:
        Plan.from_json(wrong)
    found = [problem.where for problem in caught.value.problems]
    assert found == ["plan -> rounds", "plan -> sites#a", "plan -> quorum"]
    assert "expected a whole number, found '3' (str)" in str(caught.value)
    with pytest.raises(Refused, match="plan -> train: expected plain values, found something that JSON cannot hold"):
        Plan("b", 1, train={"x": {1, 2}})
    with pytest.raises(
        Refused, match=r"rounds: expected at least 1, found 0\n.*seed: .*0, found -1\n.*steps: .*found -5"
    ):
        Plan("b", 0, seed=-1, warm_start_steps=-5)
    for never in (0, -3.0):
        with pytest.raises(Refused, match="plan -> timeout: expected above 0, found"):
            Plan("b", 1, timeout=never)
    with pytest.raises(Refused, match=r"plan -> rouns: .*did you mean 'rounds'\?"):
        Plan.from_json({"bundle": "b", "rouns": 3})
    with pytest.raises(Refused, match="plan -> bundle: expected one, found no such key"):
        Plan.from_json({"rounds": 3})


def test_a_fingerprint_is_of_the_bundles_content_and_not_of_its_places(tmp_path):
    plan, root = Plan("mine", 1, variant="no_sam"), tmp_path / "elsewhere"
    configs = {
        path.name: json.loads(path.read_text()) for path in (find_bundle("samfed_skin") / "configs").glob("*.json")
    }
    (root / "configs").mkdir(parents=True)

    def written(**changes) -> str:
        for name, content in configs.items():
            content = {**content, **changes} if name == "train.json" else content
            (root / "configs" / name).write_text(json.dumps(content))
        return plan.fingerprint(root)

    ours = plan.fingerprint(find_bundle("samfed_skin"))
    assert written() == ours
    assert written(data_root="/elsewhere", _note="ours") == ours
    assert written(learning_rate=0.1) != ours


def test_places_are_parted_from_what_decides():
    decides, places = split_places(
        {"image_size": 64, "device": "cpu", "terms": {"a": {"weight": 1}}, "data_root": "/x"}
    )
    assert decides == {"image_size": 64, "terms#a#weight": 1}
    assert places == {"device": "cpu", "data_root": "/x"}


def test_a_job_says_where_things_lie_beside_its_plan(tmp_path):
    job = FederatedJob(
        bundle_root=find_bundle("samfed_skin"),
        datalist=tmp_path / "list.json",
        data_root=tmp_path,
        output_dir=tmp_path / "run",
        rounds=2,
        train={"image_size": 32, "device": "cpu"},
        teacher={"views": 2, "checkpoint": "/weights/sam.pt"},
        sites={"site-2": {"network": "basic_unet", "data_root": "/other"}, "site-1": {}},
        privacy={"least_images": 1},
    )
    assert job.plan.warm_start_steps == 0, "how many there are is the bundle's to say"
    text = json.dumps(job.plan.to_json())
    assert "/" not in text.replace("basic_unet", ""), "no path is in the plan"
    assert job.plan.sites == {"site-2": {"network": "basic_unet"}, "site-1": {}}
    assert (job.plan.bundle, job.plan.privacy) == ("samfed_skin", {"least_images": 1})
    assert job.places.sites == {"site-2": {"data_root": "/other"}}
    assert job.places.teacher == {"checkpoint": "/weights/sam.pt"}
    assert job.places.overrides()["device"] == "cpu"
    assert job.places.cache == tmp_path / "run" / "cache"


def test_places_are_paths():
    places = Places("bundle", "list.json", "data", "run", cache_dir="cache")
    assert places.cache == Path("cache")
    assert places.overrides()["bundle_root"] == "bundle"
