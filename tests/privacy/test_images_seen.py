"""Images are counted where they are read, whatever loaders a plan declares."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from samfed_monai.data import DataList
from samfed_monai.data.datalist import Item
from samfed_monai.federation import Plan, SamFedAlgo, Site
from samfed_monai.federation.exchange_object import HEADER
from samfed_monai.handlers.images_seen import ImagesSeen, SeenCounts, identities
from samfed_monai.privacy.allowed import Allowed, seen_problems, withheld_reason
from samfed_monai.privacy.audit import read_audit
from samfed_monai.privacy.release import MOST_TRAININGS
from samfed_monai.privacy.rules import PrivacyFloor
from samfed_monai.protocol import Kind, Message, MessageRefused, Task
from tests.federation.test_job import CLIENT
from tests.federation.toys import BUNDLE
from tests.federation.wired import paths
from tests.methods import needs

PLAN = Plan("samfed_skin", 2, variant="no_sam", train=CLIENT, sites={"site-1": {}, "site-2": {}})
Made = Callable[..., Site]


@pytest.fixture
def node(small_federation, site_lists, tmp_path) -> Made:
    """A site that asks for two images; its plan was not compared with its bundle."""
    logging.disable(logging.WARNING)

    def made(client, *, least=2, own=2, datalist=site_lists["site-1"], images=small_federation, **plan) -> Site:
        given = replace(PLAN, train={**CLIENT, **client}, privacy={"least_images": least}, **plan)
        there = paths(images, datalist, tmp_path / "site-1")
        return Site("site-1", given, there, floor=PrivacyFloor(least_images=own))

    yield made
    logging.disable(logging.NOTSET)


def request_to(site: Site, task: Task) -> Message:
    """A request with the site's own first weights."""
    weights = dict(site.client.own.shared(site.client.trainer.network.state_dict()))
    extra = {"split": "test", "model": "current"} if task == Task.EVALUATE else {}
    return Message(Kind.WEIGHTS, "site-1", 0, 2, tensors=weights, extra=extra)


def answer(site: Site, task: Task) -> Message:
    return site.answer(task, request_to(site, task))


UNLABELLED = {
    "_target_": "samfed_monai.bundle.SplitDataset", "data": "@images", "split": "unlabelled",
    "transform": "@unlabelled#preprocessing",
}  # fmt: skip


def test_valid_plan_keeps_image_counts(node):
    site = node({})
    reply, scores = answer(site, Task.TRAIN), answer(site, Task.EVALUATE)
    assert (reply.n, scores.n, "dice" in scores.metrics) == (4, 2, True)
    stream = site.client.trained_on.stream
    hashes = {item.sha256 for item in site.datalist.sites["site-1"].unlabelled}
    assert (stream.images, stream.drawn, stream.hashed) == (hashes, 4, True)


SUBSET = {"_target_": "torch.utils.data.Subset", "dataset": "@validate#dataset", "indices": [1] * 20}


@pytest.mark.parametrize(
    "client",
    [
        {"test#dataloader#sampler": [1] * 20},
        {"test#dataloader#batch_sampler": [[1], [1]], "test#dataloader#batch_size": 1},
        {"test#dataset": {"_target_": "monai.data.ArrayDataset", "img": SUBSET}},
    ],
)
def test_scores_of_repeated_image_are_withheld(node, client):
    reply = answer(node(client), Task.EVALUATE)
    assert (reply.n, reply.metrics, withheld_reason(reply)) == (0, {}, "withheld: fewer than 2 images")


def test_repeated_images_are_scored_once_and_missing_refused(node):
    honest, again = node({}), node({"test#dataloader#sampler": [0, 1, 1, 1, 0, 1]})
    assert answer(again, Task.EVALUATE).metrics["dice"] == answer(honest, Task.EVALUATE).metrics["dice"]
    assert [row["id"] for row in again.client.scores["test"]] == [row["id"] for row in honest.client.scores["test"]]
    with pytest.raises(MessageRefused, match="scores: expected all images of the split, found only a part"):
        answer(node({"test#dataloader#sampler": [1]}, least=1, own=1), Task.EVALUATE)


@pytest.mark.parametrize(
    "client",
    [
        {"unlabelled#sampler#indices": [3], "batch_size": 1},
        {"unlabelled#dataset": {"_target_": "monai.data.ArrayDataset", "img": {**SUBSET, "dataset": UNLABELLED}}},
        {"stream#loader": {"_target_": "monai.data.DataLoader", "dataset": UNLABELLED, "batch_sampler": [[3]] * 20}},
    ],
)
def test_training_on_repeated_image_is_refused(node, client):
    whole = "indices" in str(client)  # with the plan's own number as well as with the site's
    least, own, setting = (2, 1, "privacy#least_images") if whole else (1, 2, "the site file")
    site = node(client, least=least, own=own)
    expected = rf"at least 2 images in a round of training \(set in {setting}\), found 1 diff"
    with pytest.raises(MessageRefused, match=expected):
        answer(site, Task.TRAIN)
    [line] = [line for line in read_lines(site) if line["task"] == "train"]
    assert (line["outcome"], "1 different" in line["problems"][0]) == ("refused", True)


def test_wrapped_dataset_counts_distinct_images(node):
    around = {**SUBSET, "dataset": UNLABELLED, "indices": [0, 1, 0, 1, 1]}
    site = node({"unlabelled#dataset": around, "local_steps": 4})
    assert answer(site, Task.PREPARE).n == answer(site, Task.TRAIN).n == 2


def read_lines(site: Site) -> list[dict[str, Any]]:
    return read_audit(site.paths.output_dir / "sites" / "site-1" / "audit.jsonl")


def test_crops_of_same_image_are_counted_once(node):
    crops = {"_target_": "monai.transforms.RandSpatialCropSamplesd", "keys": ["image", "image_strong"]}
    shape = {"roi_size": [32, 32], "num_samples": 6, "random_size": False}
    steps = ["@read", "@resize", "@binary_label", "@soft_mask", "@weak_view", "@strong_view", {**crops, **shape}]
    client = {"unlabelled#preprocessing#transforms": steps, "batch_size": 1, "local_steps": 1}
    with pytest.raises(MessageRefused, match="found 1 different"):
        answer(node(client), Task.TRAIN)


def test_identical_files_count_as_one_image(node, small_federation, site_lists, tmp_path):
    shutil.copytree(small_federation, tmp_path / "images")
    own = DataList.load(site_lists["site-1"])
    images = own.sites["site-1"]

    def copied(item: Item) -> Item:
        copy = replace(item, image=f"{item.image}.copy.jpg", label=f"{item.label}.copy.png")
        for path, new in ((item.image, copy.image), (str(item.label), str(copy.label))):
            shutil.copy(tmp_path / "images" / path, tmp_path / "images" / new)
        return copy

    first, scored = images.unlabelled[0], images.test[0]
    twice = replace(images, unlabelled=[*images.unlabelled, copied(first)], test=[scored, copied(scored)])
    replace(own, sites={"site-1": twice}).save(tmp_path / "twice.json")
    site = node({}, datalist=tmp_path / "twice.json", images=tmp_path / "images")
    assert (site.training_images(), answer(site, Task.TRAIN).n) == (4, 4)
    assert withheld_reason(answer(site, Task.EVALUATE)) == "withheld: fewer than 2 images"


HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"version": 9}, "message -> version"),
    ({"kind": Kind.ADAPTER}, "message -> kind: expected one of .*, found adapter"),
    ({"kind": Kind.SECURE}, "message -> kind"),
    ({"round": 2}, "message -> round: expected one of 2 rounds"),
    ({"round": -1}, "message -> round"),
    ({"round": True}, "message -> round"),
    ({"rounds": 3}, "message -> round"),
    ({"site": "site-2"}, "message -> site"),
    ({"n": 3}, "message -> n: expected 0 in a request"),
    ({"metrics": {"dice": 0.5}}, "message -> metrics: expected no metrics in a request"),
    ({"metrics": {"patient": 1}}, "message -> metrics: .*a name that is not on the list"),
    ({"extra": {"split": "unlabelled"}}, "message -> extra -> split"),
    ({"extra": {"words": "x"}}, "message -> extra: .*a name that is not on the list"),
    ({"extra": {"withheld": "5"}}, "message -> extra"),
]


def test_faults_87_and_103_request_header_is_checked_before_work(node, monkeypatch):
    site, worked = node({}), []
    monkeypatch.setattr(site, "_run_task", lambda *_: worked.append(1))
    for fields, match in HEADERS:
        request = Message(**{"kind": Kind.WEIGHTS, "site": "site-1", "round": 0, "rounds": 2, **fields})
        for task in (Task.TRAIN, Task.EVALUATE):
            with pytest.raises(MessageRefused, match=match):
                site.answer(task, request)
    site.release.trainings[0] = MOST_TRAININGS
    with pytest.raises(MessageRefused, match="trainings: expected at most 32 in a round, found one more"):
        site.answer(Task.TRAIN, request_to(site, Task.TRAIN))
    assert worked == []
    assert [line["outcome"] for line in read_lines(site)] == ["failed"] * (2 * len(HEADERS) + 1)


@needs("hssf")
def test_images_are_counted_with_unlike_networks(node):
    plan = {"variant": "hssf", "sites": {"site-1": {"network": "basic_unet"}, "site-2": {}}}
    client = {"public_steps": 1, "server_network": "basic_unet", "test#dataloader#sampler": [1] * 20}
    site = node({**client, "unlabelled#sampler#indices": [3]}, **plan)
    own = site.client
    site._has_network = True
    keep = Message(Kind.METRICS, "site-1", 0, 2, extra={"split": "test", "model": "current", "purpose": "keep"})
    assert (site.answer(Task.EVALUATE, keep).n, own._evaluated_images.batch.drawn) == (0, 20)


def test_images_are_identified_by_file_or_pixels():
    batch = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4), torch.zeros(3, 4, 4)])
    for given in ({"image": batch}, [{"image": image} for image in batch], (batch, batch)):
        assert SeenCounts().take(given) == [False, False, True]
    assert SeenCounts().take({"image": batch, "image_read": ["a", "", "a"]}) == [False, False, True]
    assert list(identities({"image": batch, "image_read": ["a", "", "b"]})) == [("a", True), ("", True), ("b", True)]
    seen = SeenCounts()
    assert [seen.take({"label": 1}), seen.take({"label": 2})] == [[False], [True]], "what has no image is one"
    two = ImagesSeen()
    assert two.least() is None
    two.batch.take({"image": None, "image_read": ["a", "b"]})
    two.stream.take({"image": None, "image_read": ["a", "a"]})
    assert two.least() == SeenCounts({"a"}, 2), "the smallest of two streams counts"


@pytest.mark.parametrize(
    ("images", "drawn", "hashed", "left"),
    [(3, 3, True, True), (3, 4, True, False), (3, 4, False, True), (5, 40, True, True), (1, 1, True, False)],
)
def test_plan_minimum_applies_to_repeated_images(images, drawn, hashed, left):
    allowed = Allowed(seen=SeenCounts(set(map(str, range(images))), drawn, hashed))
    assert (seen_problems(allowed, 2, 5, 10) == []) is left


def test_custom_bundle_counts_images_by_pixels():
    algo = SamFedAlgo(BUNDLE, vetted=True, eval_kwargs={"validate#dataloader#sampler": [0, 0, 0]})
    algo.initialize({ExtraItems.CLIENT_NAME: "site-1"})
    weights = dict(algo.trainer.network.state_dict())
    assert algo.evaluate(ExchangeObject(weights=weights), {"split": "validation"})[HEADER]["n"] == 1
