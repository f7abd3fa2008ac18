"""FedCA: contrast and alignment by hand, the queue, and rounds that know nothing of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import TermLogger, UnlabelledStream
from samfed_monai.methods.fedca import ContrastiveTerm, Dictionary, alignment_loss, contrastive_loss
from tests.handlers.toy import next_round, same, toy_loader, toy_trainer, weights

X, Y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


def test_the_contrast_by_hand():
    assert contrastive_loss(X, X, X[:0]).item() == 0
    assert contrastive_loss(X, X, Y, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert contrastive_loss(X, Y, X, 0.5).item() == pytest.approx(math.log(1 + math.exp(2)))


def test_equal_encoders_are_aligned():
    features = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert alignment_loss(features, features).item() == 0
    assert alignment_loss(X, Y).item() == 2


def test_the_queue_keeps_the_newest_and_no_more_than_its_length():
    dictionary, lengths = Dictionary(5), []
    for first in range(0, 8, 2):
        dictionary.add(torch.tensor([[float(first)], [first + 1.0]]))
        lengths.append(len(dictionary))
    assert lengths == [2, 4, 5, 5]
    assert dictionary.like(torch.zeros(1, 1)).flatten().tolist() == [3.0, 4.0, 5.0, 6.0, 7.0]
    dictionary.add(torch.arange(9.0)[:, None])
    assert len(dictionary) == 5


class Shown(nn.Module):
    """A network whose encoder can be reached."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, image):
        return self.head(self.encoder(image).relu())


def trained(rounds: int, *terms):
    network = Shown()
    handlers = [UnlabelledStream(loader=toy_loader(), guides=[]), *terms, TermLogger()]
    trainer = toy_trainer(handlers, network=network, steps=3, learning_rate=0.05)
    means = []
    for number in range(rounds):
        torch.manual_seed(number)
        next_round(trainer, number, rounds)
        means.append(dict(trainer.state.term_means))
    return weights(network), means


def test_no_rounds_are_a_run_without_it_to_the_bit():
    assert same(trained(2)[0], trained(2, ContrastiveTerm(rounds=0))[0])
    assert not same(trained(2)[0], trained(2, ContrastiveTerm(rounds=1, weight=1.0))[0])


def test_it_takes_part_in_the_first_rounds_alone_and_repeats_to_the_bit():
    term = ContrastiveTerm(rounds=1, queue=6, weight=1.0)
    first, means = trained(2, term)
    assert {"contrast", "contrast_alignment"} <= means[0].keys()
    assert "contrast" not in means[1]
    assert len(term.dictionary) == 0, "it begins anew with each round"
    again, _ = trained(2, ContrastiveTerm(rounds=1, queue=6, weight=1.0))
    assert same(first, again)


def test_the_alignment_is_nothing_at_the_first_step():
    class Still(Shown):
        def train(self, mode: bool = True):
            return super().train(False)  # batch statistics would differ between the two

    network = Still()
    handlers = [UnlabelledStream(loader=toy_loader(), guides=[]), ContrastiveTerm(), TermLogger()]
    trainer = toy_trainer(handlers, network=network, steps=1)
    next_round(trainer, 0, 2)
    assert trainer.state.term_means["contrast_alignment"] == 0


def test_arguments_out_of_range_are_refused_together():
    with pytest.raises(
        Refused,
        match=r"(?s)contrast#rounds: .*-1.*contrast#queue: .*0.*#temperature: .*0.*#decay: .*1.*#alignment: .*-2",
    ):
        ContrastiveTerm(rounds=-1, queue=0, temperature=0, decay=1, alignment=-2)


def test_the_variant_trains_and_nothing_is_left_on_the_network(build):
    workflow = build("fedca")
    workflow.run()
    assert "contrast" in workflow.trainer.state.term_means
    assert not any(module._forward_pre_hooks for module in workflow.trainer.network.children())
