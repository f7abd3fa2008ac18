"""APPLE: its formulas by hand, a site with a network of six numbers, and the messages of the server."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.methods.apple import Apple, AppleAlgorithm, annealed, shares_gradient
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Kind, Message, MessageRefused, UpdateGuard
from samfed_monai.protocol.strategy import Server
from tests.handlers.toy import next_round
from tests.methods.personal import Six, numbers_of, six, six_trainer
from tests.methods.rounds import a_round, update

OWN = [1.0, 0.0, 2.0, -1.0, 4.0, 0.0]
OTHER = [0.0, 2.0, 2.0, 1.0, 0.0, 8.0]
TARGET = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]


def test_shares_gradient_matches_hand_computed_values():
    prior, shares, cores = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25]), torch.tensor([OWN, OTHER])
    gradient = shares @ cores - torch.tensor(TARGET)  # -0.25, -0.5, 1, -0.5, 2, 1
    # <g, c_0> = -0.25 + 2 + 0.5 + 8 = 10.25, <g, c_1> = -1 + 2 - 0.5 + 8 = 8.5; the pull: 2 * 0.1 * 0.25
    assert shares_gradient(gradient, cores, shares, prior, 0.1).tolist() == pytest.approx([10.30, 8.45])


def test_annealing_factor_decays_to_zero():
    exponential = [annealed(round, 20, 0.2) for round in range(6)]
    assert exponential == pytest.approx([1.0, 0.001**0.25, 0.001**0.5, 0.001**0.75, 0.0, 0.0])
    assert annealed(0, 5, 0.1) == 0.0, "a tenth of five rounds is none"


def build(steps=1, momentum=0.0, **options):
    network = Six(OWN)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=momentum)
    options = {"fraction": 1.0, **options}
    algorithm = AppleAlgorithm(network=network, optimizer=optimizer, site="s", **options)
    return algorithm, six_trainer(network, optimizer, [algorithm], TARGET, steps)


def sent(prior=(0.75, 0.25)):
    cores = {f"core_1.{name}": tensor for name, tensor in six(OTHER).items()}
    return {"prior": torch.tensor(prior), "place": torch.tensor(0), **cores}


def train(algorithm, trainer):
    next_round(trainer, 0, 1)
    return numbers_of(algorithm.share()[1])


def as_published(rounds, *, steps, mu, rate, momentum):
    """Core model and shares after rounds of the authors' training of one site, by autograd on all that is learned."""
    core, prior, target = torch.tensor(OWN), torch.tensor([0.75, 0.25]), torch.tensor(TARGET)
    shares, other = prior.clone(), torch.tensor(OTHER)
    for number in range(1, rounds):
        core, shares = core.requires_grad_(), shares.requires_grad_()
        groups = [{"params": [core]}, {"params": [shares], "lr": rate}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=momentum)  # made anew in each round
        for _ in range(steps):
            optimizer.zero_grad()
            loss = 0.5 * (shares[0] * core + shares[1] * other - target).square().sum()
            (loss + mu * 0.001 ** (number / rounds) * (shares - prior).square().sum()).backward()
            optimizer.step()
        core, shares = core.detach(), shares.detach()
    return core, shares


def test_local_training_matches_published_algorithm():
    algorithm, trainer = build(steps=4, momentum=0.9, mu=0.7, rate=0.004, keep_sum=False)
    for round in (1, 2):
        algorithm.receive(round, 3, Kind.WEIGHTS, sent())
        algorithm.optimizer.state.clear()
        answer = train(algorithm, trainer)
    core, shares = as_published(3, steps=4, mu=0.7, rate=0.004, momentum=0.9)
    torch.testing.assert_close(torch.tensor(answer), core, atol=1e-6, rtol=0)
    torch.testing.assert_close(algorithm.state_dict()["shares"], shares, atol=1e-6, rtol=0)
    assert (shares - torch.tensor([0.75, 0.25])).abs().max() > 0.01
    mixture = shares[0] * core + shares[1] * torch.tensor(OTHER)
    assert numbers_of(algorithm.network.state_dict()) == pytest.approx(mixture.tolist()), "what is evaluated"
    algorithm, trainer = build()  # AdamW normalises the own share 0.75 away from the gradient: its step has it
    trainer.optimizer = torch.optim.AdamW(algorithm.network.parameters(), lr=0.1, weight_decay=0.0)
    algorithm.optimizer = trainer.optimizer
    algorithm.receive(1, 3, Kind.WEIGHTS, sent())  # signs of w - target, which is -0.25, -0.5, 1, -0.5, 2, 1
    assert train(algorithm, trainer) == pytest.approx([1.075, 0.075, 1.925, -0.925, 3.925, -0.075])


def test_shares_keep_their_sum_unless_asked():
    shares = {}
    for keep_sum in (True, False):
        algorithm, trainer = build(rate=0.01, mu=0.0, keep_sum=keep_sum)
        algorithm.receive(1, 3, Kind.WEIGHTS, sent())
        train(algorithm, trainer)
        shares[keep_sum] = algorithm.state_dict()["shares"].tolist()
    # w - target is -0.25, -0.5, 1, -0.5, 2, 1, so <g, c> is 10.25 and 8.5, with a mean of 9.375
    assert shares[False] == pytest.approx([0.75 - 0.1025, 0.25 - 0.085])
    assert shares[True] == pytest.approx([0.75 - 0.00875, 0.25 + 0.00875])


def test_prior_change_is_added_to_shares():
    algorithm, _ = build(rate=0.0)
    state = {"core": torch.tensor(OWN), "shares": torch.tensor([0.5, 0.5]), "prior": torch.tensor([0.75, 0.25])}
    algorithm.load_state_dict(state)
    algorithm.receive(1, 3, Kind.WEIGHTS, sent((0.5, 0.5)))
    assert algorithm.state_dict()["shares"].tolist() == [0.25, 0.75]


def test_first_round_trains_received_model():
    algorithm, trainer = build()
    assert algorithm.receive(0, 3, Kind.WEIGHTS, six(OTHER)) == {}
    answer = train(algorithm, trainer)
    assert answer == pytest.approx([o - 0.1 * (o - t) for o, t in zip(OTHER, TARGET, strict=True)])
    assert answer == numbers_of(algorithm.network.state_dict()) == algorithm.state_dict()["core"].tolist()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prior": torch.tensor([1.0])}, "expected a prior for each site, and this site's index"),
        ({"prior": torch.tensor([1.5, -0.5])}, "use the strategy Apple"),
        ({"place": torch.tensor(2)}, "expected a prior for each site"),
        ({"core_1.a": torch.zeros(3)}, r"core_1\.a: expected shape \(4,\), found shape \(3,\)"),
        ({"core_1.c": torch.zeros(3)}, "1 with unknown names"),
        ({"core_1.b": torch.tensor([1.0, float("nan")])}, "NaN"),
    ],
)
def test_invalid_messages_are_refused(change, reason):
    algorithm, _ = build()
    with pytest.raises(MessageRefused, match=reason):
        algorithm.receive(1, 3, Kind.WEIGHTS, {**sent(), **change})
    assert numbers_of(algorithm.network.state_dict()) == OWN


def test_state_of_other_network_is_refused():
    algorithm, _ = build()
    algorithm.load_state_dict({"core": torch.zeros(5), "shares": torch.zeros(2), "prior": torch.zeros(2)})
    with pytest.raises(MessageRefused, match="the core model of another network; start the run again"):
        algorithm.receive(1, 3, Kind.WEIGHTS, sent())


START = [0.0] * 6
CORES = {"s0": OWN, "s1": OTHER, "s2": [8.0] * 6}
COUNTS = {"s0": 3, "s1": 1, "s2": 4}


def server(strategy):
    return strategy.attach(Server(list(CORES), 3, weights=six(START)))


def answers(sites=tuple(CORES)) -> dict[str, Message]:
    return {site: update(site, rounds=3, images=COUNTS[site], **six(CORES[site])) for site in sites}


def test_server_sends_start_then_cores_of_other_sites():
    strategy = server(Apple())
    first = strategy.configure(0)
    assert all(numbers_of(message.tensors) == START for message in first.values())
    assert {message.extra["purpose"] for message in first.values()} == {"distil"}
    strategy.aggregate(0, answers())
    sent = strategy.configure(1)["s1"].tensors
    assert sent.keys() == {"prior", "place", "core_0.a", "core_0.b", "core_2.a", "core_2.b"}
    assert (sent["prior"].tolist(), sent["place"].item()) == ([0.375, 0.125, 0.5], 1)
    assert [*sent["core_2.a"].tolist(), *sent["core_2.b"].tolist()] == CORES["s2"]
    assert strategy.expected("s1").keys() == {"a", "b"}, "one core model comes back"
    assert strategy.evaluation("s1") is None
    assert numbers_of(strategy.evaluation("elsewhere")) == numbers_of(strategy.global_weights)


def test_mixture_at_prior_equals_fedavg_mean():
    strategy, plain = server(Apple()), server(FedAvg())
    for each in (strategy, plain):
        a_round(each, answers())
    for site, message in strategy.configure(1).items():
        network = Six(CORES[site])
        algorithm = AppleAlgorithm(network=network, optimizer=torch.optim.SGD(network.parameters(), lr=1), site=site)
        algorithm.receive(1, 3, Kind.WEIGHTS, message.tensors)
        assert numbers_of(network.state_dict()) == pytest.approx(numbers_of(plain.global_weights))
    assert numbers_of(strategy.global_weights) == numbers_of(plain.global_weights)


def test_missing_answers_and_too_few_sites_are_handled():
    strategy = server(Apple())
    a_round(strategy, answers(sites=("s0", "s1")))
    sent = strategy.configure(1)["s0"].tensors
    assert sent["prior"].tolist() == pytest.approx([0.5, 1 / 6, 1 / 3])
    assert sent["core_2.a"].tolist() == START[:4]
    with pytest.raises(Refused, match=r"strategy: expected 2 sites or more, .*, found 1; choose .*local_only"):
        Apple().require_sites(["a"])
    Apple().require_sites(["a", "b"])


def test_fault_39_overlong_core_model_step_is_clipped():
    strategy = Apple().attach(Server(["s0", "s1"], 2, weights=six([1.0] * 6), guard=UpdateGuard(limit=2.0)))
    a_round(strategy, {site: update(site, rounds=2, **six([w] * 6)) for site, w in {"s0": 101.0, "s1": 1.0}.items()})
    torch.testing.assert_close(strategy.configure(1)["s1"].tensors["core_0.a"], torch.full((4,), 3.0))
