"""Mixup: images and labels of neighbours in a batch are mixed alike; methods differ in the neighbour's weights."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from samfed_monai.handlers import Guidance
from samfed_monai.losses import weighted_pseudo_label_loss
from tests.methods import engine_of, pick

SURE = torch.tensor([1.0, 1, 0, 0, 1, 1, 1, 0]).view(2, 1, 2, 2)
EVERYWHERE = torch.ones_like(SURE)


@pytest.mark.parametrize(
    ("module", "term", "neighbours"),
    pick([("drflm", "LocalMixUpTerm", SURE.flip(0)), ("semifl", "MixUpTerm", EVERYWHERE)]),
)
def test_mixup_uses_same_ratio_for_images_and_labels(module, term, neighbours):
    image, seen = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)]), []
    own = torch.tensor([0.99, 0.01, 0.75, 0.40, 0.98, 0.98, 0.98, 0.30]).view(2, 1, 2, 2)  # as sure as tau: not surer
    guidance = Guidance(student=own, weak_view=own, guides={"global": own}, batch={"image": image})
    torch.manual_seed(0)
    engine = engine_of(lambda mixed: seen.append(mixed) or mixed[:, :1])
    made = getattr(import_module(f"samfed_monai.methods.{module}"), term)(tau=0.75)
    value = made.value(guidance, engine)
    share = seen[0][1, 0, 0, 0].item()  # of an image of ones, with a neighbour of zeros
    assert 0 < share < 1
    assert seen[0][0].unique().tolist() == pytest.approx([1 - share])
    labels, logits = (own > 0.5).long(), seen[0][:, :1]

    def loss(own_weight: torch.Tensor, neighbour_weight: torch.Tensor) -> torch.Tensor:
        first = weighted_pseudo_label_loss(logits, labels, own_weight)
        second = weighted_pseudo_label_loss(logits, labels.flip(0), neighbour_weight)
        return share * first + (1 - share) * second

    torch.testing.assert_close(value, loss(SURE, neighbours))
    if module == "drflm":  # it also records the loss over all pixels, sure or not
        torch.testing.assert_close(engine.state.terms["local_mixup_all"], loss(EVERYWHERE, EVERYWHERE))
