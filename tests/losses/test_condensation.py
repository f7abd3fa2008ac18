"""Gates of condensation and fusion, by hand."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.losses import choose, image_reliability, most_reliable, where_better


def test_reliability_of_four_pixels_by_both_measures():
    labels = torch.tensor([[[[1, 1, 0, 0]]], [[[0, 0, 0, 1]]], [[[0, 0, 0, 0]]]])
    masks = torch.tensor([[[[0.9, 0.4, 0.6, 0.1]]], [[[0.1, 0.1, 0.1, 0.1]]], [[[0.0, 0.5, 0.2, 0.1]]]])
    # first: one pixel of two found, one too many; second: an empty mask; third: both empty (0.5 is background)
    assert image_reliability(masks, labels).tolist() == [0.5, 0.0, 1.0]
    assert image_reliability(masks, labels, "pixel_accuracy").tolist() == [0.5, 0.75, 1.0]


def test_reliability_of_two_channels_is_that_of_their_argmax():
    chances = torch.tensor([[[[0.8, 0.3]], [[0.2, 0.7]]]])
    assert image_reliability(chances, torch.tensor([[[[0, 1]]]])).tolist() == [1.0]


def test_an_unknown_measure_is_refused():
    with pytest.raises(ValueError, match="iou"):
        image_reliability(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "iou")


def test_the_most_reliable_site_counts_where_it_beats_the_server_and_the_floor():
    sites = torch.tensor([[0.9, 0.8, 0.75, 0.76, 0.9], [0.8, 0.95, 0.5, 0.2, 0.9]])
    server = torch.tensor([0.5, 0.95, 0.1, 0.1, 0.89])
    site, gate = most_reliable(sites, server)
    assert site.tolist() == [0, 1, 0, 0, 0], "the first among equals"
    assert gate.tolist() == [True, False, False, True, True], "equal to the server, or to the floor, is not above it"


def test_the_floor_is_a_choice():
    sites, server = torch.tensor([[0.3, 0.0]]), torch.zeros(2)
    assert most_reliable(sites, server, floor=0.0)[1].tolist() == [True, False]
    assert most_reliable(sites, server, floor=0.3)[1].tolist() == [False, False]


def test_a_site_learns_where_the_server_is_strictly_better():
    assert where_better(torch.tensor([0.5, 0.6, 0.4]), torch.tensor([0.5, 0.5, 0.5])).tolist() == [False, True, False]


def test_each_image_gets_the_mask_of_its_site():
    masks = torch.arange(6, dtype=torch.uint8).reshape(2, 3, 1, 1, 1)  # two sites, three images
    assert choose(masks, torch.tensor([1, 0, 1])).flatten().tolist() == [3, 1, 5]
