"""Whole federations of unlike networks: exchanges that are equal to the bit, resumption, and what goes wrong."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.core.errors import ExitCode, Refused
from samfed_monai.core.io import safe_load
from samfed_monai.handlers import PublicPredictor
from samfed_monai.methods.local_only import LocalOnly
from samfed_monai.protocol import Kind
from tests.federation.toys import RogueClient, same, toy_algo
from tests.federation.unlike import IMAGES, own_weights, run_unlike, toy_net, unlike_algo


@pytest.mark.parametrize("options", [{"augment": True}, {"augment": True, "client_algorithm#images": 4}])
def test_both_exchanges_give_identical_results(tmp_path, options):
    runs = {}
    for exchange in ("predictions", "weights"):
        result, clients, strategy = run_unlike(tmp_path / exchange, rounds=2, exchange=exchange, **options)
        terms = [record["sites"][site]["terms"] for record in result.records for site in clients]
        assert max(entry["public_kd_gate"] for entry in terms) > 0, "a site learned from the server"
        runs[exchange] = (strategy.global_weights, {site: own_weights(client) for site, client in clients.items()})
        runs[exchange] += (result.models["last"]["sites"],)
    predictions, weights = runs["predictions"], runs["weights"]
    assert same(predictions[0], weights[0])
    assert all(same(predictions[1][site], weights[1][site]) for site in ("site-1", "site-2"))
    assert predictions[2] == weights[2]
    assert not same(predictions[0], toy_net(5).state_dict()), "the server has learned"


def test_public_hash_is_not_computed_without_exchange(tmp_path, monkeypatch):
    monkeypatch.setattr(PublicPredictor, "public_hash", property(lambda self: pytest.fail("not needed")))
    result, _, _ = run_unlike(tmp_path, rounds=1, strategy=LocalOnly(), exchange="none")
    assert {entry["status"] for entry in result.records[0]["sites"].values()} == {"ok"}


def test_best_and_last_scores_use_site_weights_of_same_round(tmp_path):
    judged = iter([0.9, 0.8, 0.2, 0.1, 0.3, 0.2])  # validation Dice of both sites in three rounds: the first is best
    seen = {}

    def spy(clients):
        for site, client in clients.items():

            def evaluate(data, extra, site=site, client=client, inner=client.evaluate):
                answer = inner(data, extra)
                if extra["model"] == "current":
                    answer.metrics["dice"] = next(judged)
                else:
                    seen[site, extra["model"], extra["split"]] = own_weights(client)
                return answer

            client.evaluate = evaluate

    result, clients, _ = run_unlike(tmp_path, rounds=3, change=spy)
    assert (result.models["best"]["round"], result.models["last"]["round"]) == (0, 2)
    for site in clients:
        for model, folder in (("best", "000"), ("last", "002")):
            stored = safe_load(tmp_path / f"rounds/{folder}/clients/{site}.safetensors")
            own = {name[len("network.") :]: tensor for name, tensor in stored.items() if name.startswith("network.")}
            assert same(seen[site, model, "test"], own)
        assert not same(seen[site, "best", "test"], seen[site, "last", "test"])


BAD = {
    "count": (lambda m: m[:-1], {}, "message -> masks: expected shape (6, 1, 8, 8), found shape (5, 1, 8, 8)"),
    "nan": (lambda m: m * float("nan"), {}, "message -> tensors: expected torch.uint8, found torch.float32"),
    "kind": (
        lambda m: m,
        {"kind": "weights"},
        "message: expected soft_masks, which this round exchanges, found weights",
    ),
}


def test_invalid_soft_masks_are_skipped_with_reason(tmp_path):
    def add(clients):
        for name, (distort, header, _) in BAD.items():

            def change(answer, distort=distort, header=header):
                answer.weights = {"masks": distort(torch.zeros(IMAGES, 1, 8, 8, dtype=torch.uint8))}
                answer["samfed"] |= {"kind": Kind.SOFT_MASKS, **header}

            clients[name] = RogueClient(name, change=change)

    result, _, strategy = run_unlike(tmp_path, rounds=1, change=add, options={"quorum": 2})
    sites = result.records[0]["sites"]
    assert {site for site, entry in sites.items() if entry["status"] == "ok"} == {"site-1", "site-2"}
    assert {name: sites[name]["reason"] for name in BAD} == {name: reason for name, (_, _, reason) in BAD.items()}
    assert sorted(strategy._updates) == ["site-1", "site-2"]


def test_diverged_round_restores_own_network(tmp_path):
    begun = []

    def diverge_once(clients):
        client = clients["site-2"]
        clients["site-3"] = unlike_algo("site-3")

        def poisoned(round, *arguments, receive=client.own.algorithm.receive):
            begun.append(own_weights(client))
            means = receive(round, *arguments)
            if round == 1:
                with torch.no_grad():
                    client.trainer.network[0].weight.fill_(float("nan"))
                    next(iter(client.trainer.optimizer.state.values()))["exp_avg"].fill_(float("inf"))
                raise ValueError("as a diverged public phase does")
            return means

        client.own.algorithm.receive = poisoned

    result, _, _ = run_unlike(tmp_path, rounds=3, change=diverge_once)
    assert [record["sites"]["site-2"]["status"] for record in result.records] == ["ok", "skipped", "ok"]
    assert same(begun[1], begun[2])
    safe_load(tmp_path / "rounds/001/clients/site-2.safetensors")  # refuses what is not finite
    assert result.models["last"]["sites"]["site-2"]["test"] is not None


@pytest.mark.parametrize(
    ("client", "found"),
    [
        (lambda: unlike_algo("site-2", public="public, turned"), "found hash"),
        (lambda: toy_algo("site-2"), "found hash none"),
    ],
    ids=["in another order", "none"],
)
def test_different_public_set_is_refused_before_round_0(tmp_path, client, found):
    def other(clients):
        clients["site-2"] = client()
        for each in clients.values():
            each.train = lambda *_: pytest.fail("trained")

    refusal = rf"site-2: expected a site that can take part, found public set: expected hash .* at the server, {found}"
    with pytest.raises(Refused, match=refusal) as caught:
        run_unlike(tmp_path, change=other)
    assert caught.value.exit_code == ExitCode.REFUSED
    assert len(caught.value.problems) == 1, "site-1 has the server's"
    assert not (tmp_path / "rounds").exists()


def test_site_returning_with_different_public_set_is_skipped(tmp_path):
    def turn(clients):
        site, turned = clients["site-2"], unlike_algo("site-2", public="public, turned")
        train = site.train

        def train_once(data, extra):
            if extra["round"] > 0:  # as a process that died and read its files again
                site.own.algorithm = turned.own.algorithm
            train(data, extra)

        site.train = train_once
        clients["site-3"] = unlike_algo("site-3")

    result, _, _ = run_unlike(tmp_path, rounds=2, change=turn)
    assert [record["sites"]["site-2"]["status"] for record in result.records] == ["ok", "skipped"]
    assert "public set: expected hash " in result.records[1]["sites"]["site-2"]["reason"]


def test_networks_predict_public_set_once_per_round(tmp_path, monkeypatch):
    passes: list[int] = []
    masks = PublicPredictor.masks
    monkeypatch.setattr(
        PublicPredictor, "masks", lambda self, network: passes.append(network[0].out_channels) or masks(self, network)
    )
    run_unlike(tmp_path, rounds=3)
    begun = [4, 4, 5, 5, 6, 6]  # as they begin, and after their first round
    assert sorted(passes) == sorted([*begun, *2 * [4, 5, 6]])
