"""Ditto at a site: the personal network, the global network, and their optimizer states."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.methods.ditto import AnchoredTerm, DittoAlgorithm
from samfed_monai.protocol import Kind, MessageRefused
from tests.handlers.toy import next_round, toy_network
from tests.methods import engine_of
from tests.methods.personal import Six, numbers_of, six, six_trainer

GLOBAL = [0.0, 1.0, 2.0, 3.0, -1.0, -2.0]
OWN = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
TARGET = [4.0, 4.0, 4.0, 4.0, 4.0, 4.0]


def build(mu: float, *, rate: float = 0.1, steps: int = 1, optimizer=torch.optim.SGD):
    network = Six(OWN)
    chosen = optimizer(network.parameters(), lr=rate)
    term = AnchoredTerm(mu=mu, name="ditto")
    algorithm = DittoAlgorithm(term=term, network=network, optimizer=chosen, site="s")
    return algorithm, six_trainer(network, chosen, [term, algorithm], TARGET, steps)


def one_round(algorithm, trainer, weights=GLOBAL, round: int = 0):
    algorithm.receive(round, 3, Kind.WEIGHTS, six(weights))
    next_round(trainer, 0, 1)
    return numbers_of(algorithm.share()[1])


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_rounds_match_published_algorithm(mu):
    algorithm, trainer = build(mu, steps=3)
    own, target, received = torch.tensor(OWN), torch.tensor(TARGET), torch.tensor(GLOBAL)
    for round in range(2):
        answer, common = one_round(algorithm, trainer, received.tolist(), round), received.clone()
        for _ in range(3):  # the authors' code takes both steps in turn: the pull is to the weights that arrived
            own = own - 0.1 * (own - target + mu * (own - received))
            common = common - 0.1 * (common - target)
        assert answer == pytest.approx(common.tolist(), abs=1e-6)
        assert numbers_of(algorithm.network.state_dict()) == pytest.approx(own.tolist(), abs=1e-6)
        received = common + 1  # what the mean of several sites could be


def test_optimizer_states_are_separate_and_restored():
    algorithm, trainer = build(0.5, optimizer=torch.optim.Adam)
    one_round(algorithm, trainer)
    average = algorithm.optimizer.state[algorithm.network.a]["exp_avg"].tolist()
    assert average == pytest.approx([0.1 * (-3 + 0.5 * (1 - g)) for g in GLOBAL[:4]])
    state = {name: tensor.clone() for name, tensor in algorithm.state_dict().items()}
    assert state["0.exp_avg"].tolist() == pytest.approx([0.1 * (g - 4) for g in GLOBAL[:4]])
    algorithm.reset()
    assert algorithm.state_dict() == {}
    algorithm.load_state_dict(state)
    torch.testing.assert_close(algorithm.state_dict(), state, atol=0, rtol=0)


def test_clearing_optimizer_state_resets_both_networks():
    algorithm, trainer = build(0.5, optimizer=torch.optim.Adam)
    first = one_round(algorithm, trainer)
    algorithm.optimizer.state.clear()
    algorithm.network.load_state_dict(six(OWN))
    assert one_round(algorithm, trainer, round=1) == first


def test_invalid_messages_are_refused():
    algorithm, _ = build(0.5)
    with pytest.raises(MessageRefused, match="expected the server's weights, found metrics; use the strategy"):
        algorithm.receive(0, 1, Kind.METRICS, {})
    with pytest.raises(MessageRefused, match="1 with unknown names"):
        algorithm.receive(0, 1, Kind.WEIGHTS, {**six(GLOBAL), "c": torch.zeros(1)})
    with pytest.raises(MessageRefused, match=r"a: expected shape \(4,\), found shape \(3,\)"):
        algorithm.receive(0, 1, Kind.WEIGHTS, {"a": torch.zeros(3)})


def test_client_algorithm_missing_from_handlers_is_refused():
    network = Six(OWN)
    client = DittoAlgorithm(term=AnchoredTerm(), network=network, optimizer=torch.optim.SGD(network.parameters(), lr=1))
    expected = "expected a trainer, found no trainer; add @client_algorithm to the handlers"
    with pytest.raises(MessageRefused, match=expected):
        client.receive(0, 1, Kind.WEIGHTS, six(GLOBAL))
    assert numbers_of(network.state_dict()) == OWN


def test_anchor_ignores_parameters_without_reference() -> None:
    network, term = toy_network(), AnchoredTerm(mu=1.0)
    first, weight = next(iter(network.named_parameters()))
    term.set_anchor({first: weight.detach() - 1})
    engine = engine_of(network, output={"loss": torch.zeros(())})
    term(engine)
    assert engine.state.terms["anchored"].item() == weight.numel() / 2
    term.set_anchor(None)
    term(engine)
    assert engine.state.terms["anchored"].item() == 0
