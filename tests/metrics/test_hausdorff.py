from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from samfed_monai.metrics import hausdorff95, surface


def blob(seed: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=size), 8)
    return noise > 0.3 * noise.std()


def squares(shift: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.zeros((2, 40, 40), bool)
    a[5:15, 5:15] = True
    b[5:15, 5 + shift : 15 + shift] = True
    return a, b


def test_a_square_shifted_by_four_pixels_is_four_pixels_away():
    assert hausdorff95(*squares(4)) == 4.0


def test_the_same_mask_is_zero_pixels_away():
    assert hausdorff95(*squares(0)) == 0.0


def test_two_single_pixels_are_as_far_apart_as_they_are():
    a, b = np.zeros((2, 30, 30), bool)
    a[3, 4] = b[6, 8] = True
    assert hausdorff95(a, b) == 5.0


@pytest.mark.parametrize("seed", range(25))
def test_it_agrees_with_monai(seed):
    prediction, label = blob(seed), blob(seed + 1000)
    expected = compute_hausdorff_distance(
        torch.from_numpy(prediction)[None, None],
        torch.from_numpy(label)[None, None],
        include_background=True,
        percentile=95,
    ).item()
    # MONAI holds distances in float32: 1e-4 is ten times its rounding at these distances
    assert hausdorff95(prediction, label) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_pooled_is_medpys_definition(seed):
    prediction, label = blob(seed), blob(seed + 1000)
    edges = [mask ^ binary_erosion(mask) for mask in (prediction, label)]
    there = distance_transform_edt(~edges[1])[edges[0]]
    back = distance_transform_edt(~edges[0])[edges[1]]
    pooled = np.percentile(np.hstack([there, back]), 95)
    assert hausdorff95(prediction, label, pooled=True) == pytest.approx(pooled)
    assert hausdorff95(prediction, label, pooled=True) <= hausdorff95(prediction, label)


def test_the_two_definitions_differ_where_one_mask_has_an_island():
    label = np.zeros((80, 80), bool)
    label[10:50, 10:50] = True
    prediction = label.copy()
    prediction[70:73, 70:74] = True  # 10 of 166 surface pixels of one mask, 10 of 322 of both
    assert hausdorff95(prediction, label) > 28
    assert hausdorff95(prediction, label, pooled=True) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_the_surface_is_monais_also_at_the_frame(seed):
    mask = blob(seed)
    assert mask[0].any() or mask[:, 0].any()
    assert (surface(mask) == (mask ^ binary_erosion(mask))).all()


def test_a_full_mask_has_the_frame_as_its_surface():
    assert surface(np.ones((4, 5), bool)).sum() == 14


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="HD95 of an empty mask is not defined"):
        hausdorff95(np.zeros((4, 4), bool), np.ones((4, 4), bool))
