"""A site's own network: when it learns from what was sent, what it gives, and what a failed round leaves of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser
from monai.fl.utils.constants import WeightType
from torch import nn

from samfed_monai.federation import to_exchange
from samfed_monai.federation.exchange import Call
from samfed_monai.federation.own_network import OwnNetwork, own_network, require_same_public_set, split_state
from samfed_monai.protocol import Envelope, Kind, MessageRefused, Sharing


class Told(Sharing):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list = []
        self.resets = 0

    def receive(self, round, rounds, kind, tensors):
        self.calls.append((round, rounds, kind, sorted(tensors)))
        return {"good": 1.5, "bad": float("nan")}

    def share(self):
        return Kind.PROTOTYPES, {"mean": torch.ones(2)}

    def reset(self):
        self.resets += 1


def made() -> OwnNetwork:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(2.0)
    return OwnNetwork(SimpleNamespace(network=network), Told())


def call(purpose: str) -> Call:
    return Call.of("a", {"round": 1, "rounds": 3, "purpose": purpose})


def test_it_learns_from_what_was_sent_for_that_and_tells_finite_numbers():
    own = made()
    data = to_exchange(Envelope(Kind.SOFT_MASKS, "a", 1, 3, tensors={"masks": torch.zeros(1)}))
    assert own.receive(data, call("distil")) == {"good": 1.5}
    assert own.sharing.calls == [(1, 3, Kind.SOFT_MASKS, ["masks"])]
    assert own.receive(data, call("keep")) == {}
    assert len(own.sharing.calls) == 1


def test_what_it_gives_has_a_kind():
    kind, answer = made().share()
    assert kind == Kind.PROTOTYPES
    assert answer.weights["mean"].tolist() == [1.0, 1.0]
    assert dict(answer) == {}, "nothing else is handed over in it"


def test_its_weights_take_the_place_of_what_was_sent():
    data = to_exchange(Envelope(Kind.METRICS, "a", 1, 3))
    given = made().in_place_of(data)
    assert given.weights["weight"].tolist() == [[2.0]]
    assert given.weight_type == WeightType.WEIGHTS
    assert given["samfed"] == data["samfed"]


def test_state_is_told_from_the_rest():
    state = made().state_dict()
    own, rest = split_state({**state, "0.exp_avg": torch.zeros(1)})
    assert own["weight"].tolist() == [[2.0]]
    assert rest.keys() == {"0.exp_avg"}


@pytest.mark.parametrize(("purpose", "left"), [("distil", 2.0), ("keep", 2.0), ("replace", 7.0)])
def test_a_failed_round_is_undone_where_the_network_stays(purpose, left):
    own = made()

    def interrupted() -> None:
        with own.undone_if_it_fails(call(purpose)):
            own.trainer.network.weight.data.fill_(7.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert own.trainer.network.weight.item() == left
    assert own.sharing.resets == 1


def test_a_round_that_succeeds_is_kept():
    own = made()
    with own.undone_if_it_fails(call("distil")):
        own.trainer.network.weight.data.fill_(7.0)
    assert own.trainer.network.weight.item() == 7.0
    assert own.sharing.resets == 0


@pytest.mark.parametrize("config", [{}, {"sharing": None}])
def test_a_bundle_without_a_sharing_has_none(config):
    workflow = SimpleNamespace(parser=ConfigParser(config))
    assert own_network(SimpleNamespace(), workflow) is None
    assert own_network(None, workflow) is own_network(SimpleNamespace(), None) is None


def test_another_public_set_is_refused():
    require_same_public_set(None, "")
    require_same_public_set("a" * 64, "a" * 64)
    with pytest.raises(
        MessageRefused, match=r"public set: expected that of the server, aaaaaaaaaaaa, found .* hash none"
    ):
        require_same_public_set("a" * 64, "")
