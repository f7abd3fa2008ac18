"""The pseudo-label loss against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from samfed_monai.losses import weighted_pseudo_label_loss


def test_by_hand() -> None:
    logits = torch.zeros(1, 1, 1, 3)
    label = torch.tensor([[[[1, 0, 1]]]])
    weight = torch.tensor([[[[1.0, 0.5, 0.0]]]])
    # CE: ln 2 on every counted pixel; Dice: (2 * 0.5 + 1) / (0.75 + 1 + 1) = 2 / 2.75
    assert weighted_pseudo_label_loss(logits, label, weight).item() == pytest.approx(math.log(2) + 1 - 2 / 2.75)


def test_images_count_by_their_sum_of_weights() -> None:
    logits = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    label = (logits < 0).long()
    weight = torch.stack([torch.full((1, 4, 4), 0.75), torch.full((1, 4, 4), 0.25)])
    first, second = (weighted_pseudo_label_loss(logits[i : i + 1], label[i : i + 1], weight[i : i + 1]) for i in (0, 1))
    torch.testing.assert_close(weighted_pseudo_label_loss(logits, label, weight), 0.75 * first + 0.25 * second)


def test_no_weight_no_loss_and_no_nan_gradient() -> None:
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    loss = weighted_pseudo_label_loss(logits, torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_a_pixel_without_weight_gets_no_gradient() -> None:
    logits = torch.zeros(1, 1, 1, 4, requires_grad=True)
    weight = torch.tensor([[[[1.0, 0.0, 0.3, 0.0]]]])
    weighted_pseudo_label_loss(logits, torch.tensor([[[[1, 1, 0, 0]]]]), weight).backward()
    assert logits.grad is not None
    gradient = logits.grad.flatten()
    assert gradient[1] == gradient[3] == 0
    assert gradient[0] < 0 < gradient[2]


def test_two_classes_equal_one_class_with_the_difference_of_logits() -> None:
    generator = torch.Generator().manual_seed(3)
    logit = torch.randn(2, 1, 5, 5, generator=generator)
    label = torch.randint(0, 2, (2, 1, 5, 5), generator=generator)
    weight = torch.rand(2, 1, 5, 5, generator=generator)
    two = torch.cat([torch.zeros_like(logit), logit], dim=1)
    torch.testing.assert_close(
        weighted_pseudo_label_loss(two, label, weight), weighted_pseudo_label_loss(logit, label, weight)
    )


def test_gradient_against_differences() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 1, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 2, (2, 1, 2, 3), generator=generator)
    weight = torch.rand(2, 1, 2, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: weighted_pseudo_label_loss(z, label, weight), logits)
