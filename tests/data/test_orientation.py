from __future__ import annotations

import numpy as np

from samfed_monai.data.reading import misfit
from tests.data.making import disc


def test_a_transposed_mask_of_a_square_picture_fits_worse():
    mask = np.asarray(disc(64, 64, value=1, radius=12))
    picture = np.repeat((200 - 120 * mask)[..., None], 3, axis=2).astype(np.uint8)
    assert misfit(picture, mask) < -0.5
    assert misfit(picture, np.ascontiguousarray(mask.T)) > 0.5


def test_it_says_nothing_about_other_shapes_or_trivial_masks():
    picture = np.zeros((8, 8, 3), np.uint8)
    assert misfit(picture, np.zeros((8, 8), np.uint8)) == misfit(picture, np.ones((8, 8), np.uint8)) == 0
    assert misfit(picture[:6], np.eye(8, dtype=np.uint8)[:6]) == 0
