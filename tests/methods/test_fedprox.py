"""FedProx: the gradient is mu (w - w_G), for parameters only."""

from __future__ import annotations

import pytest
import torch
from monai.engines.utils import IterationEvents

from samfed_monai.methods.fedprox import ProximalTerm
from tests.handlers.toy import next_round, toy_network, toy_trainer
from tests.methods import engine_of
from tests.methods.personal import Six, numbers_of, six_trainer


def test_gradient_is_mu_times_distance_to_global_weights() -> None:
    network, term = toy_network(), ProximalTerm(mu=0.3)
    engine = engine_of(network, output={"loss": torch.zeros(())})
    term.remember(engine)
    with torch.no_grad():
        for index, weight in enumerate(network.parameters()):
            weight.add_(index + 1)
        for buffer in network.buffers():
            buffer.add_(7)  # running statistics are not weights
    network[0].weight.requires_grad_(False)  # a part at rest, as where parts are trained in turn
    term(engine)
    squares = sum(weight.numel() * (index + 1) ** 2 for index, weight in enumerate(network.parameters()))
    assert engine.state.terms["proximal"].item() == pytest.approx(squares / 2, rel=1e-5)
    assert engine.state.output["loss"].item() == pytest.approx(0.3 * squares / 2, rel=1e-5)
    engine.state.output["loss"].backward()
    assert network[0].weight.grad is None
    for index, weight in list(enumerate(network.parameters()))[1:]:
        torch.testing.assert_close(weight.grad, torch.full_like(weight, 0.3 * (index + 1)))


@pytest.mark.parametrize("federated", [True, False])
def test_first_step_of_round_or_epoch_has_no_penalty(federated: bool) -> None:
    values: list[float] = []
    trainer = toy_trainer([ProximalTerm(mu=1.0)], steps=2, epochs=1 if federated else 2)
    trainer.add_event_handler(
        IterationEvents.LOSS_COMPLETED, lambda engine: values.append(engine.state.terms["proximal"].item())
    )
    if federated:
        for number in range(2):
            next_round(trainer, number, 2)
    else:
        trainer.run()
    assert values[0] == values[2] == 0 < min(values[1], values[3])


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_local_epoch_matches_published_optimizer(mu: float) -> None:
    start, target = torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0, 0.0]), torch.tensor([4.0] * 6)
    network, found = Six(start.tolist()), start.clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    six_trainer(network, optimizer, [ProximalTerm(mu=mu)], target.tolist(), steps=4).run()
    for _ in range(4):  # w -= rate (gradient + mu (w - w_G)), the authors' PerturbedGradientDescent
        found -= 0.1 * (found - target + mu * (found - start))
    assert numbers_of(network.state_dict()) == pytest.approx(found.tolist(), abs=1e-6)
