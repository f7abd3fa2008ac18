"""Hard labels of six-pixel tensors, by hand."""

from __future__ import annotations

import torch

from samfed_monai.losses import dice_of_labels, hard_label


def test_dice_of_two_empty_masks_is_1_and_of_one_empty_mask_0() -> None:
    empty, full = torch.zeros(1, 1, 2, 2).long(), torch.ones(1, 1, 2, 2).long()
    assert dice_of_labels(empty, empty).tolist() == [1.0]
    assert dice_of_labels(empty, full).tolist() == [0.0]


def test_hard_label_of_one_half_is_background() -> None:
    label, confidence = hard_label(torch.full((1, 1, 1, 1), 0.5))
    assert (label.item(), confidence.item()) == (0, 0.5)
