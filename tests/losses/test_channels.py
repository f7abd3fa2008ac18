"""Logits and labels channel by channel, and hard labels of six-pixel tensors, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from samfed_monai.losses import dice_of_labels, hard_label
from samfed_monai.losses.pixelwise import channels


def test_one_class_is_a_sigmoid() -> None:
    logits = torch.tensor([[[[0.0, math.log(3)]]]])  # probabilities 1/2 and 3/4
    truth, entropy, prediction = channels(logits, torch.tensor([[[[1, 0]]]]))
    assert truth.dtype == torch.float32
    assert truth.flatten().tolist() == [1, 0]
    assert prediction.flatten().tolist() == pytest.approx([1 / 2, 3 / 4])
    assert entropy.flatten().tolist() == pytest.approx([math.log(2), math.log(4)])


def test_several_classes_are_a_softmax_without_the_background() -> None:
    logits = torch.tensor([0.0, math.log(2), math.log(5)]).reshape(1, 3, 1, 1)  # probabilities 1/8, 2/8 and 5/8
    truth, entropy, prediction = channels(logits.expand(1, 3, 1, 2), torch.tensor([[[[0, 2]]]]))
    assert truth[0, :, 0].tolist() == [[0, 0], [0, 1]]
    assert prediction[0, :, 0, 0].tolist() == pytest.approx([2 / 8, 5 / 8])
    assert entropy.shape == (1, 1, 1, 2)
    assert entropy.flatten().tolist() == pytest.approx([math.log(8), math.log(8 / 5)])


def test_dice_of_two_empty_masks_is_1_and_of_one_empty_mask_0() -> None:
    empty, full = torch.zeros(1, 1, 2, 2).long(), torch.ones(1, 1, 2, 2).long()
    assert dice_of_labels(empty, empty).tolist() == [1.0]
    assert dice_of_labels(empty, full).tolist() == [0.0]


def test_hard_label_of_one_half_is_background() -> None:
    label, confidence = hard_label(torch.full((1, 1, 1, 1), 0.5))
    assert (label.item(), confidence.item()) == (0, 0.5)


def test_classes_that_no_pixel_has_keep_their_channel() -> None:
    found = channels(torch.zeros(1, 3, 1, 2), torch.tensor([[[[1, 0]]]]))
    assert found.truth.tolist() == [[[[1.0, 0.0]], [[0.0, 0.0]]]]
    assert found.prediction.shape == (1, 2, 1, 2)
