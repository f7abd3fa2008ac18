"""SemiFL's server: averages, then learns from the public labels."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.methods.semifl import ServerTuned
from samfed_monai.protocol import Envelope, Kind
from samfed_monai.protocol.strategy import Server
from tests.federation.unlike import SERVER_WIDTH, bench, toy_net


class Tuned(ServerTuned):
    """Trains with a function in place of the bundle's public phase."""

    def __init__(self, tune) -> None:
        super().__init__()
        self.tune = tune  # type: ignore[method-assign]

    def attach(self, server: Server) -> ServerTuned:
        FedAvg.attach(self, server)
        return self


def run(tune, answers=((1, 2.0), (3, 6.0)), *, rounds=1):
    strategy = Tuned(tune)
    names = [f"s{index}" for index in range(2)]
    strategy.attach(Server(names, rounds, weights={"w": torch.zeros(2), "n": torch.tensor(0)}))
    for round in range(rounds):
        strategy.configure(round)
        updates = {
            name: Envelope(
                Kind.WEIGHTS, name, round, rounds, n=n, tensors={"w": torch.full((2,), w), "n": torch.tensor(n)}
            )
            for name, (n, w) in zip(names, answers, strict=False)
        }
        strategy.aggregate(round, updates)
    return strategy.global_weights


def test_what_is_tuned_is_the_mean_and_what_is_sent_is_tuned():
    seen = []

    def tune(weights, round):
        seen.append((round, weights["w"].tolist()))
        return {"w": weights["w"] * 10, "n": weights["n"] + 1}

    found = run(tune, rounds=2)
    assert seen == [(0, [5.0, 5.0]), (1, [5.0, 5.0])]  # (1 * 2 + 3 * 6) / 4, each round of the same answers
    assert found["w"].tolist() == [50.0, 50.0]
    assert found["n"].item() == 4  # the counter of the largest site, one more for the server's step


def test_a_tune_that_does_nothing_is_fedavg():
    plain = FedAvg()
    plain.attach(Server(["s0", "s1"], 1, weights={"w": torch.zeros(2)}))
    plain.configure(0)
    plain.aggregate(
        0,
        {
            name: Envelope(Kind.WEIGHTS, name, 0, 1, n=n, tensors={"w": torch.full((2,), w)})
            for name, n, w in (("s0", 1, 0.1), ("s1", 3, 0.7))
        },
    )
    tuned = run(lambda weights, round: weights, ((1, 0.1), (3, 0.7)))
    assert torch.equal(tuned["w"], plain.global_weights["w"])


def test_a_round_that_nobody_answered_is_not_tuned():
    found = run(lambda weights, round: 1 / 0, ())
    assert found["w"].tolist() == [0.0, 0.0]


def test_tuning_may_use_gradients():
    def tune(weights, round):
        w = weights["w"].clone().requires_grad_()
        (w.sum() ** 2).backward()
        return {**weights, "w": (w - 0.1 * w.grad).detach()}

    assert run(tune)["w"].tolist() == pytest.approx([3.0, 3.0])  # 5 - 0.1 * 2 * 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": torch.full((2,), float("nan"))}, "training at the server, round 1: w holds NaN or infinity"),
        ({"w": torch.zeros(3)}, r"w changed from \(2,\) float32 to \(3,\) float32"),
        ({"w": torch.zeros(2, dtype=torch.float64)}, r"to \(2,\) float64"),
        ({"v": torch.zeros(2)}, r"expected the network's 2 tensors, found others \(first 'v'\)"),
    ],
)
def test_weights_that_are_not_the_networks_stop_the_run(change, message):
    with pytest.raises(Stopped, match=message):
        run(lambda weights, round: {**weights, **change})


def test_without_a_public_phase_it_is_refused_before_the_first_round():
    with pytest.raises(Refused, match=r"strategy: expected a PublicMaskSharing, found no sharing .*semifl"):
        ServerTuned().attach(Server(["a"], 1, weights={"w": torch.zeros(2)}))


def trained(rounds: int, *, resume_after: int | None = None) -> dict[str, torch.Tensor]:
    """Global weights after rounds in which one site sends back what it got; in two pieces where told to."""

    def attach() -> ServerTuned:
        start = toy_net(SERVER_WIDTH).state_dict()
        return ServerTuned().attach(Server(["a"], rounds, seed=3, weights=start, bench=bench))

    strategy = attach()
    for round in range(rounds):
        tensors = dict(strategy.configure(round)["a"].tensors)
        strategy.aggregate(round, {"a": Envelope(Kind.WEIGHTS, "a", round, rounds, n=1, tensors=tensors)})
        if round == resume_after:
            weights, state = strategy.global_weights, strategy.state_dict()
            strategy = attach()
            strategy.load_state_dict(weights, {name: tensor.clone() for name, tensor in state.items()})
    return strategy.global_weights


def test_what_does_not_travel_stays_as_the_server_has_it():
    start = toy_net(SERVER_WIDTH).state_dict()
    shared = {name: tensor for name, tensor in start.items() if not name.startswith("0.")}
    strategy = ServerTuned().attach(Server(["a"], 1, seed=3, weights=shared, bench=bench))
    tensors = dict(strategy.configure(0)["a"].tensors)
    strategy.aggregate(0, {"a": Envelope(Kind.WEIGHTS, "a", 0, 1, n=1, tensors=tensors)})
    assert strategy.global_weights.keys() == shared.keys()
    assert any(not torch.equal(strategy.global_weights[name], shared[name]) for name in shared)


def test_the_bundles_public_phase_trains_and_its_moments_survive_a_resume():
    whole, parts = trained(2), trained(2, resume_after=0)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    start = toy_net(SERVER_WIDTH).state_dict()
    assert not torch.equal(whole["0.weight"], start["0.weight"])
