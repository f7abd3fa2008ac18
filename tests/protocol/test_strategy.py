"""The exchange of a strategy, and the defaults of its base class."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samfed_monai.methods.fedavg import FedAvg, PersonalFedAvg
from samfed_monai.protocol import Exchange, Kind, Message, Server, Strategy
from samfed_monai.protocol.guard import UpdateGuard


class Silent(Strategy):
    exchange = Exchange(Kind.METRICS, own_networks=True, alike=False, server_model=False)

    def configure(self, round):
        return {}

    def accept(self, round, site, update):
        pass


def test_default_exchange_is_shared_weights():
    plain = Exchange(Kind.WEIGHTS, own_networks=False, alike=True, server_model=True, tailored=False, mean=False)
    assert Exchange() == plain
    assert FedAvg.exchange == Exchange(mean=True)
    assert PersonalFedAvg.exchange.mean


@pytest.mark.parametrize(
    ("exchange", "parts", "kept"),
    [({}, False, False), ({"own_networks": True}, False, True), ({"tailored": True}, False, True), ({}, True, True)],
)
def test_site_states_are_kept_for_own_or_tailored_models(exchange, parts, kept):
    strategy = FedAvg()
    strategy.exchange = Exchange(**exchange)
    assert strategy.attach(Server(["a"], 1, has_personal_part=parts)).keeps_states is kept


def test_server_without_model_has_no_weights_and_no_evaluation():
    server = Server(["a"], 1, weights={"w": torch.ones(1)})
    assert Silent().attach(server).global_weights == {}
    assert Silent().attach(server).evaluation("a") is None
    personal = PersonalFedAvg().attach(server)
    assert (personal.evaluation("a"), personal.evaluation("unseen")) == (None, {"w": torch.ones(1)})


class Noting(Strategy):
    """Records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def configure(self, round):
        return {site: self.message(site, round, Kind.WEIGHTS, self.global_weights, split="test") for site in "ab"}

    def requirements(self):
        return {"split": "validation", "version": "1"}

    def accept(self, round, site, update):
        self.calls.append(("accept", round, site, update.tensors["w"].tolist()))

    def finish(self, round):
        self.calls.append(("finish", round))

    def refine(self, round):
        self.calls.append(("refine", round))


def test_message_has_run_data_and_strategy_requirements():
    server = Server(["a", "b"], 9, 4, weights={"w": torch.ones(2)})
    sent = Noting().attach(server).configure(3)["b"]
    words = {"split": "test", "version": "1"}
    assert sent == Message(Kind.WEIGHTS, "b", 3, 9, 4, tensors=sent.tensors, extra=words)
    assert sent.tensors["w"].tolist() == [1.0, 1.0]
    assert FedAvg().attach(server).requirements() == {}


def test_updates_are_accepted_by_name_then_finished_and_refined():
    strategy = Noting().attach(Server(["a", "b"], 9, weights={"w": torch.zeros(1)}))
    updates = {site: Message(Kind.WEIGHTS, site, 2, 9, n=1, tensors={"w": torch.ones(1)}) for site in "ba"}
    strategy.aggregate(2, updates)
    assert strategy.calls == [("accept", 2, "a", [1.0]), ("accept", 2, "b", [1.0]), ("finish", 2), ("refine", 2)]


def test_step_is_limited_from_reference_of_site():
    references = {"a": {"w": torch.tensor([100.0])}, "b": {"w": torch.tensor([1.0])}}
    strategy = Noting().attach(Server(["a", "b"], 9, guard=UpdateGuard(limit=2.0)))
    strategy.reference = references.get
    for site in "ab":
        strategy.take(0, site, Message(Kind.WEIGHTS, site, 0, 9, n=1, tensors={"w": torch.tensor([101.0])}))
    assert [call[3] for call in strategy.calls] == [[101.0], [3.0]]


def test_default_strategy_uses_global_weights_and_has_no_state():
    strategy = Noting().attach(Server(["a"], 9, weights={"w": torch.ones(1)}))
    assert strategy.expected("a") is strategy.global_weights is strategy.evaluation("a")
    assert strategy.state_dict() == {}
    weights = {"w": torch.zeros(1)}
    strategy.load_state_dict(weights, {})
    weights["w"] += 1
    assert strategy.global_weights["w"].tolist() == [0.0], "a copy"
    assert strategy.rounds_before_warm_start == 0


@pytest.mark.parametrize(
    ("written", "exchange"),
    [
        ({}, Exchange(mean=True)),
        ({"accept": FedAvg.accept}, Exchange()),
        ({"finish": FedAvg.finish}, Exchange()),
        ({"finish": FedAvg.finish, "exchange": Exchange(mean=True, tailored=True)}, Exchange(mean=True, tailored=True)),
    ],
)
def test_subclass_overriding_accept_is_no_mean_by_default(written, exchange):
    assert type("Own", (FedAvg,), written).exchange == exchange
