"""The structure loss against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from samfed_monai.losses import StructureLoss
from samfed_monai.losses.structure import border_weight


def test_border_weight_by_hand() -> None:
    target = torch.tensor([[[[0.0, 0.0, 1.0]]]])  # one row; 3 x 3 window, the rows above and below count as 0
    # means: 0, 1/9, 1/9, so w = 1 + 5 |mean - y| = 1, 1 + 5/9, 1 + 40/9
    assert border_weight(target, kernel_size=3).flatten().tolist() == pytest.approx([1.0, 1 + 5 / 9, 1 + 40 / 9])


def test_two_passes_equal_the_square_window() -> None:
    target = (torch.rand(2, 1, 40, 36, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    square = 1 + 5 * (F.avg_pool2d(target, 31, stride=1, padding=15) - target).abs()
    torch.testing.assert_close(border_weight(target), square)


def test_the_entropy_can_go_without_border_weights() -> None:
    logits = torch.tensor([[[[0.0, 0.0, 2.0]]]])
    target = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    weights, sure = [1.0, 14 / 9, 49 / 9], 1 / (1 + math.exp(-2))
    overlap = sure * weights[2]
    union = 0.5 * (weights[0] + weights[1]) + (1 + sure) * weights[2] - overlap
    expected = (2 * math.log(2) - math.log(sure)) / 3 + 1 - (overlap + 1) / (union + 1)
    assert StructureLoss(kernel_size=3, weighted_entropy=False)(logits, target).item() == pytest.approx(expected)


def test_mean_over_the_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, target = torch.randn(3, 1, 9, 9, generator=generator), torch.ones(3, 1, 9, 9)
    loss = StructureLoss()
    each = torch.stack([loss(logits[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(loss(logits, target), each.mean())


@pytest.mark.parametrize("size", [0, -3, 30])
def test_an_even_window_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"kernel_size: expected an odd number of pixels, found {size}"):
        StructureLoss(kernel_size=size)


def test_a_target_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a target of shape \(1, 1, 4, 4\), found \(1, 1, 8, 8\)"):
        StructureLoss()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 8, 8))


def test_weights_choose_pixels_and_images() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 1, 9, 9, generator=generator)
    target = (torch.rand(2, 1, 9, 9, generator=generator) > 0.5).float()
    loss = StructureLoss()
    torch.testing.assert_close(loss(logits, target, torch.ones_like(target)), loss(logits, target))
    first = torch.ones_like(target)
    first[1] = 0
    torch.testing.assert_close(loss(logits, target, first), loss(logits[:1], target[:1]))
    assert loss(logits, target, torch.zeros_like(target)).item() == 0


def test_a_pixel_of_weight_0_has_no_gradient() -> None:
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    weight = torch.ones(1, 1, 4, 4)
    weight[..., 0, :] = 0
    StructureLoss(kernel_size=3)(logits, torch.full((1, 1, 4, 4), 0.8), weight).backward()
    assert logits.grad is not None
    assert ((logits.grad != 0) == (weight > 0)).all()


def test_weighted_loss_by_hand() -> None:
    loss = StructureLoss(kernel_size=1)
    logits, target = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]], [[[1.0, 0.0]]]])
    weight = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 1.0]]]])
    # first image: CE = ln 2, IoU = (0.5 + 1) / (1.5 + 1) = 0.6
    # second: overlap 0, union 0.5, IoU 1 / 1.5; their sums of weights are 2 and 1
    expected = (2 * (math.log(2) + 0.4) + math.log(2) + 1 / 3) / 3
    assert loss(logits, target, weight).item() == pytest.approx(expected)


def test_a_soft_label_of_two_classes_equals_that_of_one() -> None:
    generator = torch.Generator().manual_seed(4)
    logit, soft = torch.randn(2, 1, 8, 8, generator=generator), torch.rand(2, 1, 8, 8, generator=generator)
    two = torch.cat([torch.zeros_like(logit), logit], dim=1)
    expected = StructureLoss()(logit, soft)
    torch.testing.assert_close(StructureLoss()(two, torch.cat([1 - soft, soft], dim=1)), expected)


def test_by_default_the_entropy_has_border_weights_and_the_gain_is_the_one_given() -> None:
    logits, target = torch.tensor([[[[-1.0, 0.0, 2.0]]]]), torch.tensor([[[[0.0, 0.0, 1.0]]]])
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten()
    chance = logits.sigmoid().flatten()
    for gain, options in ((5.0, {}), (2.0, {"gain": 2.0})):
        border = torch.tensor([1.0, 1 + gain / 9, 1 + gain * 8 / 9])
        overlap = border[2] * chance[2]
        union = (border * chance).sum() + border[2] - overlap
        expected = (border * entropy).sum() / border.sum() + 1 - (overlap + 1) / (union + 1)
        assert StructureLoss(kernel_size=3, **options)(logits, target).item() == pytest.approx(expected.item())


def test_a_label_map_of_three_images_of_two_classes_is_taken_and_the_shape_that_is_asked_for_is_named() -> None:
    logits = torch.zeros(3, 2, 1, 2)
    # every weight is 1: CE = ln 2; overlap = 0.5, union = 1 + 1 - 0.5 = 1.5, IoU = (0.5 + 1) / (1.5 + 1) = 0.6
    target = torch.tensor([[[[1, 0]]]]).expand(3, -1, -1, -1)
    assert StructureLoss(kernel_size=1)(logits, target).item() == pytest.approx(math.log(2) + 0.4)
    with pytest.raises(ValueError, match=r"expected a target of shape \(3, 1, 1, 2\), found \(3, 1, 2, 2\)"):
        StructureLoss()(logits, torch.zeros(3, 1, 2, 2))


def test_weights_below_one_in_sum_are_divided_out_as_well() -> None:
    logits, target = torch.tensor([[[[0.0, 3.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    small = torch.tensor([[[[0.25, 0.0]]]])
    # of the one pixel with weight: CE = ln 2; overlap 1/8, union 1/8 + 1/4 - 1/8, IoU = 9/8 / (10/8)
    assert StructureLoss(kernel_size=1)(logits, target, small).item() == pytest.approx(math.log(2) + 0.1)
