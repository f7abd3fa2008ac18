from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from samfed_monai.metrics import scores as surfaces
from samfed_monai.metrics import surface


def blob(seed: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=size), 8)
    return noise > 0.3 * noise.std()


@pytest.mark.parametrize("seed", range(5))
def test_the_surface_is_monais_also_at_the_frame(seed):
    mask = blob(seed)
    assert mask[0].any() or mask[:, 0].any()
    assert (surface(mask) == (mask ^ binary_erosion(mask))).all()


@pytest.mark.parametrize(("shape", "pixels"), [((4, 5), 14), ((1, 7), 7), ((2, 2), 4), ((3, 3), 8)])
def test_a_full_mask_has_the_frame_as_its_surface(shape, pixels):
    assert surface(np.ones(shape, bool)).sum() == pixels


def test_the_mask_itself_is_left_alone():
    mask = np.ones((5, 5), bool)
    surface(mask)
    assert mask.all()


def test_every_pixel_is_as_far_as_its_nearest():
    a, b = np.zeros((2, 6, 9), bool)
    a[0, 0] = a[5, 8] = True
    b[3, 4] = b[5, 6] = b[0, 1] = True
    to_b, to_a = surfaces.squared_distances(a, b)
    assert to_b.tolist() == [1, 4]
    assert to_a.tolist() == [1, 20, 4]


@pytest.mark.parametrize("pairs_per_pixel", [0, 128])
@pytest.mark.parametrize("block", [1, 1000, 1 << 16])
def test_both_ways_give_whole_numbers_without_rounding(pairs_per_pixel, block, monkeypatch):
    monkeypatch.setattr(surfaces, "PAIRS_PER_PIXEL", pairs_per_pixel)
    monkeypatch.setattr(surfaces, "BLOCK", block)
    a, b = surface(blob(1)), surface(blob(2))
    to_b, to_a = surfaces.squared_distances(a, b)
    assert (to_b == np.rint(distance_transform_edt(~b)[a] ** 2)).all()
    assert (to_a == np.rint(distance_transform_edt(~a)[b] ** 2)).all()


def test_noise_takes_the_distance_transform(monkeypatch):
    def unexpected(*arguments):
        raise AssertionError("compared every pixel with every pixel")

    monkeypatch.setattr(surfaces, "_all_pairs", unexpected)
    a, b = np.random.default_rng(0).random((2, 96, 96)) > 0.5
    to_b, to_a = surfaces.squared_distances(a, b)
    assert (len(to_b), len(to_a)) == (a.sum(), b.sum())


def test_distances_that_float32_does_not_hold_are_not_rounded():
    a, b = np.zeros((2, 4000, 3000), bool)
    a[0, 0] = b[3998, 2999] = True
    to_b, to_a = surfaces.squared_distances(a, b)
    assert int(np.float32(3998**2 + 2999**2)) != 3998**2 + 2999**2
    assert to_b.tolist() == to_a.tolist() == [3998**2 + 2999**2]
