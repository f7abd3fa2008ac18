from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_dice

from samfed_monai.metrics import Scores, segmentation_scores

MASKS = arrays(bool, (7, 9), elements=st.booleans())


def test_dice_and_iou_of_two_overlapping_pixels():
    prediction = np.array([[1, 1, 1, 0]], bool)
    label = np.array([[0, 1, 1, 0]], bool)
    scores = segmentation_scores(prediction, label)
    assert (scores.dice, scores.iou) == (4 / 5, 2 / 3)
    assert scores.empty == "none"


@pytest.mark.parametrize(
    ("prediction", "label", "expected"),
    [
        (0, 0, Scores(1.0, 1.0, 0.0, "both")),
        (0, 1, Scores(0.0, 0.0, 5.0, "prediction")),
        (1, 0, Scores(0.0, 0.0, 5.0, "label")),
        (1, 1, Scores(1.0, 1.0, 0.0, "none")),
    ],
)
def test_fault_14_empty_masks_follow_the_convention(prediction, label, expected):
    assert segmentation_scores(np.full((3, 4), prediction, bool), np.full((3, 4), label, bool)) == expected


def test_a_0_255_mask_counts_as_its_0_1_mask():
    label = np.array([[0, 1], [1, 1]])
    assert segmentation_scores(label * 255, label).dice == 1.0


@given(prediction=MASKS, label=MASKS)
def test_dice_agrees_with_monai_wherever_a_pixel_is_set(prediction, label):
    scores = segmentation_scores(prediction, label)
    expected = compute_dice(
        torch.from_numpy(prediction)[None, None].float(),
        torch.from_numpy(label)[None, None].float(),
        ignore_empty=False,
    ).item()
    assert scores.dice == pytest.approx(expected, abs=1e-6)
    assert scores.iou == pytest.approx(scores.dice / (2 - scores.dice))


@given(prediction=MASKS, label=MASKS)
def test_scores_are_symmetric_and_bounded(prediction, label):
    there, back = segmentation_scores(prediction, label), segmentation_scores(label, prediction)
    assert (there.dice, there.iou, there.hd95) == (back.dice, back.iou, back.hd95)
    assert 0 <= there.iou <= there.dice <= 1
    assert 0 <= there.hd95 <= np.hypot(7, 9)


@pytest.mark.parametrize("shape", [(3, 5), (1, 4, 4)])
def test_masks_of_two_sizes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected two masks \(H, W\) of one size"):
        segmentation_scores(np.zeros(shape, bool), np.zeros((4, 4), bool))
