"""The two directions of KL, by the formula."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.inferers import SimpleInferer

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import TermLogger
from samfed_monai.methods.pfedsam import DecoupledStages, MutualDistillationTerm
from samfed_monai.networks import SamPath
from samfed_monai.networks.sam.network import SamOutputs
from tests.handlers.sam_toy import sam_trainer
from tests.handlers.toy import toy_network, toy_trainer
from tests.networks.sam.tiny import SIZE, tiny_network, wake


def kl(of: torch.Tensor, to: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T^2 KL(of || to)`` of Bernoulli distributions, as it stands in a textbook."""
    p, q = (of / temperature).sigmoid(), (to / temperature).sigmoid()
    return temperature**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()


@pytest.mark.parametrize("path", list(SamPath))
def test_the_other_path_teaches_the_one_that_is_trained(path):
    torch.manual_seed(0)
    logits = {SamPath.GLOBAL: torch.randn(2, 1, 4, 4), SamPath.PERSONAL: (4 * torch.randn(2, 1, 4, 4) + 2).clamp(-9, 9)}
    prediction: Any = logits[path].clone().requires_grad_()
    prediction.sam_outputs = SamOutputs(path, None)
    image, asked = torch.rand(2, 3, 4, 4), []

    def network(given: torch.Tensor, path: SamPath) -> torch.Tensor:
        asked.append((given is image, path, torch.is_grad_enabled()))
        return logits[path]

    engine: Any = SimpleNamespace(
        state=SimpleNamespace(output={"pred": prediction, "image": image}), network=network, inferer=SimpleInferer()
    )
    found = MutualDistillationTerm(temperature=3.0).value(None, engine)
    assert asked == [(True, path.other, False)]
    torch.testing.assert_close(found, kl(logits[path.other], logits[path], 3.0), rtol=1e-4, atol=1e-6)
    assert abs(kl(logits[path], logits[path.other], 3.0) - found) > 0.01 * found  # the directions differ
    found.backward()
    assert prediction.grad.any()


def test_paths_that_are_sure_and_agree_teach_each_other_nothing():
    logits = torch.tensor([[-15.0, 15.0], [9.3, -40.0]]).view(1, 1, 2, 2)
    prediction: Any = logits.clone().requires_grad_()
    prediction.sam_outputs = SamOutputs(SamPath.GLOBAL, None)
    state = SimpleNamespace(output={"pred": prediction, "image": torch.rand(1, 3, 2, 2)})
    engine: Any = SimpleNamespace(state=state, network=lambda image, path: logits, inferer=SimpleInferer())
    value = MutualDistillationTerm().value(None, engine)
    value.backward()
    assert value == 0
    assert not prediction.grad.any()


def test_the_gradient_reaches_the_trained_path_alone():
    for path in SamPath:
        network = tiny_network()
        wake(network)
        trainer = sam_trainer([], network=network)
        image = torch.rand(2, 3, SIZE, SIZE)
        trainer.state.output = {"pred": network(image, path=path), "image": image}
        MutualDistillationTerm().value(None, trainer).backward()
        experts = [p.grad for name, p in network.named_parameters() if ".experts." in name]
        assert {grad is None for grad in experts} == {path is SamPath.GLOBAL}


def test_in_a_trainer_its_weight_is_one_half_and_fresh_experts_cost_nothing():
    network = tiny_network()  # both paths are one
    term = MutualDistillationTerm()
    trainer = sam_trainer([DecoupledStages(share=1.0), term, TermLogger()], network=network, steps=1)
    trainer.run()
    assert trainer.state.term_means["mutual_kd"] == pytest.approx(0, abs=1e-6)
    assert (term.weight, term.temperature, term.needs) == (0.5, 2.0, ())


def test_networks_without_two_paths_are_refused_before_any_step():
    trainer = toy_trainer([MutualDistillationTerm()], network=toy_network())
    with pytest.raises(Refused, match=r"terms#mutual_kd: expected a SAM network with experts, found Sequential"):
        trainer.run()
    assert trainer.state.iteration == 0
    with pytest.raises(Refused, match=r"found a SAM network without experts; set network_def#experts to 4, or disable"):
        sam_trainer([MutualDistillationTerm()], network=tiny_network(experts=0)).run()


def test_a_temperature_that_is_none_is_refused():
    with pytest.raises(Refused, match=r"terms#mutual_kd#temperature: expected a number > 0, found 0"):
        MutualDistillationTerm(temperature=0)
