"""The structure loss against hand-computed numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from samfed_monai.losses import StructureLoss
from samfed_monai.losses.structure import border_weight


def test_border_weight_matches_hand_calculation() -> None:
    target = torch.tensor([[[[0.0, 0.0, 1.0]]]])  # one row; 3 x 3 window, the rows above and below count as 0
    # means: 0, 1/9, 1/9, so w = 1 + 5 |mean - y| = 1, 1 + 5/9, 1 + 40/9
    assert border_weight(target, kernel_size=3).flatten().tolist() == pytest.approx([1.0, 1 + 5 / 9, 1 + 40 / 9])


def test_separable_window_equals_square_window() -> None:
    target = (torch.rand(2, 1, 40, 36, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    square = 1 + 5 * (F.avg_pool2d(target, 31, stride=1, padding=15) - target).abs()
    torch.testing.assert_close(border_weight(target), square)


def test_loss_is_mean_over_batch() -> None:
    logits, target = torch.randn(3, 1, 9, 9, generator=torch.Generator().manual_seed(1)), torch.ones(3, 1, 9, 9)
    loss = StructureLoss()
    each = torch.stack([loss(logits[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(loss(logits, target), each.mean())


@pytest.mark.parametrize("size", [0, -3, 30])
def test_invalid_kernel_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"kernel_size: expected an odd number of pixels, found {size}"):
        StructureLoss(kernel_size=size)


def test_weights_select_pixels_and_images() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 1, 9, 9, generator=generator)
    target = (torch.rand(2, 1, 9, 9, generator=generator) > 0.5).float()
    loss = StructureLoss()
    torch.testing.assert_close(loss(logits, target, torch.ones_like(target)), loss(logits, target))
    first = torch.ones_like(target)
    first[1] = 0
    torch.testing.assert_close(loss(logits, target, first), loss(logits[:1], target[:1]))
    assert loss(logits, target, torch.zeros_like(target)).item() == 0


def test_weighted_loss_matches_hand_calculation() -> None:
    loss = StructureLoss(kernel_size=1)
    logits, target = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]], [[[1.0, 0.0]]]])
    weight = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 1.0]]]])
    # first image: CE = ln 2, IoU = (0.5 + 1) / (1.5 + 1) = 0.6
    # second: overlap 0, union 0.5, IoU 1 / 1.5; their sums of weights are 2 and 1
    expected = (2 * (math.log(2) + 0.4) + math.log(2) + 1 / 3) / 3
    assert loss(logits, target, weight).item() == pytest.approx(expected)
    # a sum below 1 is divided out, too: CE = ln 2; overlap 1/8, union 1/8 + 1/4 - 1/8, IoU = 9/8 / (10/8)
    assert loss(logits[:1], target[:1], torch.tensor([[[[0.25, 0.0]]]])).item() == pytest.approx(math.log(2) + 0.1)


def test_two_class_soft_label_equals_binary() -> None:
    generator = torch.Generator().manual_seed(4)
    logit, soft = torch.randn(2, 1, 8, 8, generator=generator), torch.rand(2, 1, 8, 8, generator=generator)
    two = torch.cat([torch.zeros_like(logit), logit], dim=1)
    expected = StructureLoss()(logit, soft)
    torch.testing.assert_close(StructureLoss()(two, torch.cat([1 - soft, soft], dim=1)), expected)


@pytest.mark.parametrize("options", [{}, {"gain": 2.0}, {"weighted_entropy": False}], ids=["default", "gain", "hssf"])
def test_border_weights_apply_to_entropy_and_overlap(options: dict[str, Any]) -> None:
    logits, target = torch.tensor([[[[-1.0, 0.0, 2.0]]]]), torch.tensor([[[[0.0, 0.0, 1.0]]]])
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten()
    chance = logits.sigmoid().flatten()
    border = 1 + options.get("gain", 5.0) * torch.tensor([0, 1 / 9, 8 / 9])
    overlap = border[2] * chance[2]
    union = (border * chance).sum() + border[2] - overlap
    share = border if options.get("weighted_entropy", True) else torch.ones(3)
    expected = (share * entropy).sum() / share.sum() + 1 - (overlap + 1) / (union + 1)
    assert StructureLoss(kernel_size=3, **options)(logits, target).item() == pytest.approx(expected.item())


def test_label_map_is_accepted_and_wrong_shape_refused() -> None:
    logits = torch.zeros(3, 2, 1, 2)
    # every weight is 1: CE = ln 2; overlap = 0.5, union = 1 + 1 - 0.5 = 1.5, IoU = (0.5 + 1) / (1.5 + 1) = 0.6
    target = torch.tensor([[[[1, 0]]]]).expand(3, -1, -1, -1)
    assert StructureLoss(kernel_size=1)(logits, target).item() == pytest.approx(math.log(2) + 0.4)
    with pytest.raises(ValueError, match=r"expected a target of shape \(3, 1, 1, 2\), found \(3, 1, 2, 2\)"):
        StructureLoss()(logits, torch.zeros(3, 1, 2, 2))
