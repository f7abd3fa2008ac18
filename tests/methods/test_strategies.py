"""Every strategy writes to all sites, resumes from a stored round and discards unfinished replies."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.protocol import Message, Server, Strategy
from tests.federation.toys import ToyNet
from tests.federation.unlike import SERVER_WIDTH, server_algorithm, toy_net
from tests.handlers.toy import Shown

SITES = ("a", "b", "c", "d", "e")


class Headed(ToyNet):
    """A network with features apart from its head."""

    @property
    def segmentation_head(self) -> nn.Module:
        return self[3]


NETWORKS = dict.fromkeys(SITES, Headed)
ALGORITHM = {"algorithm": server_algorithm, "networks": NETWORKS}
TWICE = {"warm_start": lambda weights: {name: 2 * tensor for name, tensor in weights.items()}}
#: Options and arguments of the server by class.
STRATEGIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "apple.Apple": ({}, {}),
    "coordinate_median.CoordinateMedian": ({}, {}),
    "drflm.DistributionallyRobust": ({"step": 2.0}, {}),
    "elcfs.StyleExchange": ({"entries": 2}, {}),
    "fca.ClientTailored": ({}, {}),
    "fedavg.FedAvg": ({}, {}),
    "fedavg.PersonalFedAvg": ({}, {}),
    "fedca.ContrastBeforeLabels": ({"rounds": 3}, {**TWICE, "networks": dict.fromkeys(SITES, Shown)}),
    "fedda.CyclicTargets": ({}, {}),
    "fedmd.Consensus": ({}, ALGORITHM),
    "fedproto.Prototypes": ({}, {"networks": NETWORKS}),
    "fedsemidg.GeneralisationAware": ({"step": 0.3}, {}),
    "heterogeneous.CondensationFusion": ({"floor": 0.0}, ALGORITHM),
    "krum.Krum": ({}, {}),
    "local_only.LocalOnly": ({}, {}),
    "norm_clipping.NormClipping": ({}, {}),
    "semifl.ServerTuned": ({}, ALGORITHM),
    "clustered_sites.ClusteredFedAvg": ({"levels": 2}, {}),
    "trimmed_mean.TrimmedMean": ({}, {}),
}
STRATEGIES = {n: row for n, row in STRATEGIES.items() if find_spec(f"samfed_monai.methods.{n.partition('.')[0]}")}
NAMES = list(STRATEGIES)


def attach(name: str) -> Strategy:
    module, _, kind = name.partition(".")
    options, needs = STRATEGIES[name]
    made: Strategy = getattr(import_module(f"samfed_monai.methods.{module}"), kind)(**options)
    weights = {key: tensor.clone() for key, tensor in toy_net(SERVER_WIDTH).state_dict().items()}
    return made.attach(Server(SITES, 5, 7, weights=weights, **needs))


def a_round(strategy: Strategy, round: int, sites: tuple[str, ...] = SITES) -> None:
    """A round in which each site sends other numbers."""
    strategy.configure(round)
    for site in sites:
        draw = torch.Generator().manual_seed(100 * round + SITES.index(site))

        def drawn(like: torch.Tensor, draw: torch.Generator = draw) -> torch.Tensor:
            if like.is_floating_point():
                return torch.rand(like.shape, generator=draw)
            return torch.randint(0, 200, like.shape, generator=draw).to(like.dtype)

        expected = strategy.expected(site) or {}
        tensors = {name: drawn(expected[name]) for name in sorted(expected)}  # as on a wire: in an order of their own
        numbers = {f"term_{name}": torch.rand(1, generator=draw).item() for name in TERMS}
        answer = Message(strategy.exchange.answer, site, round, 5, n=1 + ord(site), tensors=tensors, metrics=numbers)
        strategy.take(round, site, answer)
    strategy.finish(round)
    strategy.refine(round)


#: The means of these terms move weights of sites.
TERMS = ("local_mixup_all", "generalisation_gap")


def same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", NAMES)
def test_configure_addresses_every_site_and_round(name):
    strategy = attach(name)
    for round in (0, 1):
        messages = strategy.configure(round)
        assert list(messages) == list(SITES)
        for site, message in messages.items():
            assert (message.site, message.round, message.rounds, message.seed) == (site, round, 5, 7)
            message.check(up=False)
        a_round(strategy, round)


@pytest.mark.parametrize("name", NAMES)
def test_strategy_resumes_bitwise_equal(name):
    strategy, other = attach(name), attach(name)
    a_round(strategy, 0, SITES[:4])  # one was away
    for round in (1, 2):
        weights = {key: strategy.global_weights[key].clone() for key in sorted(strategy.global_weights)}  # as in a file
        other.load_state_dict(weights, {key: tensor.clone() for key, tensor in strategy.state_dict().items()})
        for each in (strategy, other):
            a_round(each, round, SITES[:5] if round == 1 else SITES[1:])
        assert same(strategy.global_weights, other.global_weights)
        assert same(strategy.state_dict(), other.state_dict())
        assert all(same(strategy.evaluation(site), other.evaluation(site)) for site in (*SITES, "elsewhere"))
        one, two = strategy.configure(round + 1), other.configure(round + 1)
        assert all(same(one[site].tensors, two[site].tensors) and one[site].extra == two[site].extra for site in SITES)


@pytest.mark.parametrize("name", NAMES)
def test_loaded_round_discards_unfinished_answers(name):
    strategy, other = attach(name), attach(name)
    for each in (strategy, other):
        a_round(each, 0)
    weights, state = ({k: t.clone() for k, t in each.items()} for each in (other.global_weights, other.state_dict()))
    strategy.configure(1)
    expected = strategy.expected("a") or {}
    tensors = {key: torch.ones_like(like) for key, like in expected.items()}
    numbers = dict.fromkeys((f"term_{each}" for each in TERMS), 9.0)
    strategy.take(1, "a", Message(strategy.exchange.answer, "a", 1, 5, n=10**6, tensors=tensors, metrics=numbers))
    for each in (strategy, other):
        each.load_state_dict(weights, {key: tensor.clone() for key, tensor in state.items()})
        a_round(each, 1, SITES[1:])
    assert same(strategy.global_weights, other.global_weights)
    assert same(strategy.state_dict(), other.state_dict())


@pytest.mark.parametrize("name", [name for name, (_, needs) in STRATEGIES.items() if "algorithm" in needs])
def test_bundle_without_client_algorithm_is_refused(name):
    module, _, kind = name.partition(".")
    made = getattr(import_module(f"samfed_monai.methods.{module}"), kind)()
    message = "strategy: expected a PublicMaskAlgorithm, found no `client_algorithm` in the bundle; "
    with pytest.raises(Refused, match=f"{message}use a variant with a client algorithm, like {module}"):
        made.attach(Server(SITES, 1))
