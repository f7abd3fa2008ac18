"""Plans that choose, repeat, slice or weight the images of a site: refused alone and beside its bundle."""

from __future__ import annotations

from typing import Any

import pytest

from samfed_monai.config import find_bundle, strict_problems
from samfed_monai.config.own_images import LOADER_SETTINGS, ROOTS, deviations
from samfed_monai.config.variants import PACKAGED
from samfed_monai.core.errors import Problems
from samfed_monai.federation.participants import require_own_images
from samfed_monai.federation.plan import Paths, Plan
from tests.methods import needs

ONE = {"_target_": "monai.data.ArrayDataset", "img": [3] * 20}
CROPS = {"_target_": "monai.transforms.RandSpatialCropSamplesd", "keys": "image", "roi_size": [8, 8], "num_samples": 20}
VIEW = {"_target_": "samfed_monai.transforms.RenameItemsd", "keys": "label", "names": "image"}
LOADER: dict[str, Any] = {"_target_": "monai.data.DataLoader", "dataset": "@unlabelled#dataset"}
WEIGHTED = {"_target_": "torch.utils.data.WeightedRandomSampler", "weights": [0, 0, 1], "num_samples": 40}
SUBSET = {"_target_": "torch.utils.data.Subset", "dataset": "@unlabelled#dataset", "indices": [3] * 20}
OWN = {"datalist": "@datalist", "data_root": "@data_root", "site": "@site"}
IMAGES = {"_target_": "samfed_monai.bundle.SiteImages", **OWN, "limit": 1}

CHOSEN: list[dict[str, Any]] = [
    *({f"{split}#dataloader#sampler": ONE} for split in ("test", "validate", "unlabelled", "train")),
    {"unlabelled#dataloader#sampler": {**ONE, "img": [3] * 4000}},
    {"unlabelled#sampler#indices": [7], "batch_size": 1, "local_steps": 20},
    {"test#dataloader#sampler": [3] * 20},
    {"test::dataloader::sampler": [3] * 20},
    {"+test#dataloader#sampler": [3] * 20},
    {"test": {"dataloader": {"sampler": [3] * 20}}},
    {"test#dataloader#batch_sampler": [[3]] * 20},
    {"validate#dataloader#batch_sampler": {**ONE, "img": [[3]] * 20}},
    {"unlabelled#dataloader#shuffle": True},
    {"test#dataloader#drop_last": True},
    {"unlabelled#dataloader#collate_fn": VIEW},
    {"unlabelled#dataloader": {**LOADER, "batch_sampler": [[7]] * 20}},
    {"unlabelled#dataloader": {**LOADER, "_target_": "monai.data.ThreadDataLoader", "repeats": 50}},
    {"unlabelled#sampler": WEIGHTED},
    {"unlabelled#dataset": SUBSET},
    {"test#dataset#data": [{"image": "a.png"}] * 20},
    {"test#dataset#split": "unlabelled"},
    {"test#dataset": "@unlabelled#dataset"},
    {"train#dataset": "@unlabelled#dataset"},
    {"unlabelled#dataset": {"_target_": "monai.data.CacheDataset", "data": "@images", "cache_num": 1}},
    {"unlabelled#dataset": {"_target_": "monai.data.SmartCacheDataset", "data": "@images", "cache_num": 1}},
    {"unlabelled#dataset#partition": 0},
    {"unlabelled#dataset#_disabled_": True},
    {"unlabelled#preprocessing#transforms": [CROPS]},
    {"weak_view": CROPS},
    {"read": {"_target_": "monai.transforms.Identityd", "keys": "image"}},
    {"stream#loader": [{"image": 1}]},
    {"stream#loader": "@test#dataloader"},
    {"stream#loader": {**LOADER, "sampler": [3]}},
    {"stream": {"_target_": "samfed_monai.handlers.UnlabelledStream", "loader": "@test#dataloader"}},
    {"train#trainer#train_data_loader": "@unlabelled#dataloader"},
    {"before#seed#loaders": ["@unlabelled#dataloader"]},
    {"client_algorithm#dataset": "@unlabelled#dataset"},
    {"client_algorithm#plain#data": "@unlabelled#dataset"},
    {"statistics#transform": "@train#preprocessing"},
    {"images": IMAGES},
    {"images#limit": 1},
    {"limit": 20},
]
"""What the site's own bundle shows as well, whatever its ids are called."""

OF_ITS_OWN: list[dict[str, Any]] = [
    {"x": IMAGES},
    {"x": "@unlabelled#dataset"},
    {"x": "@##unlabelled#dataset"},
    {"x": {"_target_": "monai.data.thread_buffer.ThreadBuffer", "src": "@y"}},
    {"after#gap": {"_target_": "samfed_monai.methods.fedsemidg.GapMeter", "loader": "@y"}},
    {"validate#scores": {"_target_": "ignite.metrics.RunningAverage", "alpha": 0.01}},
    {"validate#handlers": []},
    {"validate#evaluator#val_handlers": ["@x"]},
    {"train#trainer#prepare_batch": {"_target_": "samfed_monai.handlers.HandlerGroup", "handlers": []}},
    {"unlabelled#dataloader#batch_size": [1]},
    {"unlabelled#dataloader#batch_size": "1"},
]

OPTIONS: dict[str, Any] = {
    **{"image_size": 64, "batch_size": 2, "local_steps": 1, "amp": False, "oracle": True, "limit": None},
    **{"label_resize": "nearest", "classes": ["a", "b"], "strong_view#strength": 0.9, "weak_view#zoom": [0.9, 1.1]},
    **{"stream#cutmix": 0.5, "guides#ema#_disabled_": True, "unlabelled#dataloader#num_workers": 2},
    **{"train#dataloader#batch_size": "@batch_size", "test": {"dataloader": {"batch_size": 8}}},
    "loss": {"_target_": "monai.losses.DiceLoss", "sigmoid": True},
    "strategy": {"_target_": "samfed_monai.methods.fedavg.FedAvg"},
}


def beside_bundle(client: dict[str, Any], *, variant: str = "samfed") -> list[str]:
    """What a site refuses that compares the plan with its own bundle."""
    plan = Plan("samfed_skin", 2, variant, train=client, sites={"a": {"network": "basic_unet"}})
    problems = Problems()
    with problems.collected():
        require_own_images(plan, Paths(find_bundle("samfed_skin"), "list.json", ".", "out"), "a")
    return [str(problem) for problem in problems]


@pytest.mark.parametrize("group", ["", "sites", "teacher"])
def test_plan_choosing_images_is_refused(group):
    for client in (*CHOSEN, *OF_ITS_OWN):
        sent = {"site-1": client} if group == "sites" else client
        problems = [str(problem) for problem in strict_problems({group: sent} if group else sent, "plan")]
        root = next(iter(client)).lstrip("+").replace("::", "#").partition("#")[0]
        assert any(root in problem for problem in problems), client
        assert any("no value that selects images" in each or "strict allow-list" in each for each in problems), client


@needs("heterogeneous", "elcfs")
def test_plan_deviating_from_site_bundle_is_refused():
    for client in CHOSEN:
        first = next(iter(client))
        variant = {"client_algorithm": "heterogeneous", "statistics": "elcfs"}.get(first.partition("#")[0], "samfed")
        assert beside_bundle({name.lstrip("+"): value for name, value in client.items()}, variant=variant), client


def test_refusal_message_names_place_and_expected_value():
    assert beside_bundle({"test#dataset#split": "validation"}) == [
        "plan -> test#dataset#split: expected 'test', as in this site's own bundle, found 'validation'; "
        "delete it; only a variant that is installed here may set it"
    ]
    [problem] = strict_problems({"test#dataloader#sampler": [3, 3]}, "plan")
    assert str(problem) == (
        "plan -> test#dataloader#sampler: expected no value that selects images, found [3, 3]; "
        "delete it; a plan may set only these values of a data loader: batch_size, num_workers, persistent_workers, "
        "pin_memory, prefetch_factor"
    )


@pytest.mark.parametrize("root", sorted(ROOTS))
def test_loader_settings_are_accepted(root):
    content = {f"{root}#dataloader#{name}": 1 for name in LOADER_SETTINGS}
    assert strict_problems(content, "plan") == []
    assert beside_bundle(content) == []


def test_plan_of_every_method_with_ordinary_options_is_accepted():
    content = {name: value for name, value in OPTIONS.items() if name != "test"}
    assert strict_problems(OPTIONS, "plan") == []
    for path in PACKAGED.glob("*.json"):
        assert beside_bundle(content, variant=path.stem) == [], path


def test_options_choosing_images_in_other_bundle_may_not_change():
    resize = {"_target_": "monai.transforms.Resized", "keys": "image", "spatial_size": ["@size", 64]}
    dataset = {"_target_": "monai.data.Dataset", "data": "@first", "transform": resize}
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": "@many", "dataset": dataset}
    own = {"first": [0, 1, 2], "many": 2, "size": 64, "mine": loader}
    assert deviations(own, {**own, "many": 4, "size": 32}) == []
    found = deviations(own, {**own, "first": [0, 0, 0]})
    assert [problem.where for problem in found] == ["plan -> first#1", "plan -> first#2"]
