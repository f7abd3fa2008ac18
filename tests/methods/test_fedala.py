"""FedALA: the mixture by hand, and a site that learns it on a network of six numbers."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.methods.fedala import AdaptiveMixing, learned, mixed
from samfed_monai.protocol import Kind
from tests.handlers.toy import next_round
from tests.methods.personal import SERVER, SITE, WANTED, Six, numbers_of, six, six_trainer

LOCAL = torch.tensor([0.1, -2.0, 3.0, 0.7, 5.0, -0.3])
COMMON = torch.tensor([0.9, 2.0, 1.0, 0.7, -1.0, 0.6])


def test_mixture_and_its_weights_match_hand_computed_values():
    assert torch.equal(mixed(LOCAL, COMMON, torch.ones(6)), COMMON)
    assert torch.equal(mixed(LOCAL, COMMON, torch.zeros(6)), LOCAL)
    found = learned(torch.full((6,), 0.5), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 0.0]), LOCAL, COMMON, 1.0)
    #  differences: 0.8, 4, -2, 0, -6, 0.9
    assert found.tolist() == [0.0, 1.0, 1.0, 0.5, 0.0, 0.5]


def build(*, optimizer=torch.optim.AdamW, steps=1, **options):
    network = Six(SITE)
    chosen = optimizer(network.parameters(), lr=0.1)
    settings = {"upper": 0.5, "rate": 0.1, "batches": 1, "first_batches": 1}
    algorithm = AdaptiveMixing(network=network, optimizer=chosen, site="s", **{**settings, **options})
    return algorithm, six_trainer(network, chosen, [algorithm], WANTED, steps)


def mix_of(algorithm) -> list[float]:
    return algorithm.state_dict()["b"].tolist()


def test_lower_layers_are_global_and_upper_layers_mixed():
    algorithm, _ = build()
    means = algorithm.receive(1, 3, Kind.WEIGHTS, six(SERVER))
    # W = 1 gives the global [4, -2]; gradient [2, 0]; times (global - local) = [2, -4]: W = [1 - 0.1 * 4, 1]
    assert mix_of(algorithm) == pytest.approx([0.6, 1.0])
    assert numbers_of(algorithm.network.state_dict()) == pytest.approx([0.0, 1.0, 2.0, 3.0, 3.2, -2.0])
    assert means == {"mixed": pytest.approx(0.8)}


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_mixing_does_not_change_trainer_or_lower_layers(optimizer):
    algorithm, trainer = build(first_batches=3, optimizer=optimizer)
    trainer.state.epoch = trainer.state.iteration = 1
    algorithm.receive(1, 3, Kind.WEIGHTS, six(SERVER))
    assert algorithm.optimizer.state == {}
    assert numbers_of(algorithm.network.state_dict())[:4] == SERVER[:4]
    assert (trainer.state.epoch, trainer.state.iteration, trainer.state.epoch_length) == (1, 1, 1)
    assert mix_of(algorithm)[0] < 0.6, "three steps"


def test_rounds_match_published_algorithm():
    algorithm, trainer = build(optimizer=torch.optim.SGD, steps=2, batches=2, first_batches=3)
    own, target, weight = torch.tensor(SITE), torch.tensor(WANTED), torch.ones(2)
    for round, sent in enumerate([SITE, SERVER, WANTED[::-1]]):
        algorithm.receive(round, 3, Kind.WEIGHTS, six(sent))
        next_round(trainer, 0, 1)
        common = torch.tensor(sent)
        if round:  # both sides are equal in the first one
            for _ in range(3 if round == 1 else 2):
                weight = weight.requires_grad_()
                mixture = own[4:] + (common[4:] - own[4:]) * weight
                (slope,) = torch.autograd.grad(0.5 * (mixture - target[4:]).square().sum(), weight)
                weight = (weight - 0.1 * slope).detach().clamp(0, 1)
            own = torch.cat([common[:4], own[4:] + (common[4:] - own[4:]) * weight])
        for _ in range(2):
            own = own - 0.1 * (own - target)
        assert numbers_of(algorithm.network.state_dict()) == pytest.approx(own.tolist(), abs=1e-6)
    assert mix_of(algorithm) == pytest.approx(weight.tolist(), abs=1e-6)


def test_zero_batches_equal_fedavg():
    algorithm, _ = build(batches=0, first_batches=0)
    algorithm.receive(1, 3, Kind.WEIGHTS, six(SERVER))
    assert numbers_of(algorithm.network.state_dict()) == SERVER


def test_first_round_is_not_mixed_and_state_is_restored():
    algorithm, trainer = build()
    assert algorithm.receive(0, 3, Kind.WEIGHTS, six(SITE)) == {}
    assert algorithm.state_dict() == {}
    algorithm.receive(1, 3, Kind.WEIGHTS, six(SERVER))
    trainer.state.max_epochs = 1
    trainer.run()
    kind, answer = algorithm.share()
    assert kind == Kind.WEIGHTS
    assert numbers_of(answer) == numbers_of(algorithm.network.state_dict())
    assert answer["a"].data_ptr() != algorithm.network.a.data_ptr()
    state = {name: tensor.clone() for name, tensor in algorithm.state_dict().items()}
    other, _ = build()
    other.network.load_state_dict(answer)
    other.load_state_dict(state)
    for each in (algorithm, other):
        each.receive(2, 3, Kind.WEIGHTS, six(SERVER))
    assert mix_of(algorithm) == mix_of(other)
    assert numbers_of(algorithm.network.state_dict()) == numbers_of(other.network.state_dict())


def test_reset_restarts_mixing_weights_at_one():
    algorithm, _ = build()
    algorithm.receive(1, 3, Kind.WEIGHTS, six(SERVER))
    algorithm.reset()
    assert algorithm.state_dict() == {}
    fresh, _ = build()
    algorithm.network.load_state_dict(six(SITE))
    for each in (algorithm, fresh):
        each.receive(1, 3, Kind.WEIGHTS, six(SERVER))
    assert mix_of(algorithm) == mix_of(fresh) == pytest.approx([0.6, 1.0])
