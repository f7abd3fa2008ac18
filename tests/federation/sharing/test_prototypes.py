"""A site's side of FedProto: what it takes from all, and what it gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from samfed_monai.methods.fedproto import ClassSums, PrototypeSharing
from samfed_monai.protocol import Kind, MessageRefused
from tests.federation.unlike import bench


class Term:
    """Keeps what it is told to pull towards."""

    classes = 2

    def __init__(self, collected: ClassSums | None = None) -> None:
        self.collected = collected
        self.pulled: list = []

    def pull_to(self, prototypes, known):
        self.pulled.append((prototypes.tolist(), known.tolist()))


def made(term: Term) -> tuple[PrototypeSharing, list]:
    """A sharing on a network with features of width 3, and the calls of its public phase."""
    sharing, calls = bench(**{"sharing#_target_": "samfed_monai.methods.fedproto.PrototypeSharing"}), []
    assert isinstance(sharing, PrototypeSharing)
    sharing.term = term  # type: ignore[assignment]
    sharing.network = nn.Module()
    sharing.network.segmentation_head = nn.Conv2d(3, 1, 1)
    sharing.phase = SimpleNamespace(run=lambda *arguments: calls.append(arguments) or {"supervised": 1.0})
    return sharing, calls


def test_it_pulls_towards_classes_that_somebody_has_seen_and_learns_the_labels_alone():
    sharing, calls = made(Term())
    sent = {"prototypes": torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), "counts": torch.tensor([4.0, 0.0])}
    assert sharing.receive(1, 3, Kind.PROTOTYPES, sent) == {"public_supervised": 1.0}
    assert sharing.term.pulled == [([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], [True, False])]
    assert calls == [(1, 3)]


def test_a_round_in_which_nothing_is_sent_pulls_nowhere():
    sharing, calls = made(Term())
    sharing.receive(0, 3, Kind.METRICS, {})
    assert (sharing.term.pulled, calls) == ([], [(0, 3)])


def test_prototypes_of_another_width_are_refused_before_a_step():
    sharing, calls = made(Term())
    sent = {"prototypes": torch.zeros(2, 4), "counts": torch.zeros(2)}
    with pytest.raises(MessageRefused, match=r"prototypes: expected shape \(2, 3\), found shape \(2, 4\)"):
        sharing.receive(1, 3, Kind.PROTOTYPES, sent)
    assert (sharing.term.pulled, calls) == ([], [])


def test_it_gives_means_and_counts():
    collected = ClassSums(torch.tensor([[2.0, 4.0, 6.0], [5.0, 5.0, 5.0]]), torch.tensor([2.0, 5.0]))
    kind, tensors = made(Term(collected))[0].share()
    assert kind == Kind.PROTOTYPES
    assert tensors["prototypes"].tolist() == [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]
    assert tensors["counts"].tolist() == [2.0, 5.0]


def test_without_a_step_there_is_nothing_to_give():
    with pytest.raises(RuntimeError, match="no step was taken"):
        made(Term())[0].share()
