"""MixUp and SemiFL's site: labels of the round's global network, which do not move while the student does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines.utils import IterationEvents

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import GlobalGuide, Guidance, PseudoLabelTerm, SupervisedWeight, UnlabelledStream
from samfed_monai.losses import weighted_pseudo_label_loss
from samfed_monai.methods.semifl import MixUpTerm
from tests.handlers.toy import next_round, toy_items, toy_network, toy_trainer


def given() -> Guidance:
    image = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    own = torch.tensor([0.99, 0.01, 0.60, 0.40]).view(1, 1, 2, 2)
    other = torch.tensor([0.98, 0.98, 0.98, 0.30]).view(1, 1, 2, 2)
    guides = {"global": torch.cat([own, other])}
    return Guidance(student=torch.zeros(2, 1, 2, 2), weak_view=guides["global"], guides=guides, batch={"image": image})


def engine_of(seen: list[torch.Tensor]) -> Any:
    def infer(image: torch.Tensor, network: Any) -> torch.Tensor:
        seen.append(image)
        return image.mean(1, keepdim=True)

    return SimpleNamespace(network=None, inferer=infer)


def test_image_and_labels_are_mixed_in_one_proportion() -> None:
    seen: list[torch.Tensor] = []
    torch.manual_seed(0)
    value = MixUpTerm(tau=0.95).value(given(), engine_of(seen))
    share = seen[0][1, 0, 0, 0].item()  # of an image of ones, with a neighbour of zeros
    assert 0 < share < 1
    assert seen[0][0].unique().tolist() == pytest.approx([1 - share])
    labels = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 0]]).view(2, 1, 2, 2)
    sure = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 0]]).view(2, 1, 2, 2)
    logits = seen[0].mean(1, keepdim=True)
    own = weighted_pseudo_label_loss(logits, labels, sure)
    other = weighted_pseudo_label_loss(logits, labels.flip(0), torch.ones_like(sure))
    torch.testing.assert_close(value, share * own + (1 - share) * other)


def test_the_share_is_the_rounds_randomness() -> None:
    def shares() -> list[float]:
        torch.manual_seed(3)
        seen: list[torch.Tensor] = []
        for _ in range(3):
            MixUpTerm().value(given(), engine_of(seen))
        return [image[1, 0, 0, 0].item() for image in seen]

    assert shares() == shares()
    assert len(set(shares())) == 3


def test_bad_arguments_are_refused_together() -> None:
    with pytest.raises(Refused, match=r"(?s)2 problems.*terms#mixup#tau: .*1\.5.*terms#mixup#alpha: .*0"):
        MixUpTerm(tau=1.5, alpha=0)


def semifl_round(public_seed: int) -> tuple[list[torch.Tensor], torch.nn.Module, list[torch.Tensor]]:
    """Labels of each step of a round on one and the same batch, the trained network, and the students' weak views."""
    items = [{**item, "image_strong": item["image"]} for item in toy_items(4, seed=1)]
    stream = UnlabelledStream(loader=DataLoader(Dataset(items), batch_size=4), guides=[GlobalGuide()])
    terms = [PseudoLabelTerm(teacher="global", student="global", rule="student", tau=0.5, schedule="constant")]
    handlers = [SupervisedWeight(), stream, *terms, MixUpTerm(tau=0.5)]
    public = DataLoader(Dataset(toy_items(8, public_seed)), batch_size=4)
    network = toy_network()
    trainer = toy_trainer(handlers, network=network, loader=public, steps=5, learning_rate=0.1)
    labels: list[torch.Tensor] = []
    students: list[torch.Tensor] = []

    def watch(engine: Any) -> None:
        guidance = engine.state.guidance
        (agreement,) = guidance._agreements.values()
        labels.append(agreement.label)
        students.append(guidance.weak)
        torch.testing.assert_close(agreement.label, (guidance.guides["global"] > 0.5).long())

    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, watch)
    torch.manual_seed(0)
    next_round(trainer, 0, 2)
    next_round(trainer, 1, 2)
    return labels, network, students


def test_semifls_labels_come_from_the_rounds_start_and_do_not_move() -> None:
    labels, _, students = semifl_round(11)
    with torch.no_grad():
        start = toy_network().eval()(torch.stack([item["image"] for item in toy_items(4, seed=1)]))
    assert all(torch.equal(label, (start > 0).long()) for label in labels[:5])
    assert all(torch.equal(label, labels[5]) for label in labels[5:])
    torch.testing.assert_close(labels[5], (students[5] > 0.5).long())  # the next round's labels are its own start's
    assert not torch.equal(students[0], students[4])  # while the student has moved


def test_semifls_site_learns_nothing_from_the_public_labels() -> None:
    first, second = (semifl_round(seed)[1].state_dict() for seed in (11, 12))
    assert all(torch.equal(first[name], second[name]) for name in first)
