"""What sites are asked to score, and what becomes of a site that gives no scores."""

from __future__ import annotations

from samfed_monai.federation import LocalTransport
from samfed_monai.federation.controller import Evaluation
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.methods.local_only import LocalOnly
from samfed_monai.protocol import Server
from tests.federation.toys import QUIET, FixedClient, weights


class Asked(FixedClient):
    """Remembers what it was asked, and fails on the split that it is told to."""

    def __init__(self, site: str, *, fails_on: str = "", **options) -> None:
        super().__init__(site, **options)
        self.fails_on = fails_on
        self.asked: list = []

    def evaluate(self, data, extra):
        self.asked.append((extra["split"], extra["model"], extra.get("purpose"), bool(data.weights)))
        if extra["split"] == self.fails_on:
            raise ValueError("no such images")
        return super().evaluate(data, extra)


def evaluation(strategy, **clients: Asked) -> Evaluation:
    sites = [site for site in sorted(clients) if site != "away"]
    strategy.attach(Server(sites, 3, weights=weights()))
    return Evaluation(
        transport=LocalTransport(clients, progress=QUIET),
        strategy=strategy,
        sites=sites,
        unseen=[site for site in clients if site == "away"],
        splits=("validation", "test"),
        rounds=3,
        seed=0,
    )


def test_a_model_is_scored_on_every_split_and_by_unseen_hospitals_on_test_images_alone():
    clients = {"a": Asked("a", dice=0.2, n=1), "b": Asked("b", dice=0.6, n=3), "away": Asked("away", dice=0.4)}
    model = evaluation(FedAvg(), **clients).of_model("best", 1)
    assert clients["a"].asked == [("validation", "best", None, True), ("test", "best", None, True)]
    assert clients["away"].asked == [("test", "best", None, True)]
    assert {site: scores["test"]["dice"] for site, scores in model["sites"].items()} == {"a": 0.2, "b": 0.6}
    assert model["unseen"]["away"]["test"]["dice"] == 0.4


def test_what_the_rounds_record_has_is_not_scored_again_and_the_rest_is():
    clients = {"a": Asked("a", dice=0.2), "b": Asked("b", dice=0.6)}
    known = {"a": {"dice": 0.25, "iou": 0.2, "hd95": None, "n": 4, "empty": {}}}
    model = evaluation(FedAvg(), **clients).of_model("best", 1, known)
    assert clients["a"].asked == [("test", "best", None, True)]
    assert clients["b"].asked == [("validation", "best", None, True), ("test", "best", None, True)]
    assert model["sites"]["a"]["validation"] == known["a"]
    assert model["sites"]["b"]["validation"]["dice"] == 0.6
    assert model["sites"]["a"].keys() == {"validation", "test"}


def test_sites_with_networks_of_their_own_keep_them_and_unseen_hospitals_are_not_asked_without_a_server_network():
    clients = {"a": Asked("a"), "b": Asked("b"), "away": Asked("away")}
    model = evaluation(LocalOnly(), **clients).of_model("last", 2)
    assert clients["a"].asked == [("validation", "last", "keep", False), ("test", "last", "keep", False)]
    assert clients["away"].asked == []
    assert model["unseen"] == {}


def test_a_site_without_scores_is_left_out_with_its_reason(caplog):
    clients = {"a": Asked("a", dice=0.2), "b": Asked("b", fails_on="test")}
    scored = evaluation(FedAvg(), **clients)
    scores, reasons = scored.scores("test", round=0)
    assert scores.keys() == {"a"}
    assert reasons["b"].startswith("ValueError in ")
    model = scored.of_model("best", 0)
    assert scored.failed.keys() == {"b"}
    assert model["sites"]["b"]["test"] is None
    assert model["sites"]["a"]["test"]["n"] == 1
    assert "b has no test scores of the best model: ValueError" in caplog.text
