"""Sums of features by class, by hand."""

from __future__ import annotations

import torch

from samfed_monai.losses import class_sums

FEATURES = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]], [[0.0, 2.0], [4.0, 6.0]]]])  # (1, 2, 2, 2)
LABELS = torch.tensor([[[[0, 0], [1, 1]]]])


def test_sums_and_means_by_class():
    found = class_sums(FEATURES, LABELS)
    assert found.sums.tolist() == [[4.0, 2.0], [12.0, 10.0]]
    assert found.counts.tolist() == [2.0, 2.0]
    assert found.means().tolist() == [[2.0, 1.0], [6.0, 5.0]]


def test_weights_leave_pixels_out_and_a_class_without_pixels_has_mean_zero():
    found = class_sums(FEATURES, LABELS, torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))
    assert found.counts.tolist() == [1.0, 0.0]
    assert found.means().tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_labels_are_brought_to_the_features_size():
    wide = LABELS.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(class_sums(FEATURES, wide).sums, class_sums(FEATURES, LABELS).sums)
    corner = torch.zeros(1, 1, 8, 8, dtype=torch.long)
    corner[..., 0, 0] = corner[..., 6, 6] = 1  # the middle of a cell of 4 x 4 is its third pixel, not its first
    assert class_sums(FEATURES, corner).counts.tolist() == [3.0, 1.0]
