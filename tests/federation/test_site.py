"""One site made from a plan: what it answers before it is ready, and whom it refuses to be."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data import DataList
from samfed_monai.data.records import write_site_lists
from samfed_monai.federation import ClientAlgoSite, Plan, Site
from samfed_monai.federation.participants import Participants
from samfed_monai.federation.preparation import own_fingerprints
from samfed_monai.privacy.rules import PrivacyFloor
from samfed_monai.protocol import Kind, Message, MessageRefused, Task, scrub
from tests.federation.fake_sam import fake_sam, fitted
from tests.federation.test_job import CLIENT
from tests.federation.test_site_teacher import sent
from tests.federation.toys import FixedClient, weights
from tests.federation.wired import paths

PLAN = Plan(
    "samfed_skin",
    2,
    variant="no_sam",
    train=CLIENT,
    sites={"site-1": {}, "site-2": {"network": "flexible_unet_resnet18"}},
    privacy={"least_images": 1},
)
ALIKE = replace(PLAN, sites={"site-1": {}, "site-2": {}})
OWN = replace(PLAN, variant="hssf", train={**CLIENT, "public_steps": 1, "server_network": "basic_unet"})


@pytest.fixture
def node(small_federation, site_lists, tmp_path):
    def made(plan: Plan = ALIKE, site: str = "site-1", **options) -> Site:
        return Site(site, plan, paths(small_federation, site_lists[site], tmp_path / site), **options)

    return made


def fingerprints(node: Site) -> tuple:
    return node.paths.bundle_root, node.datalist, "site-1"


def message(kind: Kind = Kind.METRICS, **fields) -> Message:
    return Message(kind, "site-1", 0, 2, **fields)


def test_unknown_site_and_different_networks_are_refused(small_federation, site_lists, tmp_path, node):
    with pytest.raises(Refused, match=r"site: expected one of \['site-1', 'site-2'\], found 'site-9'"):
        Site("site-9", ALIKE, paths(small_federation, site_lists["site-1"], tmp_path))
    with pytest.raises(Refused, match="expected the same network at all sites"):
        node(PLAN)


def test_list_without_site_is_refused_without_naming_others(site_lists, small_federation, tmp_path, caplog):
    wrong = Site("site-1", ALIKE, paths(small_federation, site_lists["site-2"], tmp_path))
    with pytest.raises(MessageRefused, match="data list: expected this site's part, found no usable list") as caught:
        wrong.answer(Task.CHECK, message(extra={"plan": "0" * 64}))
    assert "site-2" not in str(caught.value)
    assert r"expected one of ['site-2'], found 'site-1'" in caplog.text


def test_check_refuses_weak_labels_and_other_classes(weak, tmp_path, caplog):
    own = write_site_lists(DataList.load(weak / "list.json"), tmp_path)["site-1"]
    replace(DataList.load(own), classes=["liver", "spleen"]).save(own)
    node = Site("site-1", replace(ALIKE, variant="supervised"), paths(weak, own, tmp_path / "home"))
    with pytest.raises(MessageRefused) as caught:
        node.answer(Task.CHECK, message(extra=own_fingerprints(node.plan, *fingerprints(node))))
    assert [str(problem) for problem in caught.value.problems][:2] == [
        "data list -> classes: expected ['foreground'], the classes of this run, found other classes (see this "
        "site's log); prepare the list with a single --label",
        "data list -> site-1 -> unlabelled: expected masks, the only labels that this method uses, found 2 weak labels "
        "(box); use a method that learns from weak labels (`--variant weak_labels`), or a list with masks",
    ]
    assert "liver" not in scrub(caught.value), "its own names do not leave a site"
    assert "found the classes ['liver', 'spleen']" in caplog.text
    [line] = [json.loads(line) for line in next(tmp_path.rglob("audit.jsonl")).read_text().splitlines()]
    assert scrub(caught.value) in json.dumps(line)


def test_site_network_is_derived_from_plan(node):
    whole = DataList("", [])
    mixed = replace(OWN, train={**OWN.train, "mixed_networks": ["basic_unet", "flexible_unet_resnet18"]})
    mixed = replace(mixed, sites={"site-1": {}, "site-2": {}}, unseen=("site-3",))
    resolved = Participants.of(mixed, node().paths, whole).resolve(mixed)
    assert resolved.sites["site-2"] == {"network": "flexible_unet_resnet18"}
    assert node(resolved, "site-2").participants.networks["site-2"] == "flexible_unet_resnet18"
    assert Participants.of(resolved, node().paths, whole).resolve(resolved) == resolved


def test_variant_in_local_bundle_limits_answers(small_federation, site_lists, tmp_path):
    here = paths(small_federation, site_lists["site-1"], tmp_path / "site-1")
    bundle = tmp_path / "samfed_skin"
    shutil.copytree(here.bundle_root, bundle)
    (bundle / "configs" / "variants").mkdir()
    block = {"base": "no_sam", "exchange": "none", "leaves_site": ["scores"]}
    (bundle / "configs" / "variants" / "quiet.json").write_text(json.dumps({"_method": block}))
    quiet = Site("site-1", replace(ALIKE, variant="quiet"), replace(here, bundle_root=bundle))
    network = quiet.client.trainer.network
    request = message(Kind.WEIGHTS, tensors={name: tensor.clone() for name, tensor in network.state_dict().items()})
    expected = "quiet.json -> _method#leaves_site: expected what quiet declares: scores, found weights"
    with pytest.raises(MessageRefused, match=expected):
        quiet.answer(Task.TRAIN, request)
    assert quiet.answer(Task.EVALUATE, replace(request, extra={"split": "test"})).metrics["dice"] >= 0


def test_failed_check_blocks_training_until_check_passes(node):
    here = node()
    own = own_fingerprints(ALIKE, *fingerprints(here))
    differing = {"plan": "plan and bundle", "list": "this site's part of the data list"}
    with pytest.raises(MessageRefused) as caught:
        here.answer(Task.CHECK, message(extra={**own, **dict.fromkeys(differing, "0" * 64)}))
    assert [problem.where for problem in caught.value.problems] == list(differing.values())
    assert {problem.expected for problem in caught.value.problems} == {"the server's 000000000000"}
    with pytest.raises(MessageRefused, match="site: expected a passed check, found a failed check"):
        here.answer(Task.TRAIN, message(Kind.WEIGHTS, tensors=weights()))
    reply = here.answer(Task.CHECK, message(extra=own))
    assert (reply.kind, reply.n, reply.tensors, reply.extra) == (Kind.METRICS, 0, {}, {})
    images = here.training_images()
    prepared = here.answer(Task.PREPARE, message())
    assert prepared.n == images > 0, "the number that its updates will report"
    assert 0 < prepared.metrics["seconds"] < time.perf_counter()


def test_site_without_personal_part_refuses_tasks(node):
    here = node(replace(ALIKE, train={**CLIENT, "personal": ["final_conv.*"]}))
    for task in (Task.TRAIN, Task.EVALUATE):
        with pytest.raises(MessageRefused, match="network: expected this site's own, found none; start the run again"):
            here.answer(task, message())


def test_own_network_requires_start_weights_or_state(node):
    here = node(OWN)
    with pytest.raises(MessageRefused, match="network: expected this site's own, found none; start the run again"):
        here.answer(Task.TRAIN, message(extra={"purpose": "distil"}))
    start = {name: tensor.clone() for name, tensor in here.client.trainer.network.state_dict().items()}
    here.answer(Task.PREPARE, message(Kind.WEIGHTS, tensors=start))
    assert here.answer(Task.TRAIN, message(extra={"purpose": "distil"})).kind == Kind.SOFT_MASKS
    again = node(OWN)
    again.load_state_dict(here.state_dict())
    assert again.answer(Task.TRAIN, replace(message(extra={"purpose": "distil"}), round=1)).round == 1


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"client_algorithm#plain#split": "test"}, 2),
        ({"client_algorithm#plain#split": "test", "client_algorithm#mask_size": 64, "public_images": 1}, 1),
        ({"client_algorithm#plain": "@validate#dataset"}, 2),
    ],
)
def test_private_image_masks_are_refused_as_public_masks(node, change, found):
    here = node(replace(OWN, train={**OWN.train, **change}))
    error = f"only this site's public images, in order, found {found} other images"
    for task in (Task.PREPARE, Task.EVALUATE):  # no word `public`: a server may leave it out
        with pytest.raises(MessageRefused, match=error):
            here.answer(task, message(extra={"split": "test"}))
    with pytest.raises(MessageRefused, match="network: expected this site's own, found none"):
        here.answer(Task.TRAIN, message(extra={"purpose": "distil"}))


def test_limited_public_set_is_accepted(node):
    here = node(replace(OWN, train={**OWN.train, "public_images": 1}))
    assert len(here.client.own.algorithm.predictor.dataset) == 1


def test_site_privacy_floor_overrides_plan(node):
    assert node(floor=PrivacyFloor(3)).release.privacy.least_images == 3
    here, own = node(floor=PrivacyFloor(1000)), own_fingerprints(ALIKE, *fingerprints(node()))
    with pytest.raises(MessageRefused, match=r"expected at least 1000 training images .*, found fewer"):
        here.answer(Task.CHECK, message(extra=own))
    with pytest.raises(MessageRefused, match="expected noise, as the site file sets epsilon, found none"):
        node(floor=PrivacyFloor(epsilon=2.0))


@pytest.mark.parametrize(("more", "images"), [({}, 2), ({"volume_n": 1}, 3)])
def test_missed_lesion_is_not_calibrated_except_for_slices(node, monkeypatch, more, images):
    here, rows = node(), [{"estimate": 0.5, "dice": 0.5}] * 2 + [{"estimate": 0.75, "dice": 0.0, "empty": "prediction"}]
    client = SimpleNamespace(scored_partially=False, scores={"validation": rows})
    scored = SimpleNamespace(client=client, answer=lambda task, received: replace(received, n=3, metrics=more))
    monkeypatch.setattr(here, "_client_site", lambda: scored)
    sent = here._evaluate(message(extra={"split": "validation"})).metrics
    assert sum(value for name, value in sent.items() if name.startswith("quality_images_")) == images


def test_site_requires_adapter_of_current_run(node, tmp_path, monkeypatch):
    fake_sam(tmp_path, monkeypatch)
    plan, teachers = replace(ALIKE, rounds=1, variant="samfed"), {}
    for run in ("first", "second"):  # of one plan, such as a first and a second generation
        request = sent(tmp_path, fitted(name=run))
        node(plan, run=run).answer(Task.PREPARE, request)
        teachers[run] = request.extra["teacher"]
    assert {run: node(plan, run=run).teacher.sha256 for run in teachers} == teachers, "also where they start again"
    with pytest.raises(MessageRefused, match="teacher: expected the server's adapter, found none"):
        node(replace(plan, rounds=2)).answer(Task.TRAIN, message(Kind.WEIGHTS, tensors=weights()))
    with pytest.raises(MessageRefused, match="teacher: expected a teacher, found no teacher in this plan"):
        node().answer(Task.EVALUATE, message(extra={"split": "test", "model": "teacher"}))


def test_audit_folder_name_is_escaped(small_federation, site_lists, tmp_path):
    plan = replace(ALIKE, sites={"../../a/b": {}, "site-2": {}}, rounds=3)
    home = paths(small_federation, site_lists["site-1"], tmp_path / "home")
    release = Site("../../a/b", plan, home).release
    assert (release.rounds, release.least_seen, release.privacy.least_images) == (3, 1, 1)
    folder = release.audit.path.parent
    assert folder == home.output_dir / "sites" / folder.name
    assert folder.name == "..%2F..%2Fa%2Fb"


def test_answers_pass_release_filter_last(node):
    here, received = node(), message()
    here.release = MagicMock(wraps=here.release, return_value=message(metrics={}))
    assert here.answer(Task.PREPARE, received).metrics == {}
    assert here.release.call_args.args[:2] == (Task.PREPARE, received)
    here.release.require_statistics.assert_called_once_with()  # of weights; before anything is trained


def test_plain_client_has_no_preparation_and_no_state():
    worker = ClientAlgoSite("a", FixedClient("a"))
    reply = worker.answer(Task.PREPARE, Message(Kind.WEIGHTS, "a", 0, 1, tensors=weights()))
    assert (reply.kind, reply.n, reply.tensors) == (Kind.METRICS, 0, {})
    assert worker.state_dict() == {}
