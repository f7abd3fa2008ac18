"""The release filter: what may leave in each kind of message, and refusals that repeat nothing."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import Dataset
from torch.utils.data import RandomSampler, Subset

from samfed_monai.config.method import Method
from samfed_monai.core.errors import Refused
from samfed_monai.handlers import EndlessSampler
from samfed_monai.networks import SamNetwork, build_sam, split_keys
from samfed_monai.networks.key_patterns import KeySplit
from samfed_monai.privacy import Allowed, Privacy, ReleaseFilter, read_audit
from samfed_monai.privacy.accounting import PrivacyLedger
from samfed_monai.privacy.allowed import (
    _different_images,
    allowed_of,
    allowed_weights,
    require_public_images,
    withheld_reason,
)
from samfed_monai.privacy.rules import DifferentialPrivacy, SecureAggregation
from samfed_monai.protocol import Kind, Message, MessageRefused, Task, to_bytes
from tests.federation.toys import FilteredSite, ToyNet, toy_algo, toy_weights
from tests.federation.unlike import unlike_algo

WEIGHTS = {"w": torch.tensor([1.0, 2.0]), "bn.running_mean": torch.tensor([9.0]), "count": torch.tensor(3)}
MASKS = torch.full((2, 1, 2, 2), 128, dtype=torch.uint8)
ALLOWED = Allowed({Kind.WEIGHTS: WEIGHTS, Kind.SOFT_MASKS: {"masks": MASKS}}, learned={"w"})
SECRET = "Jane Doe 1961"


def request(**fields) -> Message:
    return Message(**{"kind": Kind.WEIGHTS, "site": "Basel", "round": 3, "rounds": 9, "seed": 7, **fields})


def reply(**fields) -> Message:
    return request(**{"n": 40, "tensors": dict(WEIGHTS), "metrics": {"seconds": 2.0, "term_sam_kd": 0.5}, **fields})


def release(**options) -> ReleaseFilter:
    return ReleaseFilter("Basel", allowed=lambda: ALLOWED, **options)


def numbers(**fields) -> Message:
    return reply(**{"kind": Kind.METRICS, "tensors": {}, "metrics": {"dice": 0.8}, **fields})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"kind": SECRET}, "message -> kind: expected a kind on the allow-list, found an unknown kind"),
        ({"kind": Kind.PROTOTYPES}, "message -> kind: expected one of metrics, soft_masks, weights, found a kind that"),
        ({"kind": Kind.METRICS}, "a kind that may not leave the site"),
        ({"tensors": {**WEIGHTS, SECRET: MASKS}}, "only the 3 tensors on the allow-list, found 1 in addition"),
        ({"tensors": {"w": WEIGHTS["w"]}}, "message -> tensors: expected all of the allow-list, found 2 missing"),
        ({"tensors": {**WEIGHTS, "w": torch.zeros(1961)}}, "message -> w: expected shape (2,), found another shape"),
        ({"tensors": {**WEIGHTS, "w": torch.ones(2).double()}}, "w: expected torch.float32, found another dtype"),
        ({"tensors": {**WEIGHTS, "w": SECRET}}, "message -> w: expected a plain tensor, found another type"),
        ({"tensors": {**WEIGHTS, "w": torch.zeros(2).to_sparse()}}, "a plain tensor"),
        (
            {"kind": Kind.SOFT_MASKS, "tensors": {"masks": MASKS - 1}},
            "message -> masks: expected the site's own masks of the public images, found other values",
        ),
        ({"metrics": {SECRET: 1.0}}, "a name that is not on the list"),
        ({"metrics": {"dice": SECRET}}, "message -> metrics -> dice: expected a finite number, found str"),
        ({"metrics": {f"term_a{n}": 0.0 for n in range(161)}}, "metrics: expected at most 160, found too many"),
        ({"extra": {SECRET: SECRET}}, "message -> extra: expected no words from a site, found words"),
        ({"site": SECRET}, "message -> site: expected the value of the request, found another value"),
        ({"round": 1961}, "message -> round"),
        ({"rounds": 1961}, "message -> rounds"),
        ({"seed": 1961}, "message -> seed"),
        ({"version": SECRET}, "message -> version"),
        ({"n": SECRET}, "message -> n"),
        ({"n": -1961}, "message -> n: expected a whole number >= 0, found another value"),
        (
            {"n": 4},
            "message -> n: expected tensors learned from at least 5 images, found fewer; "
            "merge with another site, or agree on a lower least_images",
        ),
    ],
)
def test_fault_55_58_59_unlisted_content_is_refused_not_repeated(fields, problem):
    with pytest.raises(MessageRefused) as error:
        release()(Task.TRAIN, request(), reply(**fields))
    assert problem in str(error.value)
    assert SECRET not in str(error.value)
    assert "1961" not in str(error.value)


def test_only_trained_tensors_for_this_site_are_released():
    with pytest.raises(MessageRefused) as error:
        release()(Task.TRAIN, request(), reply(seed=1, n=-1, tensors={SECRET: MASKS}))
    assert len(error.value.problems) == 4
    with pytest.raises(MessageRefused, match="tensors: expected metrics only, found tensors without training"):
        release()(Task.EVALUATE, request(), reply())
    with pytest.raises(MessageRefused, match="site: expected the sender's own name, found another site's name"):
        release()(Task.TRAIN, request(site="Bern"), reply(site="Bern"))
    with pytest.raises(MessageRefused, match="a Message"):
        release()(Task.TRAIN, request(), SECRET)


@pytest.mark.parametrize(
    ("leaves", "answer", "found"),
    [
        (("scores",), numbers(), None),
        (("scores",), reply(), "scores, found weights"),
        (("scores",), reply(kind=Kind.SOFT_MASKS, tensors={"masks": MASKS.clone()}), "scores, found predictions"),
        (("weights",), numbers(), "weights, found scores"),
        (("weights",), reply(), "weights, found scores"),  # the mean of a loss term
        (("weights",), reply(metrics={"seconds": 2.0, "iterations": 3}), None),
        ((), numbers(), "nothing, found scores"),
        ((), numbers(n=0, metrics={}), None),
        (None, reply(), None),
        (None, reply(kind=Kind.SOFT_MASKS, tensors={"masks": MASKS.clone()}), None),
    ],
)
def test_undeclared_content_is_refused_with_method_and_place(leaves, answer, found):
    gate = release(method=Method("quiet", leaves_site=leaves, where="quiet.json -> _method#leaves_site"))
    task = Task.TRAIN if answer.tensors else Task.EVALUATE
    if found is None:
        assert gate(task, request(), answer) is answer
    else:
        with pytest.raises(MessageRefused) as error:
            gate(task, request(), answer)
        assert [str(problem) for problem in error.value.problems] == [
            f"quiet.json -> _method#leaves_site: expected what quiet declares: {found}; "
            "add it there if the method should send it"
        ]


def test_declaration_and_allow_list_must_both_permit():
    method, adapter = Method("loud", leaves_site=("weights", "predictions", "prototypes")), {"w": WEIGHTS["w"]}
    with pytest.raises(MessageRefused, match="a kind that may not leave the site"):
        release(method=method)(Task.TRAIN, request(), reply(kind=Kind.PROTOTYPES))
    gate = ReleaseFilter("Basel", allowed=lambda: Allowed({Kind.ADAPTER: adapter}), method=method)
    with pytest.raises(MessageRefused, match="found adapter"):
        gate(Task.TRAIN, request(), reply(kind=Kind.ADAPTER, tensors=adapter))


def test_fault_59_scores_of_too_few_images_are_withheld():
    held = release()(Task.EVALUATE, request(), numbers(n=4, metrics={"dice": 0.8, "empty_both": 1, "seconds": 2.0}))
    assert (held.n, held.metrics, held.extra) == (0, {"seconds": 2.0}, {"withheld": "5"})
    none = release()(Task.EVALUATE, request(), numbers(n=0, metrics={"empty_both": 0, "seconds": 2.0}))
    assert (none.n, none.metrics, none.extra) == (0, {"seconds": 2.0}, {}), "no images are not withheld"
    assert [withheld_reason(each) for each in (held, none)] == ["withheld: fewer than 5 images", "no images"]
    assert release()(Task.EVALUATE, request(), numbers(n=5)).metrics == {"dice": 0.8}
    assert release(privacy=Privacy(least_images=4))(Task.EVALUATE, request(), numbers(n=4)).extra == {}


def test_every_outcome_is_written_to_audit(tmp_path):
    gate = release(folder=tmp_path / "Basel")
    with pytest.raises(MessageRefused):
        gate(Task.TRAIN, request(), reply(tensors={SECRET: MASKS}))
    gate(Task.EVALUATE, request(), numbers(n=3))
    gate.write_failure(Task.TRAIN, request(), FileNotFoundError(2, "No such file", f"/data/{SECRET}.png"))
    # numbers by name come before those of classes, and as many as terms may leave do
    gate(Task.EVALUATE, request(), numbers(metrics={"dice_class_1": 0.5, "seconds": 1.0}))
    gate(Task.TRAIN, request(), reply(metrics={f"term_a{number}": 0.0 for number in range(64)}))
    under_masks = release(folder=tmp_path / "Basel", privacy=Privacy(secure_aggregation=SecureAggregation()))
    under_masks(Task.TRAIN, request(), reply())
    under_masks(Task.EVALUATE, request(), numbers())
    path = tmp_path / "Basel" / "audit.jsonl"
    refused, held, failed, named, many, masked, sent = read_audit(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (refused["outcome"], len(refused["problems"])) == ("refused", 2)
    assert (held["n"], held["withheld"], held["metrics"]) == (0, ["withheld"], [])
    assert failed["problems"] == ["FileNotFoundError (No such file or directory)"], "fault 58"
    assert failed["outcome"] == "failed"
    assert (named["metrics"], len(many["metrics"])) == (["seconds", "dice_class_1"], 64)
    assert [line["outcome"] for line in (masked, sent)] == ["masked", "sent"]
    assert SECRET not in path.read_text()


def test_unexpected_failure_of_filter_is_written_to_audit(tmp_path):
    gate = noisy(tmp_path)
    gate.ledger = SimpleNamespace(enter=Mock(side_effect=OSError(28, "No space left", f"/data/{SECRET}")))
    with pytest.raises(OSError, match="No space left"):
        gate(Task.TRAIN, request(tensors=RECEIVED), reply())
    [line] = read_audit(tmp_path / "audit.jsonl")
    assert (line["outcome"], line["problems"][0][:33]) == ("failed", "OSError (No space left on device)")


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_message_without_audit_line_is_not_sent(tmp_path):
    (tmp_path / "audit.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        release(folder=tmp_path)(Task.TRAIN, request(), reply())


RECEIVED = {"w": torch.tensor([1.0, 0.0]), "bn.running_mean": torch.tensor([4.0]), "count": torch.tensor(1)}


def noisy(folder=None, **more) -> ReleaseFilter:
    settings = DifferentialPrivacy(**{"clip": 1.0, "noise_multiplier": 0.5, **more})
    privacy = Privacy(differential_privacy=settings)
    return release(privacy=privacy, folder=folder, noise=np.random.default_rng(0).standard_normal)


def test_weights_get_seeded_noise_and_statistics_are_kept(tmp_path):
    sent = noisy(tmp_path)(Task.TRAIN, request(tensors=RECEIVED), reply())
    drawn = np.random.default_rng(0).standard_normal(2)
    # the update (0, 2) is clipped to (0, 1); the noise has a deviation of 2 * 1.0 * 0.5
    assert sent.tensors["w"].tolist() == pytest.approx([1 + drawn[0], 1 + drawn[1]], rel=1e-6)
    assert sent.tensors["bn.running_mean"].tolist() == [4.0]
    assert sent.tensors["count"].item() == 1
    assert sent.metrics == {"seconds": 2.0, "releases": 1}  # means of the terms are not covered by the noise
    assert torch.equal(WEIGHTS["w"], torch.tensor([1.0, 2.0]))
    (line,) = read_audit(tmp_path / "audit.jsonl")
    settings = {"clip": 1.0, "noise_multiplier": 0.5, "delta": 1e-5, "epsilon": None}
    assert line["noise"] == {"deviation": 1.0, **settings, "release": 1}


def test_releases_are_counted_across_restarts(tmp_path):
    noisy(tmp_path)(Task.TRAIN, request(tensors=RECEIVED), reply())
    with (tmp_path / "audit.jsonl").open("a") as stream:
        stream.write('{"time": "2026')
    assert noisy(tmp_path)(Task.TRAIN, request(tensors=RECEIVED), reply()).metrics["releases"] == 3
    assert noisy(tmp_path).releases.total() == 3
    with pytest.raises(Refused, match="line 2: expected a JSON object"):
        read_audit(tmp_path / "audit.jsonl")


def test_noise_refuses_unsupported_kinds_and_passes_scores():
    prototypes = {"prototypes": torch.zeros(2, 3), "counts": torch.zeros(2)}
    gate = noisy()
    gate.allowed = lambda: Allowed({Kind.PROTOTYPES: prototypes})
    with pytest.raises(MessageRefused, match=r"expected weights or soft masks.*found prototypes"):
        gate(Task.TRAIN, request(), reply(kind=Kind.PROTOTYPES, tensors=prototypes))
    assert noisy()(Task.EVALUATE, request(), numbers()).metrics == {"dice": 0.8}
    assert noisy()(Task.TRAIN, request(), numbers(metrics={"seconds": 1.0, "loss": 2.0})).metrics == {"seconds": 1.0}


def test_release_beyond_budget_is_refused(tmp_path):
    gate = noisy(tmp_path, epsilon=20.0)  # one release at 0.5 is some 10.6, two are more than 16
    gate(Task.TRAIN, request(tensors=RECEIVED), reply())
    gate(Task.TRAIN, request(tensors=RECEIVED), reply())
    with pytest.raises(MessageRefused, match=r"privacy budget: expected at most 20, found epsilon 2\d"):
        gate(Task.TRAIN, request(tensors=RECEIVED), reply())
    assert gate.releases == {0.5: 2}


def test_fault_85_new_run_name_gives_no_new_budget(tmp_path):
    for number in (1, 2, 3):
        gate = noisy(tmp_path / f"run-{number}" / "sites" / "Bern")
        gate.ledger = PrivacyLedger(tmp_path / "cache", "Bern", 20.0, run=f"run-{number}")
        if number < 3:
            gate(Task.TRAIN, request(tensors=RECEIVED), reply())
    expected = r"at most 20, the limit in the site file, found epsilon 2\d.* over all runs"
    with pytest.raises(MessageRefused, match=expected):
        gate(Task.TRAIN, request(tensors=RECEIVED), reply())
    assert not gate.releases, "a refused reply is not sent"
    assert [json.loads(line)["run"] for line in gate.ledger.path.read_text().splitlines()] == ["run-1", "run-2"]


def test_soft_masks_get_noise_around_received_masks(tmp_path):
    received, masks = {"masks": torch.full_like(MASKS, 100)}, {"masks": MASKS.clone()}
    gate = noisy(tmp_path, clip=1e-6, noise_multiplier=1e-6)
    message = request(kind=Kind.SOFT_MASKS, tensors=received)
    sent = gate(Task.TRAIN, message, reply(kind=Kind.SOFT_MASKS, tensors=masks))
    assert torch.equal(sent.tensors["masks"], received["masks"])  # clipped to nothing, hardly any noise
    assert (sent.tensors["masks"].dtype, sent.n) == (torch.uint8, 40)
    [line] = read_audit(tmp_path / "audit.jsonl")
    assert line["noise"]["deviation"] == pytest.approx(2e-12 * 2**0.5, rel=1e-9, abs=0)  # of two masks


def keeping(*personal: str) -> Any:
    """A client with a bundle that keeps matching weights at its site."""
    client = toy_algo()
    client.train_workflow.parser["personal"] = list(personal)
    return client


def test_allow_list_follows_client_algorithm_and_network():
    allowed, kept = allowed_of(toy_algo()), allowed_of(keeping("3.*"))
    assert allowed.like.keys() == {Kind.WEIGHTS}
    assert allowed.like[Kind.WEIGHTS].keys() == toy_weights().keys()
    assert allowed.learned == {f"{layer}.{part}" for layer in "013" for part in ("weight", "bias")}
    assert kept.like[Kind.WEIGHTS].keys() == toy_weights().keys() - {"3.weight", "3.bias"}
    with pytest.raises(Refused, match=r"found no name like '4\.\*'"):
        allowed_of(keeping("4.*"))
    assert allowed_of(object()).like == {}
    masks = allowed_of(unlike_algo("site-1"))
    assert masks.like.keys() == {Kind.SOFT_MASKS}
    assert masks.like[Kind.SOFT_MASKS]["masks"].shape == (6, 1, 8, 8)
    assert allowed_of(unlike_algo("site-1", exchange="weights")).like.keys() == {Kind.WEIGHTS}
    assert allowed_of(unlike_algo("site-1", exchange="none")).like == {}


def test_fault_56_own_network_is_not_sent_on_request():
    client = unlike_algo("site-1")
    site = FilteredSite("site-1", client, ReleaseFilter("site-1", allowed=lambda: allowed_of(client)))
    request = Message(Kind.WEIGHTS, "site-1", 0, 1, tensors=toy_weights(), extra={"purpose": "replace"})
    with pytest.raises(MessageRefused, match="expected one of metrics, soft_masks, found a kind that may not leave"):
        site.answer(Task.TRAIN, request)


class Declared(ToyNet):
    """A network that declares its shared weights; its batch norm is frozen."""

    def key_split(self) -> KeySplit:
        return split_keys(self.state_dict(), shared=("0.*",), personal=("3.*",))


def test_fault_56_declared_shared_weights_define_allow_list():
    assert allowed_weights(Declared()).like[Kind.WEIGHTS].keys() == {"0.weight", "0.bias"}
    assert allowed_weights(Declared(), personal=["0.bias"]).like[Kind.WEIGHTS].keys() == {"0.weight"}
    with torch.device("meta"):  # the shapes of ViT-B
        network = SamNetwork(build_sam("vit_b", size=256), 256)
    allowed = allowed_weights(network).like[Kind.WEIGHTS]
    assert allowed.keys() == set(network.key_split().shared)
    assert sum(4 * tensor.numel() for tensor in allowed.values()) == 12 * 2 * 4 * (768 + 768) * 4


PUBLIC = [{"image": f"/data/{name}.png", "image_sha256": name * 64, "id": name} for name in "abcd"]
PRIVATE = {"image": "/data/private.png", "image_sha256": "9" * 64}
#: A private file under the hash of a public one: a plan may write down records, too.
FORGED = {**PUBLIC[1], "image": PRIVATE["image"]}


def required(dataset: Any) -> None:
    require_public_images(SimpleNamespace(predictor=SimpleNamespace(dataset=dataset)), lambda: PUBLIC)


def test_public_images_in_order_are_accepted():
    required(Dataset(PUBLIC))
    required(Subset(Subset(Dataset(PUBLIC), [0, 2, 3]), [1, 2]))
    required(Subset(Dataset([PRIVATE, *PUBLIC]), [1, 2]))
    with pytest.raises(MessageRefused, match="found 1 other images"):
        required(Subset(Dataset([PRIVATE, *PUBLIC]), [0, 1]))
    require_public_images(object(), lambda: 1 / 0)


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([PRIVATE], "1 other images"),
        ([*PUBLIC, PRIVATE], "1 other images"),
        ([FORGED, PRIVATE], "2 other images"),
        ([{**PUBLIC[0], "image": ["/data/a.png"]}, {}], "2 other images"),
        ([{**PUBLIC[0], "image": np.zeros(2)}], "1 other images"),  # which is equal to a path in no single way
        (PUBLIC[::-1], "another order"),
        ([PUBLIC[0], PUBLIC[0]], "another order"),
    ],
)
def test_other_images_are_refused_by_count(records, found):
    with pytest.raises(MessageRefused) as refused:
        required(Dataset(records))
    [problem] = refused.value.problems
    assert str(problem) == (
        f"images of the exchanged masks: expected only this site's public images, in order, found {found}; "
        "do not override the data of client_algorithm#plain"
    )


@pytest.mark.parametrize("dataset", [object(), Dataset([1, 2]), SimpleNamespace(data=iter(PUBLIC))])
def test_dataset_without_records_is_refused(dataset):
    with pytest.raises(MessageRefused) as error:
        required(dataset)
    assert str(error.value.problems[0]) == (
        "images of the exchanged masks: expected a dataset with a list of records, found a "
        f"{type(dataset).__name__}; do not override client_algorithm#plain"
    )


@pytest.mark.parametrize(
    ("batch", "momentum", "least", "behind"),
    [
        (1, 1.0, 5, "1"),
        (4, 1.0, 5, "4"),
        (1, 0.25, 5, "4"),
        (1, 2.0, 5, "0.5"),
        (None, 1.0, 2, "1"),
        (5, 1.0, 5, None),
        (1, 0.1, 5, None),
        (1, 0.0, 5, None),
    ],
)
def test_fault_86_running_statistics_need_minimum_images(batch, momentum, least, behind):
    allowed = replace(ALLOWED, batch=batch, momentum=momentum)
    gate = ReleaseFilter("Basel", allowed=lambda: allowed, privacy=Privacy(least))
    if behind is None:
        gate.require_statistics()
        assert gate(Task.TRAIN, request(), reply()).tensors
        return
    for refused in (gate.require_statistics, partial(gate, Task.TRAIN, request(), reply())):
        with pytest.raises(MessageRefused) as error:
            refused()
        assert [str(problem) for problem in error.value.problems] == [
            f"running statistics: expected averages over at least {least} images (privacy#least_images), found "
            f"averages over {behind}; increase batch_size, or decrease the momentum of normalisation layers"
        ]


def test_fault_86_momentum_and_batch_come_from_site():
    algo = toy_algo()
    found = allowed_of(algo)
    assert (found.momentum, found.batch) == (0.1, 2)
    algo.trainer.network[1].momentum = 1.0
    assert allowed_of(algo).momentum == 1.0
    algo.trainer.network[1].momentum = None  # the average over all batches, of which there may be one
    assert allowed_of(algo).momentum == 1.0
    assert allowed_of(keeping("1.*")).momentum == 0.0, "unsent layers are not limited"


@pytest.mark.parametrize(
    ("task", "what", "settings"),
    [
        (Task.EVALUATE, "evaluations", Privacy()),
        (Task.TRAIN, "trainings", Privacy()),
        (Task.TRAIN, "trainings", Privacy(secure_aggregation=SecureAggregation())),
    ],
)
def test_faults_87_and_96_answers_per_round_are_limited(tmp_path, task, what, settings):
    make, other = (numbers, reply) if task == Task.EVALUATE else (reply, numbers)
    for _ in range(31):
        release(folder=tmp_path, privacy=settings)(task, request(), make())  # each time a site that was started again
    here = release(folder=tmp_path, privacy=settings)
    here(task, request(), make())
    for again in (here, release(folder=tmp_path, privacy=settings)):
        with pytest.raises(MessageRefused) as error:
            again(task, request(), make())
        assert [str(problem) for problem in error.value.problems] == [
            f"{what}: expected at most 32 in a round, found one more; start a new run with another name"
        ]
    here(task, request(round=4), make(round=4))
    here(Task.TRAIN if task == Task.EVALUATE else Task.EVALUATE, request(), other())


@pytest.mark.parametrize("fields", [{"round": 9}, {"round": -1}, {"rounds": 10_000}])
def test_fault_87_unplanned_round_is_refused(fields):
    release(rounds=9)(Task.EVALUATE, request(), numbers())
    with pytest.raises(MessageRefused, match="round: expected one of 9 rounds, found a round outside the plan"):
        release(rounds=9)(Task.EVALUATE, request(**fields), numbers(**fields))


def test_site_minimum_applies_to_images_trained_on():
    answer, allowed = reply(metrics={"iterations": 3}), replace(ALLOWED, batch=2)
    ReleaseFilter("Basel", allowed=lambda: allowed, least_seen=6)(Task.TRAIN, request(), answer)
    with pytest.raises(MessageRefused, match="found 3;"):  # of a batch that is not known, one image counts
        release(least_seen=4)(Task.TRAIN, request(), answer)
    with pytest.raises(MessageRefused) as error:
        ReleaseFilter("Basel", allowed=lambda: allowed, least_seen=7)(Task.TRAIN, request(), answer)
    assert [str(problem) for problem in error.value.problems] == [
        "round: expected at least 7 images in a round of training (set in the site file), found 6; "
        "increase local_steps or batch_size"
    ]
    means = numbers(metrics={"iterations": 3, "term_supervised": 0.4})  # as of ``local_only``, which keeps its weights
    for least, left in ((6, means), (7, numbers(metrics={"iterations": 3}, extra={"withheld": "7"}))):
        gate = ReleaseFilter("Basel", allowed=lambda: allowed, least_seen=least, privacy=Privacy(least_images=least))
        assert gate(Task.TRAIN, request(), means) == left


def test_oversized_header_is_refused():
    like = {"n" * 1024**2: torch.zeros(3)}  # a mebibyte is for names and numbers
    answer, most = reply(tensors=like, metrics={}), 1024**2 + 12
    with pytest.raises(MessageRefused) as error:
        ReleaseFilter("Basel", allowed=lambda: Allowed({Kind.WEIGHTS: like}))(Task.TRAIN, request(), answer)
    size = len(to_bytes(answer))
    assert [str(each) for each in error.value.problems] == [
        f"message: expected at most {most} bytes, found {size} bytes"
    ]


def test_audit_lines_have_all_fields(tmp_path):
    here = release(folder=tmp_path)
    here(Task.TRAIN, request(), reply())
    here.write_secure_step(Task.KEYS, request(kind=Kind.SECURE), reply(kind=Kind.SECURE, tensors={}, metrics={}))
    here.write_split(KeySplit(shared=("a",), personal=(), frozen=()))  # all of it: nothing to say
    here.write_split(KeySplit(shared=("b", "a"), personal=("p",), frozen=()))
    here.write_split(KeySplit(shared=("b", "a"), personal=(), frozen=("f", "g")))
    sent, step, *declared = ({**line, "time": ""} for line in read_audit(tmp_path / "audit.jsonl"))
    line = {"time": "", "site": "Basel", "round": 3, "outcome": "sent", "n": 40, "withheld": [], "noise": None}

    def names(*given: str) -> str:
        return hashlib.sha256("\n".join(given).encode()).hexdigest()

    weights = {"kind": "weights", "tensors": 3, "names_sha256": names("bn.running_mean", "count", "w")}
    metrics = ["seconds", "term_sam_kd"]
    assert sent == {**line, **weights, "task": "train", "bytes": len(to_bytes(reply())), "metrics": metrics}
    size = len(to_bytes(reply(kind=Kind.SECURE, tensors={}, metrics={})))
    nothing = {"kind": "secure", "tensors": 0, "names_sha256": names(), "bytes": size, "metrics": []}
    assert step == {**line, **nothing, "task": "keys"}
    common = {"time": "", "site": "Basel", "round": None, "task": None, "outcome": "declared", "kind": "weights"}
    common |= {"tensors": 2, "names_sha256": names("a", "b"), "shared": 2}
    assert declared == [{**common, "personal": 1, "frozen": 0}, {**common, "personal": 0, "frozen": 2}]


def test_smallest_batch_covers_trainer_and_handler_loaders():
    """In any place of a plan."""

    class Stream:
        def __init__(self, size: int) -> None:
            self.loader = SimpleNamespace(batch_size=size, sampler=EndlessSampler(range(9)))

        def __call__(self) -> None: ...

        def started(self) -> None: ...

    algo = toy_algo()
    algo.trainer.add_event_handler(Events.ITERATION_STARTED, Stream(4))
    assert allowed_of(algo).batch == 2, "that of the trainer's own loader"
    algo.trainer.add_event_handler(Events.STARTED, Stream(1).started)
    assert allowed_of(algo).batch == 1


@pytest.mark.parametrize(
    ("loader", "images"),
    [
        ({}, None),
        ({"batch_size": 4}, None),
        ({"sampler": [1]}, None),
        ({"batch_size": 4, "sampler": range(10)}, 2),  # of the last batch
        ({"batch_size": 4, "sampler": range(10), "drop_last": True}, 4),
        ({"batch_size": 5, "sampler": range(10)}, 5),
        ({"batch_size": 4, "sampler": EndlessSampler(range(9))}, 4),  # always full
        ({"batch_size": 4, "sampler": EndlessSampler(range(3))}, 3),  # of three images no four are different
        ({"batch_size": 4, "sampler": EndlessSampler(range(9), indices=[1, 2])}, 2),
        ({"batch_size": 4, "sampler": EndlessSampler(range(9), indices=[7, 7, 7])}, 1),
        # these may repeat an image
        ({"batch_size": 4, "sampler": [3] * 20}, None),
        ({"batch_size": 4, "sampler": RandomSampler(range(9), replacement=True)}, None),
    ],
)
def test_distinct_images_of_smallest_batch_are_counted(loader, images):
    assert _different_images(SimpleNamespace(**loader)) == images


def test_noise_withholds_scores_of_personal_weights():
    noised, reason = Privacy(1, DifferentialPrivacy()), "withheld: scores of the site's own network, which has no noise"
    for keeps, privacy, left in (
        (True, noised, (0, {}, reason)),
        (False, noised, (40, {"dice": 0.8}, None)),
        (True, Privacy(1), (40, {"dice": 0.8}, None)),
    ):
        gate = ReleaseFilter("Basel", allowed=lambda keeps=keeps: replace(ALLOWED, keeps_part=keeps), privacy=privacy)
        answer = gate(Task.EVALUATE, request(), numbers())
        assert (answer.n, answer.metrics, withheld_reason(answer)) == left
    assert allowed_of(toy_algo()).keeps_part is False
    assert allowed_of(keeping("1.*")).keeps_part is True
