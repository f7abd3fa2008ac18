"""What decides a run, as JSON, where things are, and a workflow's merged configuration and its fingerprint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.federation import FederatedJob, Paths, Plan
from samfed_monai.federation.plan import split_paths
from samfed_monai.federation.workflow import WorkflowConfig, client_config

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


def test_plan_json_round_trip():
    plan = Plan.from_json(CONTENT)
    assert plan.unseen == ("site-3",)
    assert plan.to_json() | CONTENT == plan.to_json()
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(json.dumps(plan.to_json())) == plan.to_json()


@pytest.mark.parametrize(
    ("changed", "decides"),
    [
        *(({name: value}, True) for name, value in {"rounds": 4, "seed": 1, "unseen": [], "privacy": None}.items()),
        ({"train": {"image_size": 32}}, True),
        *(({name: value}, False) for name, value in {"timeout": 90, "quorum": 2, "allow_single_site": True}.items()),
        ({"update_guard": {"limit": 3.0}}, False),
    ],
)
def test_plan_hash_and_updates_hash_change_with_options(changed, decides):
    plan, other = Plan.from_json(CONTENT), Plan.from_json(CONTENT | changed)
    assert other.hash != plan.hash
    assert (other.updates_hash != plan.updates_hash) is decides


def test_plan_problems_are_reported():
    wrong = {"bundle": "b", "rounds": "3", "quorum": True, "train": {"x": {1, 2}}, "sites": {"a": "basic_unet"}}
    with pytest.raises(Refused) as caught:
        Plan.from_json(wrong)
    found = [problem.where for problem in caught.value.problems]
    assert found == ["plan -> rounds", "plan -> sites#a", "plan -> quorum"]
    assert "expected a whole number, found '3' (str)" in str(caught.value)
    with pytest.raises(Refused, match="plan -> train: expected plain values, found a value that JSON cannot represent"):
        Plan("b", 1, train={"x": {1, 2}})
    message = r"rounds: expected at least 1, found 0\n.*seed: .*0, found -1\n.*steps: .*found -5"
    with pytest.raises(Refused, match=message):
        Plan("b", 0, seed=-1, warm_start_steps=-5)
    for never in (0, -3.0):
        with pytest.raises(Refused, match="plan -> timeout: expected above 0, found"):
            Plan("b", 1, timeout=never)
    with pytest.raises(Refused, match=r"plan -> rouns: .*did you mean 'rounds'\?"):
        Plan.from_json({"bundle": "b", "rouns": 3})
    with pytest.raises(Refused, match="plan -> bundle: expected a value, found no such key"):
        Plan.from_json({"rounds": 3})


def test_fingerprint_covers_bundle_content_without_paths(tmp_path):
    plan, root = Plan("mine", 1, variant="no_sam"), tmp_path / "elsewhere"
    configs = {at.name: json.loads(at.read_text()) for at in (find_bundle("samfed_skin") / "configs").glob("*.json")}
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


def test_paths_are_split_from_options():
    given = {"image_size": 64, "device": "cpu", "terms": {"a": {"weight": 1}}, "data_root": "/x"}
    decides, paths = split_paths(given)
    assert decides == {"image_size": 64, "terms#a#weight": 1}
    assert paths == {"device": "cpu", "data_root": "/x"}


def test_job_separates_plan_from_paths(tmp_path):
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
    assert "/" not in json.dumps(job.plan.to_json()).replace("basic_unet", ""), "no path is in the plan"
    assert job.plan.sites == {"site-2": {"network": "basic_unet"}, "site-1": {}}
    assert (job.plan.bundle, job.plan.privacy) == ("samfed_skin", {"least_images": 1})
    assert job.paths.sites == {"site-2": {"data_root": "/other"}}
    assert job.paths.teacher == {"checkpoint": "/weights/sam.pt"}
    assert job.paths.overrides()["device"] == "cpu"
    assert job.paths.cache == tmp_path / "run" / "cache"


def test_paths_json_round_trip():
    given = {"adapter": "a", "sites": {"s": {"device": "cpu"}}, "workers": "auto", "cache_dir": "cache"}
    paths = Paths("bundle", "list.json", "data", "run", **given)
    assert paths.cache == Path("cache")
    assert paths.overrides()["bundle_root"] == "bundle"
    assert Paths(**paths.to_json()) == paths


@pytest.mark.parametrize("wanted", [0, -1, 1.5, True, "many", None])
def test_invalid_workers_are_refused(wanted):
    with pytest.raises(Refused, match=r"federate\.json -> workers: expected 'auto' or a whole number >= 1, found"):
        Paths("bundle", "list.json", "data", "run", workers=wanted)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    configs = tmp_path / "bundle" / "configs"
    (configs / "variants").mkdir(parents=True)
    train = {"data_root": "/a", "size": 64, "twice": "$@size * 2", "terms": {"kd": {"weight": 1.0}}}
    (configs / "train.json").write_text(json.dumps(train))
    (configs / "variants" / "samfed.json").write_text("{}")
    (configs / "variants" / "no_kd.json").write_text(json.dumps({"terms#kd#weight": 0.0}))
    return configs.parent


def test_files_and_overrides_are_merged_in_order(bundle):
    config = client_config(bundle, "no_kd", {"size": 32})
    assert config.value("terms#kd#weight") == 0.0
    assert config.value("twice") == 64
    assert config.content() == {"size": 32, "twice": "$@size * 2", "terms": {"kd": {"weight": 0.0}}}


def test_unknown_id_is_refused(bundle):
    with pytest.raises(Refused, match=r"samfed\.json -> teacher_adapt: .*found no such id"):
        client_config(bundle, "samfed", {}).value("teacher_adapt")


def test_fingerprint_ignores_paths_and_evaluation(bundle):
    config = WorkflowConfig(bundle, ("configs/train.json",))
    same = config.with_overrides({"data_root": "/elsewhere", "output_dir": "/b"})
    assert config.fingerprint(seed=0) == same.fingerprint(seed=0)
    assert config.fingerprint(seed=0) != config.fingerprint(seed=1)
    assert config.fingerprint() != config.with_overrides({"size": 65}).fingerprint()
    assert config.fingerprint() == config.with_overrides({"validate": {"batch": 3}}).fingerprint()


def test_fingerprint_ignores_values_unused_by_trainer(bundle):
    train = {"train": {"trainer": {"handlers": ["@terms"], "size": "@size"}}, "terms#kd#weight": "@weight", "weight": 1}
    config = WorkflowConfig(bundle, ("configs/train.json",), train)
    assert config.fingerprint() == config.with_overrides({"twice": 3}).fingerprint()
    assert config.fingerprint() != config.with_overrides({"size": 65}).fingerprint()
    assert config.fingerprint() != config.with_overrides({"weight": 2}).fingerprint()
    disabled = config.with_overrides({"terms#kd#_disabled_": True})
    assert disabled.fingerprint() == disabled.with_overrides({"weight": 2}).fingerprint()


def test_overrides_of_other_variants_are_dropped(bundle):
    dropped = {"terms#proximal#mu": 0.1, "size#width": 3, "client_algorithm#batches": 1, "terms#kd#weight#0": 2}
    kept = {"size": 32, "terms#kd#weight": 0.5, "terms#new": {"weight": 1.0}, "terms#new#weight": 2.0}
    config = WorkflowConfig(bundle, ("configs/train.json",), {**dropped, **kept})
    assert config.without_unknown_overrides().overrides == kept
    assert config.without_unknown_overrides().value("terms#new#weight") == 2.0
