"""What moved since version 0.1 is found under its old name, with a warning; nothing stands in the table for long."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from pathlib import Path

import pytest

from samfed_monai.config.bundles import packaged_bundle
from samfed_monai.config.targets import resolve_target
from samfed_monai.core.io import canonical_hash, read_json
from samfed_monai.core.moved import (
    MOVED,
    comparable,
    config_hash,
    federate_first,
    first_spelling,
    found_where_moved,
    variant_of,
)

NAMES = [
    (old, now, *(name.split(">") * 2)[:2])
    for old, places in MOVED.items()
    for now, names in places.items()
    for name in names.split()
    if importlib.util.find_spec(now)  # a method whose file was deleted has no names to find
]


@pytest.mark.parametrize(("old", "now", "name", "new"), NAMES)
def test_every_moved_name_is_found_with_a_warning_that_names_its_new_place(old, now, name, new):
    find = found_where_moved(old, getattr)
    with pytest.warns(FutureWarning, match=f"{old}.{name} is {now}.{new} now"):
        found = find(name)
    with warnings.catch_warnings(action="error"):
        assert find(name) is found, "said once"
    assert getattr(importlib.import_module(old), name) is found
    assert found is getattr(importlib.import_module(now), new)
    assert name not in dir(importlib.import_module(old))


@pytest.mark.parametrize("name", ["EvaluationImages", "LabelledViews", "UnlabelledViews"])
def test_a_name_without_a_successor_says_what_to_write_in_its_place(name):
    find = found_where_moved("samfed_monai.transforms", getattr)
    message = (
        f"samfed_monai.transforms.{name} is a list of named transforms now; the old name goes with the next version: "
        "write the list that the packaged bundles have there"
    )
    with pytest.warns(FutureWarning, match=f"^{message}$"):
        assert find(name).__name__ == name


@pytest.mark.filterwarnings("ignore:.*write the new one:FutureWarning")
def test_a_bundle_of_version_0_1_may_name_one():
    strategy = resolve_target("samfed_monai.federation.FedAvg", "federate.json -> strategy#_target_")
    assert strategy.__name__ == "FedAvg"


def test_an_unknown_name_is_unknown_still():
    with pytest.raises(AttributeError, match="FedAverage"):
        importlib.import_module("samfed_monai.federation").FedAverage  # noqa: B018


def test_hashes_are_taken_of_the_first_spelling():
    now = {
        "strategy": {"_target_": "samfed_monai.methods.fedavg.FedAvg"},
        "terms": [{"_target_": "monai.losses.DiceLoss"}],
    }
    before = {
        "strategy": {"_target_": "samfed_monai.federation.FedAvg"},
        "terms": [{"_target_": "monai.losses.DiceLoss"}],
    }
    assert first_spelling(now) == first_spelling(before) == before


@pytest.mark.parametrize(
    ("spellings", "first"),
    [
        (["samfed_monai.bundle.on_device", "samfed_monai.parts.on_device"], "samfed_monai.parts.on_device"),
        (
            [f"samfed_monai.{room}.site_records" for room in ("bundle", "parts", "handlers")],
            "samfed_monai.handlers.site_records",
        ),
    ],
)
def test_a_component_that_moved_twice_counts_as_what_it_was_first(spellings, first):
    assert [first_spelling({"_target_": each}) for each in spellings] == [{"_target_": first}] * len(spellings)


@pytest.mark.parametrize("bundle", ["samfed_skin", "samfed_polyp"])
def test_a_teacher_trained_as_always_counts_as_before_there_was_a_choice(bundle):
    now = read_json(packaged_bundle(bundle) / "configs" / "teacher.json")
    before = {name: value for name, value in now.items() if name not in ("loss", "optimizer", "train")}
    before["fit"] = {name: value for name, value in now["fit"].items() if name != "trainer"}
    assert len(before) == len(now) - 3
    assert config_hash({"config": now}) == config_hash({"config": before})
    others = [
        {"loss": {"_target_": "monai.losses.DiceLoss"}},
        {"optimizer": {**now["optimizer"], "weight_decay": 0.2}},
        {"train": {**now["train"], "handlers": [{"_target_": "samfed_monai.handlers.DivergenceGuard"}]}},
        {"fit": {**now["fit"], "trainer": "@another"}},
    ]
    hashes = {config_hash({"config": {**now, **other}}) for other in others}
    assert len(hashes | {config_hash({"config": before})}) == 5


def test_ids_that_end_in_a_target_are_spelt_as_before_too():
    now = {"sharing#_target_": "samfed_monai.methods.fedproto.PrototypeSharing"}
    assert first_spelling(now) == {"sharing#_target_": "samfed_monai.federation.PrototypeSharing"}


@pytest.mark.parametrize("target", ["samfed_monai.methods.fedicra", "samfed_monai.federation"])
def test_a_stored_run_of_fedicra_is_one_of_fedala(target):
    options = {"upper": 0.25, "rate": 1.0}
    stored = {"variant": "fedicra", "client": {"sharing": {"_target_": f"{target}.AdaptiveMixing", **options}}}
    now = {"sharing": {"_target_": "samfed_monai.methods.fedala.AdaptiveMixing", **options}}
    assert variant_of(stored) == "fedala"
    assert comparable(stored) == comparable({"variant": "fedala", "client": now})
    assert config_hash(stored["client"]) == config_hash(now)
    of_today = {"sharing": {"_target_": "samfed_monai.methods.fedicra.DecoderMixing"}}
    assert variant_of({"variant": "fedicra", "client": of_today}) == "fedicra"
    assert variant_of({"variant": "ditto", "client": stored["client"]}) == "ditto"
    assert variant_of({}) == ""


def test_an_argument_that_came_later_counts_only_where_it_changes_something():
    before = {"strategy": {"_target_": "samfed_monai.methods.fedmd.Consensus"}}
    now = {"strategy": {**before["strategy"], "average": "probabilities"}}
    other = {"strategy": {**before["strategy"], "average": "scores"}}
    assert config_hash(now) == config_hash(before) != config_hash(other)
    assert comparable({"client": now}) == comparable({"client": before}) != comparable({"client": other})


def test_a_configuration_has_one_hash_in_both_spellings():
    now = {"fit": {"_target_": "samfed_monai.teacher.TeacherFit", "size": 224}}
    before = {"fit": {"_target_": "samfed_monai.networks.TeacherFit", "size": 224}}
    assert config_hash(now) == config_hash(before) == canonical_hash(before)
    assert config_hash(now) != config_hash({"fit": {**now["fit"], "size": 256}})


def test_what_a_training_file_need_not_spell_out_any_more_is_hashed_as_if_it_stood_there():
    views = {"weak": "@weak_view", "strong": "@strong_view"}
    rest = {"images": {}, "validate": {}, "personal": ["head.*"]}
    now = {**rest, "train": {"trainer": {}, "preprocessing": {**views, "targets": "@targets"}}}
    hooks = dict.fromkeys(
        ("sharing", "targets", "mixed_networks", "server_network", "public_steps", "public_images", "sam_network")
    )
    before = {
        **{**rest, **hooks, "warm_start": None},
        "train": {"trainer": {}, "preprocessing": {**views, "targets": "@targets"}},
    }
    assert config_hash(now) == config_hash(before) == canonical_hash(before)
    assert config_hash({**now, "personal": []}) == config_hash({key: now[key] for key in now if key != "personal"})
    del now["validate"], before["validate"], before["sam_network"]
    assert config_hash(now) != config_hash(before), "what a trainer reaches has no other hook than its targets"


@pytest.mark.parametrize("bundle", ["samfed_skin", "samfed_polyp"])
def test_lists_of_transforms_are_hashed_as_the_objects_that_stood_for_them(bundle):
    now = read_json(Path(__file__).parents[2] / "bundles" / bundle / "configs" / "train.json")
    sizes = {"image_size": "@image_size", "label_resize": "@label_resize"}
    views = {**sizes, "weak": "@weak_view", "strong": "@strong_view"}
    masks = {"store_dir": "@store_dir", "teacher_sha256": "@teacher_sha256", "masks_for": "@guides#sam"}
    objects = {
        "train": {"_target_": "samfed_monai.transforms.LabelledViews", **views, "targets": "@targets"},
        "unlabelled": {"_target_": "samfed_monai.transforms.UnlabelledViews", **views, **masks},
        "validate": {"_target_": "samfed_monai.transforms.EvaluationImages", **sizes},
    }
    steps = ("read", "resize", "binary_label", "soft_mask")
    before = {name: value for name, value in now.items() if name not in steps} | {"targets": None}
    before |= {name: {**now[name], "preprocessing": each} for name, each in objects.items()}
    assert config_hash(now) == config_hash(before)
    with_targets = {"sharing": {"targets": "@targets"}, "targets": now["targets"]}
    assert config_hash({**now, **with_targets}) == config_hash({**before, **with_targets})
    other = {**now, "resize": {**now["resize"], "mode": "nearest"}}
    assert config_hash(other) != config_hash(now), "a step with numbers of its own is another pipeline"


def test_federate_json_is_hashed_with_the_knobs_that_it_handed_on():
    train = {"image_size": 224, "local_steps": None, "batch_size": 4, "network_name": "unet", "learning_rate": 0.001}
    now = {"rounds": 10, "client": {"local_steps": 12}, "teacher": {}}
    before = {
        **{"rounds": 10, "image_size": 224, "local_steps": 12, "batch_size": 4},
        **{"network_name": "unet", "learning_rate": 0.001, "teacher": {"views": 4}},
        "client": {name: f"@{name}" for name in train},
    }
    assert federate_first(now, train, {"views": 4}) == before
    assert federate_first(before, train, {"views": 4}) == before
    assert federate_first({"client": None}, train, {}) == {"client": None}


def test_a_run_is_compared_by_what_is_read_whichever_knob_said_it():
    before = {
        "batch_size": 2,
        "learning_rate": 0.001,
        "network_name": "unet",
        "sam_network": "sam_vit_t",
        "optimizer": {"lr": 0.0001},
        "loaders": [{"batch_size": 4}],
        "network_def": {"name": "@network_name"},
    }
    now = {
        "batch_size": 4,
        "learning_rate": 0.0001,
        "network_name": "sam_vit_t",
        "optimizer": {"lr": "@learning_rate"},
        "loaders": [{"batch_size": "@batch_size"}],
        "network_def": {"name": "@network_name"},
    }
    read = {
        "network_name": "sam_vit_t",
        "optimizer": {"lr": 0.0001},
        "loaders": [{"batch_size": 4}],
    }
    assert comparable({"client": now, "rounds": 1}) == {
        "rounds": 1,
        "client": {**read, "network_def": {"name": "sam_vit_t"}},
    }
    assert comparable({"client": before, "rounds": 1}) == {
        "rounds": 1,
        "client": {**read, "network_def": {"name": "sam_vit_t"}},
    }
    assert comparable({"client": {**now, "learning_rate": 0.1}}) != comparable({"client": now})
    mixed = {"mixed_networks": ["a", "b"], "server_network": "a"}
    assert comparable({"client": {**mixed, "network_name": "b"}}) == comparable(
        {"client": {**mixed, "network_name": "c"}}
    )
    assert comparable({"client": {"network_name": "b"}}) != comparable({"client": {"network_name": "c"}})
