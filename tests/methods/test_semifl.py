"""SemiFL: a server that tunes the average on its labelled images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.bundle import ConfigWorkflow

from samfed_monai.core.errors import Stopped
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.methods.semifl import ServerTuned
from samfed_monai.protocol import Kind, Message
from samfed_monai.protocol.strategy import Server
from tests.federation.unlike import SERVER_WIDTH, server_algorithm, toy_net
from tests.methods.rounds import a_round, update


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
        sent = dict(zip(names, answers, strict=False))
        options = {"round": round, "rounds": rounds}
        a_round(
            strategy, {site: update(site, images=n, w=[w, w], n=n, **options) for site, (n, w) in sent.items()}, round
        )
    return strategy.global_weights


def test_server_tunes_mean_of_each_round_with_answers():
    seen = []

    def tune(weights, round):
        seen.append((round, weights["w"].tolist()))
        return {"w": weights["w"] * 10, "n": weights["n"] + 1}

    found = run(tune, rounds=2)
    assert seen == [(0, [5.0, 5.0]), (1, [5.0, 5.0])]  # (1 * 2 + 3 * 6) / 4, each round of the same answers
    assert found["w"].tolist() == [50.0, 50.0]
    assert found["n"].item() == 4  # the counter of the largest site, one more for the server's step
    assert run(lambda weights, round: 1 / 0, ())["w"].tolist() == [0.0, 0.0]


def test_tuning_may_use_gradients():
    def tune(weights, round):
        w = weights["w"].clone().requires_grad_()
        (w.sum() ** 2).backward()
        return {**weights, "w": (w - 0.1 * w.grad).detach()}

    assert run(tune)["w"].tolist() == pytest.approx([3.0, 3.0])  # 5 - 0.1 * 2 * 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": torch.full((2,), float("nan"))}, "training at the server, round 1 -> w: .*found NaN or infinity"),
        ({"v": torch.zeros(2)}, "v: expected a tensor of this network, found an unknown tensor"),
    ],
)
def test_invalid_tuned_weights_stop_run(change, message):
    with pytest.raises(Stopped, match=message):
        run(lambda weights, round: {**weights, **change})


def test_tuning_updates_only_shared_weights():
    start = toy_net(SERVER_WIDTH).state_dict()
    shared = {name: tensor for name, tensor in start.items() if not name.startswith("0.")}
    strategy = ServerTuned().attach(Server(["a"], 1, seed=3, weights=shared, algorithm=server_algorithm))
    tensors = dict(strategy.configure(0)["a"].tensors)
    strategy.aggregate(0, {"a": Message(Kind.WEIGHTS, "a", 0, 1, n=1, tensors=tensors)})
    assert strategy.global_weights.keys() == shared.keys()
    assert any(not torch.equal(strategy.global_weights[name], shared[name]) for name in shared)


def test_site_does_not_train_on_public_labels(build: Callable[..., ConfigWorkflow]) -> None:
    workflow = build("semifl", local_steps=1)
    workflow.run()
    state = workflow.trainer.state
    means = state.term_means
    assert means["supervised"] > 0
    loss = state.output[0]["loss"] if isinstance(state.output, list) else state.output["loss"]
    assert loss.item() == pytest.approx(means["pseudo_label"] + means["mixup"], rel=1e-5)
