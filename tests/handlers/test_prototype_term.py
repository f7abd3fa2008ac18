"""FedProto's term on a network of two channels."""

from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.methods.fedproto import PrototypeTerm


class Two(nn.Module):
    """Features are the first two channels of the image; the head adds them."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.segmentation_head = nn.Conv2d(2, 1, 1, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.segmentation_head(self.gain * images[:, :2])


def train(term: PrototypeTerm, network: Two, steps: int = 1) -> SupervisedTrainer:
    image = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]], [[0.0, 2.0], [4.0, 6.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    batch = {"image": image, "label": torch.tensor([[[[0.0, 0.0], [1.0, 1.0]]]])}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch] * steps,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=lambda prediction, label: prediction.sum() * 0,
        train_handlers=[term],
        decollate=False,
    )
    trainer.run()
    return trainer


def test_it_collects_the_rounds_prototypes_and_adds_nothing_without_global_ones():
    network = Two()
    term = PrototypeTerm(network=network)
    trainer = train(term, network, steps=2)
    assert term.collected is not None
    assert term.collected.counts.tolist() == [4.0, 4.0]
    assert term.collected.means().tolist() == [[2.0, 1.0], [6.0, 5.0]]
    assert trainer.state.output["loss"].item() == 0.0


def test_it_pulls_towards_the_global_prototypes_by_its_weight():
    network = Two()
    term = PrototypeTerm(network=network, weight=3.0)
    term.pull_to(torch.tensor([[2.0, 3.0], [6.0, 5.0]]), torch.tensor([True, True]))
    trainer = train(term, network)
    assert trainer.state.terms["prototype"].item() == pytest.approx(1.0)  # class 0: (0 + 4) / 2, class 1: 0
    assert trainer.state.output["loss"].item() == pytest.approx(3.0)
    # d/d gain of mean over classes of mean_d (gain f - p)^2: class 0 (2 (0) 2 + 2 (-2) 1) / 2 = -2, half of it
    assert network.gain.grad is not None
    assert network.gain.grad.item() == pytest.approx(3.0 * -1.0)


def test_no_hook_is_left_between_iterations_for_guides_to_copy():
    network = Two()
    train(PrototypeTerm(network=network), network)
    assert not network.segmentation_head._forward_pre_hooks


def test_numbers_out_of_range_are_refused_together():
    with pytest.raises(Refused, match=r"(?s)terms#prototype#weight.*terms#prototype#tau"):
        PrototypeTerm(network=Two(), weight=-1.0, tau=1.0)
