"""Lamp and size of the sites beyond the looks that are written down."""

from __future__ import annotations

import numpy as np
import pytest

from samfed_monai.data.synthetic import lamp_and_size


def test_a_range_of_one_number_multiplies_by_it_and_radii_stay_within_their_limits():
    rng = np.random.default_rng(0)
    drawn = lamp_and_size((1.0, 0.5, 0.25), (0.0, 10.0), rng, gains=(2.0, 2.0), limits=(0.1, 0.4))
    assert drawn == {"light": (2.0, 1.0, 0.5), "radius": (0.1, 0.4)}


def test_three_gains_are_drawn_and_then_one_scale():
    gains, scale = (rng := np.random.default_rng(7)).uniform(0.9, 1.1, 3), rng.uniform(0.75, 1.25)
    drawn = lamp_and_size((1, 1, 1), (0.2, 0.3), np.random.default_rng(7), gains=(0.9, 1.1), limits=(0.0, 1.0))
    assert drawn["light"] == tuple(gains)
    assert drawn["radius"] == pytest.approx((0.2 * scale, 0.3 * scale))
