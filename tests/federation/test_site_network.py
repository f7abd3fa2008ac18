"""A site's own network, whole or in part: what it takes and gives, what stays, through a failure and a resume."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.fl.utils.constants import WeightType
from torch import Tensor, nn

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import safe_load
from samfed_monai.federation import ClientAlgoSite, to_exchange_object
from samfed_monai.federation.exchange_object import Call
from samfed_monai.federation.site_network import SiteNetwork, split_state
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.networks import KeySplit, network_split
from samfed_monai.privacy import Privacy, ReleaseFilter
from samfed_monai.privacy.allowed import allowed_of
from samfed_monai.protocol import ClientAlgorithm, Inbox, Kind, Message, MessageRefused, Server, Task
from tests.federation.toys import FilteredSite, ToyNet, copied, run_clients, toy_algo, toy_weights
from tests.federation.unlike import unlike_algo
from tests.privacy.spy import leaks, server_files, wired


class Noted(ClientAlgorithm):
    """Remembers what it was given."""

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


def made() -> SiteNetwork:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(2.0)
    return SiteNetwork(network, KeySplit(("weight",), (), ()), Noted())


def call(purpose: str) -> Call:
    return Call.of("a", {"round": 1, "rounds": 3, "purpose": purpose})


def test_receive_learns_from_distil_messages_only():
    own = made()
    data = to_exchange_object(Message(Kind.SOFT_MASKS, "a", 1, 3, tensors={"masks": torch.zeros(1)}))
    assert own.receive(data, call("distil")) == {"good": 1.5}
    assert own.algorithm.calls == [(1, 3, Kind.SOFT_MASKS, ["masks"])]
    assert own.receive(data, call("keep")) == {}
    assert own.receive(data, Call.of("a", {"purpose": "distil"})) == {"good": 1.5}
    assert own.algorithm.calls[1:] == [(0, 1, Kind.SOFT_MASKS, ["masks"])], "from a system that counts no rounds"


def test_own_weights_replace_received_data():
    data = to_exchange_object(Message(Kind.METRICS, "a", 1, 3))
    given = made().with_local_part(data, whole=True)
    assert given.weights["weight"].tolist() == [[2.0]]
    assert given.weight_type == WeightType.WEIGHTS
    assert given["samfed"] == data["samfed"]


def test_network_state_is_split_from_optimizer_state():
    own, rest = split_state({**made().state_dict(), "0.exp_avg": torch.zeros(1)})
    assert own["weight"].tolist() == [[2.0]]
    assert rest.keys() == {"0.exp_avg"}


@pytest.mark.parametrize(("purpose", "left"), [("distil", 2.0), ("keep", 2.0), ("replace", 7.0), (None, 7.0)])
def test_network_is_restored_after_failed_distil_or_keep_round(purpose, left):
    own = made()
    with pytest.raises(KeyboardInterrupt) if purpose else nullcontext(), own.restored_on_error(call(purpose or "keep")):
        own.network.weight.data.fill_(7.0)
        if purpose:
            raise KeyboardInterrupt
    assert own.network.weight.item() == left
    assert own.algorithm.resets == bool(purpose)


@pytest.mark.parametrize("config", [{}, {"client_algorithm": None}])
def test_bundle_without_client_algorithm_has_no_own_state(config):
    own = SiteNetwork.of(nn.Linear(1, 1), ConfigParser(config), trains=True)
    assert own.algorithm is None
    assert own.state_dict() == {}


SITES = ("site-1", "site-2")
HEAD, NORM = ["3.*"], ["<norm>"]
HEAD_NAMES = {"3.weight", "3.bias"}


def run(path: Path, personal: list[str], *, rounds: int) -> Any:
    """A federation on the toy bundle whose network is shared in part: its result, its clients, and what they sent."""
    clients = {site: toy_algo(site, bundle={"personal": personal}, output_dir=path / "evaluation") for site in SITES}
    nodes, sent = {}, list[bytes]()
    for site, client in clients.items():
        client.evaluator.add_event_handler(Events.COMPLETED, lambda _, c=client: setattr(c, "evaluated", state_of(c)))
        allowed = {"allowed": lambda c=client: allowed_of(c), "privacy": Privacy(least_images=1)}
        nodes[site] = FilteredSite(site, client, ReleaseFilter(site, **allowed))
        wired(nodes[site], sent)
    shared = network_split(ToyNet(), personal).shared
    start = {name: tensor for name, tensor in toy_weights().items() if name in shared}
    server = Server(SITES, rounds, weights=start, has_personal_part=bool(personal))
    return run_clients(path, nodes, rounds=rounds, server=server), clients, sent


def state_of(client: Any) -> dict[str, Tensor]:
    return copied(client.trainer.network.state_dict())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Any, dict[str, Any], list[bytes]]:
    """A run of three rounds with personal heads: its folder, and what :func:`run` returns."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(folder, HEAD, rounds=3)


def test_invalid_personal_patterns_are_refused():
    with pytest.raises(Refused, match=r"found no name like '4\.\*'; correct the pattern.*names begin with 0, 1, 3"):
        toy_algo(bundle={"personal": ["4.*"]})
    with pytest.raises(Refused, match=r"no patterns: a client algorithm keeps its whole network.*leave personal empty"):
        unlike_algo("site-1", personal=["3.*"])


@pytest.mark.parametrize("personal", [HEAD, NORM])
def test_fault_56_no_personal_value_reaches_wire_or_server(personal, whole, tmp_path):
    folder, _, clients, sent = whole if personal == HEAD else (tmp_path, *run(tmp_path, personal, rounds=1))
    stay = network_split(ToyNet(), personal).personal
    for client in clients.values():
        state = {name: tensor for name, tensor in state_of(client).items() if tensor.is_floating_point()}
        needles = {name: [tensor.numpy().tobytes(), name.encode()] for name, tensor in state.items()}
        assert leaks(sent, server_files(folder), {name: needles[name] for name in stay if name in needles}) == []
        assert leaks(sent, [], {"0.weight": needles["0.weight"]}), "the spy sees what does travel"


def test_personal_heads_stay_local_and_are_used_for_scores(whole):
    folder, _, clients, _ = whole
    stored = safe_load(folder / "rounds" / "002" / "global.safetensors")
    assert stored.keys() == toy_weights().keys() - HEAD_NAMES
    assert not torch.equal(*[state_of(client)["3.weight"] for client in clients.values()])
    for client in clients.values():  # what was evaluated last: the shared part of the last round, the site's own head
        evaluated = client.evaluated
        assert all(torch.equal(evaluated[name], tensor) for name, tensor in stored.items())
        assert torch.equal(evaluated["3.weight"], state_of(client)["3.weight"])


def test_personal_parts_are_stored_with_round(whole):
    state = safe_load(whole[0] / "rounds" / "002" / "clients" / "site-1.safetensors")
    assert {name for name in state if name.startswith("network.")} == {f"network.{name}" for name in HEAD_NAMES}
    assert FedAvg().attach(Server(SITES, 1, has_personal_part=True)).keeps_states
    assert not FedAvg().attach(Server(SITES, 1)).keeps_states


def test_personal_keys_are_refused_in_both_directions():
    client = toy_algo(bundle={"personal": HEAD})
    all_names = toy_weights()
    shared = {name: tensor for name, tensor in all_names.items() if name not in HEAD_NAMES}
    inbox = Inbox(round=0, sites=["site-1"], like=lambda site: shared, kind=Kind.WEIGHTS)
    with pytest.raises(MessageRefused, match=r"only the shared tensors of this network, found 2 with unknown names"):
        inbox.check("site-1", Message(Kind.WEIGHTS, "site-1", 0, 1, n=6, tensors=all_names))
    site = ClientAlgoSite("site-1", client)
    with pytest.raises(MessageRefused, match="2 with unknown names"):
        site.answer(Task.TRAIN, Message(Kind.WEIGHTS, "site-1", 0, 1, tensors=all_names))
    release = ReleaseFilter("site-1", allowed=lambda: allowed_of(client), privacy=Privacy(least_images=1))
    request = Message(Kind.WEIGHTS, "site-1", 0, 1, tensors=shared)
    with pytest.raises(MessageRefused, match="tensors on the allow-list, found 2 in addition"):
        release(Task.TRAIN, request, Message(Kind.WEIGHTS, "site-1", 0, 1, n=6, tensors=all_names))


def test_failed_round_keeps_personal_weights():
    client = toy_algo(bundle={"personal": HEAD, "fail_in_round": 1})
    site, begun = ClientAlgoSite("site-1", client), state_of(client)
    shared = {name: tensor for name, tensor in toy_weights().items() if name not in HEAD_NAMES}
    site.answer(Task.TRAIN, Message(Kind.WEIGHTS, "site-1", 0, 2, tensors=shared))
    before = state_of(client)
    assert not torch.equal(begun["3.weight"], before["3.weight"])
    with pytest.raises(FileNotFoundError):
        site.answer(Task.TRAIN, Message(Kind.WEIGHTS, "site-1", 1, 2, tensors=shared))
    assert torch.equal(state_of(client)["3.weight"], before["3.weight"])
