"""FedCA: contrast and alignment by hand, the dictionary of keys, and rounds with and without contrast."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from torch import nn
from torch.nn.functional import normalize

from samfed_monai.config import find_bundle
from samfed_monai.federation.job import check_job
from samfed_monai.handlers import Guidance, Term, TermLogger, UnlabelledStream
from samfed_monai.methods import fedca
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Kind, Message, MessageRefused, Server
from samfed_monai.protocol.statistics import split_statistics, with_statistics
from tests.handlers.toy import Shown, next_round, same, toy_loader, toy_trainer, weights
from tests.methods import engine_of
from tests.methods.rounds import update

X, Y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


def test_contrastive_loss_matches_hand_computed_values():
    assert fedca.contrastive_loss(X, X, X[:0], 0.1).item() == 0
    assert fedca.contrastive_loss(X, X, Y, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert fedca.contrastive_loss(X, Y, X, 0.5).item() == pytest.approx(math.log(1 + math.exp(2)))
    both = torch.cat([X, Y])
    mean = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    assert fedca.contrastive_loss(torch.cat([X, X]), both, Y, 0.5).item() == pytest.approx(mean)
    alone = torch.tensor([[True, False]])  # the first key is of the query's own image
    assert fedca.contrastive_loss(X, X, both, 0.5, alone).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_alignment_loss_matches_hand_computed_values():
    features = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert fedca.alignment_loss(features, features).item() == 0
    assert fedca.alignment_loss(X, Y).item() == 2
    assert fedca.alignment_loss(torch.cat([X, X]), torch.cat([Y, X])).item() == 1, "the mean over images"


def test_dictionary_keeps_newest_keys_up_to_length():
    dictionary, lengths = fedca.Dictionary(5), []
    for first in range(0, 8, 2):
        dictionary.add(torch.tensor([[float(first)], [first + 1.0]]), ["a", f"b{first}"])
        lengths.append(len(dictionary.like(X)))
    assert lengths == [2, 4, 5, 5]
    assert dictionary.like(torch.zeros(1, 1)).flatten().tolist() == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert dictionary.belongs_to(["a", "b6", "c"]).int().tolist() == [[0, 1, 0, 1, 0], [0, 0, 0, 0, 1], [0] * 5]
    dictionary.add(torch.arange(9.0)[:, None], list("abcdefghi"))
    assert len(dictionary.like(X)) == 5
    assert dictionary.belongs_to(["e"]).tolist() == [[True, False, False, False, False]]
    assert fedca.Dictionary(5).belongs_to(["a", "b"]).shape == (2, 0)


def train(rounds: int, *terms):
    network = Shown(norm=True)
    handlers = [UnlabelledStream(loader=toy_loader(), guides=[]), *terms, TermLogger()]
    trainer = toy_trainer(handlers, network=network, steps=2, learning_rate=0.05)
    means = []
    for number in range(rounds):
        torch.manual_seed(number)
        next_round(trainer, number, rounds)
        means.append(dict(trainer.state.term_means))
    return weights(network), means


def test_zero_rounds_equal_training_without_term():
    assert same(train(2)[0], train(2, fedca.ContrastiveTerm(rounds=0))[0])
    assert not same(train(2)[0], train(2, fedca.ContrastiveTerm(rounds=1, weight=1.0))[0])


def test_contrast_is_active_only_in_first_rounds():
    term = fedca.ContrastiveTerm(rounds=1, queue=6, weight=1.0)
    _, means = train(2, term)
    assert {"contrast", "contrast_alignment"} <= means[0].keys()
    assert "contrast" not in means[1]
    assert len(term.dictionary.like(X)) == 0, "it begins anew with each round"


class Labels(Term):
    """A term that is bound after the contrast."""

    unlabelled = False

    def value(self, guidance, engine):
        return engine.network.head.weight.square().sum()


def test_contrast_alone_trains_only_encoder():
    start = weights(Shown(norm=True))
    alone, _ = train(1, fedca.ContrastiveTerm(rounds=1, alone=True, weight=1.0), Labels(name="labels"))
    assert all(torch.equal(alone[name], start[name]) for name in ("head.weight", "head.bias"))
    assert not torch.equal(alone["encoder.0.weight"], start["encoder.0.weight"])
    beside, _ = train(1, fedca.ContrastiveTerm(rounds=1, weight=1.0), Labels(name="labels"))
    assert not torch.equal(beside["head.weight"], start["head.weight"])
    after, _ = train(2, fedca.ContrastiveTerm(rounds=1, alone=True, weight=1.0), Labels(name="labels"))
    assert not torch.equal(after["head.weight"], start["head.weight"]), "the labels' rounds follow"


@pytest.mark.parametrize("alone", [False, True])
def test_schedule_scales_contrast_with_and_without_other_terms(alone):
    losses = []
    for options in ({}, {"schedule": "gaussian_ramp", "fraction": 1.0}):
        term = fedca.ContrastiveTerm(rounds=1, alone=alone, weight=2.0, **options)
        handlers = [UnlabelledStream(loader=toy_loader(), guides=[]), term, TermLogger()]
        trainer = toy_trainer(handlers, network=Shown(norm=True), steps=1, learning_rate=0.0)
        torch.manual_seed(0)
        next_round(trainer, 0, 2)
        supervised = 0.0 if alone else trainer.state.term_means["supervised"]
        losses.append(float(trainer.state.output[0]["loss"]) - supervised)
    assert losses[1] == pytest.approx(math.exp(-5) * losses[0], rel=1e-3)


def test_moving_average_lags_student_and_base_is_round_start():
    network, term = Shown(norm=True), fedca.ContrastiveTerm(decay=0.75, weight=1.0)
    trainer = toy_trainer([UnlabelledStream(loader=toy_loader(), guides=[]), term], network=network, learning_rate=0.5)
    seen: list[torch.Tensor] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(weights(network)["encoder.0.weight"]))
    for number in range(2):
        seen.clear()
        start = average = weights(network)["encoder.0.weight"]
        next_round(trainer, number, 3)
        assert len(seen) == 3
        for now in seen:
            assert (now - start).abs().max() > 1e-2
            average = 0.75 * average + 0.25 * now
        torch.testing.assert_close(weights(term._average.network)["encoder.0.weight"], average)
        assert torch.equal(weights(term._base.network)["encoder.0.weight"], start)


def test_contrast_uses_averaged_keys_and_shared_dictionary():
    network, other = Shown(norm=True), Shown(norm=True)
    with torch.no_grad():
        other.encoder[0].weight.mul_(-1.0)
    term = fedca.ContrastiveTerm(temperature=0.5, alignment=2.0)
    term._average.sync(other)
    term._base.sync(other)

    def features(made: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return normalize(made.encoder(images).mean(dim=(2, 3)), dim=1)

    seen = X[:0].new_zeros(0, 8)
    for step in range(3):
        strong, weak, public = torch.rand(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        engine = engine_of(network, iteration=step + 1, batch={"image": public})
        batch = {"image": weak, "image_strong": strong, "image_sha256": [f"{step}a", f"{step}b"]}
        if step == 2:
            term.shared = normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(4)), dim=1)
        value = term.value(Guidance(student=X, weak_view=X, guides={}, batch=batch), engine)
        queries, keys = features(network.train(), strong), features(other.eval(), weak).detach()
        aligned = fedca.alignment_loss(features(network.train(), public), features(other.eval(), public))
        against = seen if step < 2 else torch.cat([seen, term.shared])
        torch.testing.assert_close(value, fedca.contrastive_loss(queries, keys, against, 0.5) + 2.0 * aligned)
        torch.testing.assert_close(engine.state.terms["contrast_alignment"], aligned.detach())
        seen = torch.cat([seen, keys])
    assert len(term.dictionary.like(X)) == 6


def given(images: torch.Tensor, *hashes: str, **options) -> Guidance:
    batch = {"image": images, "image_strong": images, **({"image_sha256": list(hashes)} if hashes else {})}
    return Guidance(student=X, weak_view=X, guides={}, batch=batch, **options)


def test_keys_of_same_image_are_excluded_from_negatives():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    network, term = Shown(norm=True), fedca.ContrastiveTerm(alignment=0)
    term._average.sync(network)
    engine = engine_of(network, batch={"image": images})
    assert term.value(given(images, "a", "a"), engine) == 0, "there are no keys yet"
    assert term.value(given(images, "a", "a"), engine) == 0, "and these are all its own"
    assert term.value(given(images, "a", "b"), engine) > 0
    assert term.value(given(images), engine) > 0, "these come from unknown images"


IMAGES = [{"at": at} for at in range(11)]


def shared(**options: Any) -> fedca.SharedFeatures:
    def transform(record: dict[str, int]) -> dict[str, torch.Tensor]:
        return {"image": torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(record["at"]))}

    term, data = SimpleNamespace(shared=None), SimpleNamespace(records={"unlabelled": IMAGES}.__getitem__)
    return fedca.SharedFeatures(data=data, transform=transform, network=Shown(norm=True), term=term, **options)  # type: ignore[arg-type]


def test_shared_features_are_group_means_in_eval_mode():
    statistic = shared(entries=4)
    found = statistic.measured(5)["features"]
    assert found.shape == statistic.like()["features"].shape == (4, 8)
    assert statistic.network.training, "as it was before"
    images = torch.stack([statistic.transform(record)["image"] for record in IMAGES])
    with torch.no_grad():
        features = normalize(statistic.network.eval().encoder(images).mean(dim=(2, 3)), dim=1)
    torch.testing.assert_close(found[0] * 6 + found[1] * 5, features.sum(dim=0))


def test_received_features_are_normalised_and_validated():
    statistic = shared()
    statistic.receive({"features": torch.full((3, 8), 1e6)})
    torch.testing.assert_close(statistic.term.shared, torch.full((3, 8), 8**-0.5))
    statistic.receive({})
    assert statistic.term.shared is None
    with pytest.raises(MessageRefused, match=r"expected features of shape \(N, 8\), found other tensors"):
        statistic.receive({"features": torch.ones(3, 7)})


def test_features_are_requested_and_sent_in_contrast_rounds():
    networks = dict.fromkeys(("a", "b"), Shown)
    strategy = fedca.ContrastBeforeLabels(rounds=3, entries=2).attach(
        Server(("a", "b"), 5, weights={"w": torch.zeros(1)}, networks=networks)
    )
    requested, sent = [], []
    for round in range(5):
        messages = strategy.configure(round)
        requested.append([message.extra.get("statistics") for message in messages.values()])
        given_ = [split_statistics(message.tensors)[1] for message in messages.values()]
        sent.append([each["features"][:, 0].tolist() if each else [] for each in given_])
        updates = {}
        for value, site in enumerate("ab"):
            own = {"features": torch.full((2, 8), 10.0 * round + value)} if requested[-1][0] else {}
            tensors = with_statistics({"w": torch.ones(1)}, own)
            assert strategy.expected(site).keys() == tensors.keys()
            updates[site] = Message(Kind.WEIGHTS, site, round, 5, n=1, tensors=tensors)
        strategy.aggregate(round, updates)
    assert requested == [["features"] * 2] * 2 + [[None] * 2] * 3
    assert sent == [[[], []], [[1.0, 1.0], [0.0, 0.0]], [[11.0, 11.0], [10.0, 10.0]], [[], []], [[], []]]
    assert strategy.state_dict() == {}


@pytest.mark.parametrize("options", [{"rounds": 1}, {"rounds": 3, "share": False}])
def test_exchange_without_client_algorithm_equals_fedavg(options):
    strategy = fedca.ContrastBeforeLabels(**options)
    assert (strategy.statistic, strategy.exchange) == (None, FedAvg.exchange)
    strategy.attach(Server(("a", "b"), 5, weights={"w": torch.zeros(1)}))
    assert [message.extra for message in strategy.configure(0).values()] == [{}, {}]
    assert strategy.expected("a").keys() == {"w"}
    assert not fedca.ContrastBeforeLabels(rounds=2).exchange.mean


def aggregated(strategy, warm_start=None) -> list[float]:
    """The model after each of three rounds in which sites send 1 and 3."""
    strategy.attach(Server(("a", "b"), 3, weights={"w": torch.zeros(1)}, warm_start=warm_start))
    found = []
    for round in range(3):
        start = strategy.configure(round)["a"].tensors["w"]
        steps = (("a", 1.0), ("b", 3.0))
        strategy.aggregate(round, {site: update(site, round=round, rounds=3, w=start + step) for site, step in steps})
        found.append(strategy.global_weights["w"].item())
    return found


def test_warm_start_runs_once_after_last_contrast_round():
    def warm(begin):
        return {name: 10 * tensor for name, tensor in begin.items()}

    assert aggregated(FedAvg()) == [2.0, 4.0, 6.0]
    assert aggregated(fedca.ContrastBeforeLabels(rounds=0), warm) == [2.0, 4.0, 6.0]
    assert aggregated(fedca.ContrastBeforeLabels(rounds=1), warm) == [20.0, 22.0, 24.0]
    assert aggregated(fedca.ContrastBeforeLabels(rounds=2, share=False), warm) == [2.0, 40.0, 42.0]


def test_run_without_label_rounds_is_refused():
    (problem,) = check_job(find_bundle("samfed_skin"), {"variant": "fedca", "rounds": 3}, None).problems
    assert str(problem).startswith("strategy#rounds: expected at least one more round, for the labels, found 3 of 3 ")
