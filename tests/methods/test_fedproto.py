"""FedProto: prototypes and their loss by hand, the term, what sites send, and how the server averages it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from samfed_monai.config import find_bundle
from samfed_monai.federation.workflow import client_config
from samfed_monai.methods import fedproto
from samfed_monai.networks import client_network
from samfed_monai.networks.features import feature_width
from samfed_monai.protocol import Kind, Message, MessageRefused, Server, UpdateGuard
from tests.federation.unlike import server_algorithm
from tests.methods.rounds import a_round

FEATURES = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]], [[0.0, 2.0], [4.0, 6.0]]]])  # (1, 2, 2, 2)
LABELS = torch.tensor([[[[0, 0], [1, 1]]]])


def test_class_sums_and_means_match_hand_computed_values():
    found = fedproto.class_sums(FEATURES, LABELS, classes=2)
    assert found.sums.tolist() == [[4.0, 2.0], [12.0, 10.0]]
    assert found.counts.tolist() == [2.0, 2.0]
    assert found.means().tolist() == [[2.0, 1.0], [6.0, 5.0]]
    found = fedproto.class_sums(FEATURES, LABELS, torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]), classes=2)
    assert found.counts.tolist() == [1.0, 0.0]
    assert found.means().tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_labels_are_resized_to_features():
    wide = LABELS.repeat_interleave(4, 2).repeat_interleave(4, 3)
    sums = [fedproto.class_sums(FEATURES, labels, classes=2).sums for labels in (wide, LABELS)]
    assert torch.equal(*sums)
    corner = torch.zeros(1, 1, 8, 8, dtype=torch.long)
    corner[..., 0, 0] = corner[..., 6, 6] = 1  # the middle of a cell of 4 x 4 is its third pixel, not its first
    assert fedproto.class_sums(FEATURES, corner, classes=2).counts.tolist() == [3.0, 1.0]


def test_prototype_loss_covers_classes_present_in_both():
    batch = fedproto.ClassSums(torch.tensor([[4.0, 2.0], [12.0, 10.0]]), torch.tensor([2.0, 2.0]))
    target = torch.tensor([[2.0, 3.0], [6.0, 5.0]])
    # class 0: ((2-2)^2 + (1-3)^2) / 2 = 2, class 1: 0
    for known, loss in (([True, True], 1.0), ([True, False], 2.0), ([False, False], 0.0)):
        assert fedproto.prototype_loss(batch, target, torch.tensor(known)).item() == pytest.approx(loss)
    one = fedproto.ClassSums(batch.sums, torch.tensor([2.0, 0.0]))
    assert fedproto.prototype_loss(one, target, torch.tensor([True, True])).item() == pytest.approx(2.0)


class Two(nn.Module):
    """Features are the first two channels of the image; the head adds them."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.segmentation_head = nn.Conv2d(2, 1, 1, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.segmentation_head(self.gain * images[:, :2])


LABEL = torch.tensor([[[[0.0, 0.0], [1.0, 1.0]]]])


def train(term: fedproto.PrototypeTerm, network: Two, steps: int = 1, label: torch.Tensor = LABEL) -> SupervisedTrainer:
    image = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]], [[0.0, 2.0], [4.0, 6.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": image, "label": label}] * steps,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=lambda prediction, label: prediction.sum() * 0,
        train_handlers=[term],
        decollate=False,
    )
    trainer.run()
    return trainer


def test_term_without_global_prototypes_only_collects():
    network = Two()
    term = fedproto.PrototypeTerm(network=network)
    trainer = train(term, network, steps=2)
    assert term.collected.counts.tolist() == [4.0, 4.0]
    assert term.collected.means().tolist() == [[2.0, 1.0], [6.0, 5.0]]
    assert trainer.state.output["loss"].item() == 0.0
    several = fedproto.PrototypeTerm(network=network, classes=["one", "two"])
    label = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]]])
    train(several, network, label=label)
    assert several.collected.counts.tolist() == [1.0, 1.0, 2.0]


def test_term_adds_weighted_prototype_loss():
    network = Two()
    term = fedproto.PrototypeTerm(network=network, weight=3.0)
    term.prototypes = torch.tensor([[2.0, 3.0], [6.0, 5.0]]), torch.tensor([True, True])
    trainer = train(term, network)
    assert trainer.state.terms["prototype"].item() == pytest.approx(1.0)  # class 0: (0 + 4) / 2, class 1: 0
    assert trainer.state.output["loss"].item() == pytest.approx(3.0)
    # d/d gain of mean over classes of mean_d (gain f - p)^2: class 0 (2 (0) 2 + 2 (-2) 1) / 2 = -2, half of it
    assert network.gain.grad.item() == pytest.approx(3.0 * -1.0)


def headed(width: int) -> nn.Module:
    """A network that is known by its head, to features of this width."""
    network = nn.Module()
    network.segmentation_head = nn.Conv2d(width, 1, 1)
    return network


class Term:
    """Keeps the prototypes that it is given."""

    count = 2
    prototypes: tuple | None = None

    def __init__(self, collected: fedproto.ClassSums | None = None) -> None:
        self.collected = collected


def made(term: Term) -> tuple[fedproto.PrototypeAlgorithm, list]:
    """A client algorithm on a network with features of width 3, and the calls of its public phase."""
    target = {"client_algorithm#_target_": "samfed_monai.methods.fedproto.PrototypeAlgorithm"}
    algorithm, calls = server_algorithm(**target), []
    assert isinstance(algorithm, fedproto.PrototypeAlgorithm)
    algorithm.term = term  # type: ignore[assignment]
    algorithm.network = headed(3)
    algorithm.run = lambda *arguments: calls.append(arguments) or {"supervised": 1.0}
    return algorithm, calls


def test_received_prototypes_of_seen_classes_reach_term():
    algorithm, calls = made(Term())
    sent = {"prototypes": torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), "counts": torch.tensor([4.0, 0.0])}
    assert algorithm.receive(1, 3, Kind.PROTOTYPES, sent) == {"public_supervised": 1.0}
    assert [each.tolist() for each in algorithm.term.prototypes] == [[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], [True, False]]
    assert calls == [(1, 3)]
    algorithm, calls = made(Term())
    algorithm.receive(0, 3, Kind.METRICS, {})
    assert (algorithm.term.prototypes, calls) == (None, [(0, 3)])


def test_prototypes_of_other_width_are_refused():
    algorithm, calls = made(Term())
    sent = {"prototypes": torch.zeros(2, 4), "counts": torch.zeros(2)}
    with pytest.raises(MessageRefused, match=r"prototypes: expected shape \(2, 3\), found shape \(2, 4\)"):
        algorithm.receive(1, 3, Kind.PROTOTYPES, sent)
    assert (algorithm.term.prototypes, calls) == (None, [])


def test_share_returns_means_and_counts_or_raises_without_step():
    collected = fedproto.ClassSums(torch.tensor([[2.0, 4.0, 6.0], [5.0, 5.0, 5.0]]), torch.tensor([2.0, 5.0]))
    kind, tensors = made(Term(collected))[0].share()
    assert kind == Kind.PROTOTYPES
    assert tensors["prototypes"].tolist() == [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]
    assert tensors["counts"].tolist() == [2.0, 5.0]
    with pytest.raises(RuntimeError, match="no step was taken"):
        made(Term())[0].share()


def strategy(**widths: int) -> fedproto.Prototypes:
    networks = {site: partial(headed, width) for site, width in widths.items()}
    return fedproto.Prototypes().attach(Server(sorted(widths), 2, networks=networks))


def answer(site: str, means: list, counts: list) -> Message:
    tensors = {"prototypes": torch.tensor(means), "counts": torch.tensor(counts)}
    return Message(Kind.PROTOTYPES, site, 0, 2, n=1, tensors=tensors)


def test_global_prototypes_are_weighted_by_pixels_per_class():
    made = strategy(a=2, b=2)
    one, other = answer("a", [[1.0, 1.0], [8.0, 0.0]], [3.0, 1.0]), answer("b", [[5.0, 1.0], [0.0, 0.0]], [1.0, 0.0])
    a_round(made, {"a": one, "b": other})
    assert made.means["prototypes"].tolist() == [[2.0, 1.0], [8.0, 0.0]]
    assert made.means["counts"].tolist() == [4.0, 1.0]


@pytest.mark.parametrize(
    ("means", "counts", "where"),
    [
        ([[3e38, 1.0], [8.0, 0.0]], [3.0, 1.0], "prototypes: expected numbers from -65504 to 65504"),
        ([[1.0, -65505.0], [8.0, 0.0]], [3.0, 1.0], "prototypes"),
        ([[1.0, 1.0], [8.0, 0.0]], [3e38, 1.0], r"counts: expected numbers from 0 to 1e\+12"),
        ([[1.0, 1.0], [8.0, 0.0]], [-1.0, 1.0], "counts"),
    ],
)
def test_fault_78_overflowing_prototypes_are_refused(means, counts, where):
    made = strategy(a=2, b=2)
    made.configure(0)
    with pytest.raises(MessageRefused, match=where):
        made.accept(0, "a", answer("a", means, counts))
    made.aggregate(0, {"b": answer("b", [[5.0, 1.0], [65504.0, 0.0]], [1.0, 1e12])})
    assert made.means["prototypes"].tolist() == [[5.0, 1.0], [65504.0, 0.0]], "the largest ones give a finite mean"


def test_largest_share_caps_pixel_weight_per_class():
    made = strategy(a=1, b=1, c=1)
    made.server = replace(made.server, guard=UpdateGuard(largest_share=0.5))
    made.configure(0)
    made.accept(0, "a", answer("a", [[1.0], [1.0]], [2.0, 0.0]))
    made.accept(0, "b", answer("b", [[1.0], [1.0]], [2.0, 6.0]))
    made.accept(0, "c", answer("c", [[9.0], [3.0]], [1e12, 2.0]))
    made.finish(0)
    assert made.means["prototypes"].tolist() == [[5.0], [2.0]]  # (2 + 2 + 4 * 9) / 8, (2 * 1 + 2 * 3) / 4


def test_prototypes_are_sent_from_second_round():
    made = strategy(a=2, b=2)
    assert made.configure(0)["a"].tensors == {}
    made.aggregate(0, {"a": answer("a", [[1.0, 1.0], [2.0, 2.0]], [1.0, 1.0])})
    message = made.configure(1)["b"]
    assert (message.kind, message.extra["purpose"]) == (Kind.PROTOTYPES, "distil")
    assert message.tensors["prototypes"].tolist() == [[1.0, 1.0], [2.0, 2.0]]


@pytest.mark.parametrize("bundle", ["samfed_polyp", "samfed_skin"])
def test_default_networks_have_equal_feature_width(bundle):
    names = client_config(find_bundle(bundle), "fedproto", {}).value("mixed_networks")
    with torch.device("meta"):
        assert (len(names), len({feature_width(client_network(name)) for name in names})) == (2, 1)
