"""Expected Dice from probabilities, its calibration and bound, groups of images, ranges of colours."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.metrics.quality import (
    GROUPS,
    MIN_IMAGES,
    Calibration,
    Colours,
    Group,
    Quality,
    colours_of,
    estimate,
    groups_in,
    groups_of,
    level_dice,
    margin,
    metrics_of,
    quality_of,
)
from samfed_monai.protocol.message import metric_range

ROW = np.array([[0.9, 0.8, 0.6, 0.3, 0.1]], np.float32)
"""Above 0.75: two; above 0.5: three; above 0.25: four."""


def test_level_dice_and_estimate_match_hand_calculation():
    mask = ROW > 0.5
    levels = [2 * 3 / (5 + 3)] + [2 * 3 / (4 + 3)] * 2 + [1.0] * 3 + [2 * 2 / (2 + 3)] * 2 + [2 * 1 / (1 + 3)]
    assert level_dice(ROW, mask) == pytest.approx((sum(levels) + 0.0) / 10)
    assert estimate(ROW[None], threshold=0.7) == pytest.approx(level_dice(ROW, ROW >= 0.7))
    levels = 2 * 2 / 7 + 2 * 2 / 6 * 2 + 2 * 2 / 5 * 3 + 1 * 2 + 2 / 3
    assert level_dice(ROW, ROW >= 0.7) == pytest.approx(levels / 10)


def test_estimate_is_1_for_certain_and_lower_for_uncertain_mask():
    sure, nothing, unsure = (np.array([[value, 0, 0]], np.float32) for value in (1, 0, 0.6))
    for chances, expected in ((sure, 1.0), (nothing, 1.0), (unsure, 0.6)):
        assert estimate(chances[None]) == level_dice(chances, chances > 0.5) == pytest.approx(expected)


def test_multiclass_estimate_is_mean_over_classes_in_mask():
    first = np.array([[0.9, 0.6, 0.0, 0.0]], np.float32)
    second = np.array([[0.0, 0.3, 1.0, 0.0]], np.float32)
    chances = np.stack([1 - first - second, first, second])
    each = level_dice(first, first > 0.5), level_dice(second, second > 0.5)
    assert estimate(chances) == pytest.approx(sum(each) / 2)
    assert estimate(np.stack([1 - first * 0, first * 0, second * 0])) == 1.0


def test_margin_is_relative_to_remaining_uncertainty():
    assert margin(0.85, 0.75) == pytest.approx(0.1 / 0.2)
    assert margin(0.5, 0.6) == pytest.approx(-0.1 / 0.55)


def test_groups_have_minimum_size_and_ascending_estimates():
    found = groups_of([0.9, 0.1, 0.8, 0.2, 0.5], [0.9, 0.2, 0.6, 0.0, 0.5], least=2)
    assert [(each.images, each.estimate, each.dice) for each in found] == [
        (3, pytest.approx(0.8 / 3), pytest.approx(0.7 / 3)),
        (2, pytest.approx(0.85), pytest.approx(0.75)),
    ]
    margins = sorted(margin(*pair) for pair in ((0.9, 0.9), (0.1, 0.2), (0.8, 0.6), (0.2, 0.0), (0.5, 0.5)))
    assert [each.margin for each in found] == pytest.approx([sum(margins[:3]) / 3, sum(margins[3:]) / 2])


@pytest.mark.parametrize(
    ("drawn", "empty", "least", "images"),
    [(4, 0, 5, 0), (19, 3, None, 19), (19, 3, 1, 19), (19, 3, 5, 12), (19, 5, 5, 14), (14, 1, 5, 5), (13, 1, 5, 0)],
)
def test_empty_masks_are_excluded_and_cannot_be_counted(drawn, empty, least, images):
    found = groups_of([0.0] * empty + [0.5] * drawn, [1.0] * empty + [0.25] * drawn, least=least)
    assert sum(each.images for each in found) == images
    assert {(each.estimate, each.dice) for each in found} == ({(0.5, 0.25)} if images else set())


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=120), st.integers(1, 9))
def test_groups_and_their_metrics_are_within_limits(pairs, least):
    found = groups_of([e for e, _ in pairs], [d for _, d in pairs], least=least)
    assert len(found) <= GROUPS
    missing, empty = len(pairs) - sum(each.images for each in found), sum(e == 0 for e, _ in pairs)
    assert not found or (missing == empty if least == 1 or not empty else least <= missing - empty < 2 * least)
    assert all(each.images >= least for each in found)
    numbers = metrics_of(found)
    for name, value in numbers.items():
        low, high = metric_range(name)
        assert low <= value <= high
    assert groups_in({**numbers, "dice": 0.5}) == found


def test_group_with_missing_number_is_skipped():
    numbers = metrics_of([Group(5, 0.5, 0.4, 0.1), Group(5, 0.9, 0.8, 0.2)])
    del numbers["quality_margin_0"]
    assert groups_in(numbers) == [Group(5, 0.9, 0.8, 0.2)]
    assert metric_range(f"quality_images_{GROUPS}") is None


GOOD = {"estimates": [0.2, 0.8], "dice": [0.1, 0.9], "margin": 0.3, "images": 40}


def singles(pairs):
    return groups_of([e for e, _ in pairs], [d for _, d in pairs])


def test_calibration_is_monotone_between_block_means():
    found = Calibration.fit(singles([(0.2, 0.3), (0.4, 0.1), (0.6, 0.5), (0.9, 0.9)] * 5))
    assert found.images == MIN_IMAGES
    assert found.estimates == pytest.approx((0.3, 0.6, 0.9))
    assert found.dice == pytest.approx((0.2, 0.5, 0.9))
    assert found(0.45)[0] == pytest.approx(0.35)
    assert found(0.01)[0] == pytest.approx(0.2)
    assert found(0.0)[0] == 0, "an empty mask, which is none of the blocks"
    assert found(1.0)[0] == pytest.approx(0.9)


def test_bound_is_estimate_minus_90_percent_margin():
    pairs = [(0.5, 0.5 - 0.55 * place / 100) for place in range(99)]  # margins 0.00, 0.01, … 0.98
    found = Calibration.fit(singles(pairs))
    assert found.margin == pytest.approx(0.89)  # the 90th of 99
    assert found(0.5)[1] == pytest.approx(0.5 - 0.89 * 0.55)
    assert found(0.05)[1] == 0.0


def test_bound_is_at_most_expected_dice():
    found = Calibration(estimates=(0.2, 0.8), dice=(0.1, 0.9), margin=0.0, images=40)
    assert found(0.2) == pytest.approx((0.1, 0.1))
    assert found(0.8) == pytest.approx((0.9, 0.8))


def test_too_few_images_give_no_calibration():
    assert Calibration.fit(singles([(0.5, 0.5)] * (MIN_IMAGES - 1))) is None
    assert Calibration.fit([]) is None


@given(st.lists(st.tuples(st.floats(0, 1, exclude_min=True), st.floats(0, 1)), min_size=MIN_IMAGES, max_size=60))
def test_calibration_survives_json_and_is_monotonic(pairs):
    found = Calibration.fit(singles(pairs))
    assert quality_of(json.loads(json.dumps(Quality(found).as_dict())), "x").calibration == found
    at = [found(value) for value in np.linspace(0, 1, 11)]
    assert all(0 <= bound <= expected <= 1 for expected, bound in at)
    assert [each for each, _ in at] == sorted(each for each, _ in at)


@pytest.mark.parametrize(
    "change",
    [
        *({"estimates": [0.8, 0.2]}, {"estimates": [], "dice": []}),
        *({"dice": [0.9, 0.1]}, {"dice": [0.1]}, {"dice": [0.1, 1.5]}),
        *({"margin": math.inf}, {"margin": None}, {"images": 3}),
    ],
)
def test_invalid_calibration_is_refused(change):
    assert quality_of({"schema": 1, "calibration": GOOD}, "x").calibration(0.5)[0] == pytest.approx(0.5)
    with pytest.raises(Refused, match=r"x: expected a model's quality|x -> calibration#"):
        quality_of({"schema": 1, "calibration": {**GOOD, **change}}, "x")


def test_colours_outside_range_are_detected():
    images = [np.full((3, 2, 2), value, np.float32) for value in (0.4, 0.6)]
    images[1][0, 0, 0] = 1.0
    rows = [colours_of(image) for image in images]
    assert rows[0] == pytest.approx([0.4, 0.4, 0.4, 0, 0, 0], abs=1e-6)
    assert rows[1] == pytest.approx([0.7, 0.6, 0.6, math.sqrt(0.03), 0, 0], abs=1e-6)
    found = Colours.of(rows)
    assert found.low[0] == pytest.approx(0.37)
    assert found.high[0] == pytest.approx(0.73)
    assert found.contains([0.38, 0.5, 0.5, 0.1, 0, 0])
    assert not found.contains([0.36, 0.5, 0.5, 0.1, 0, 0])
    assert Colours.of(rows[:1]) is None


def test_quality_survives_json_and_invalid_content_is_refused():
    known = Quality(quality_of({"schema": 1, "calibration": GOOD}, "x").calibration, Colours((0.0,) * 6, (1.0,) * 6))
    for each in (known, Quality(), Quality(known.calibration)):
        assert quality_of(json.dumps(each.as_dict()), "x") == each
    one, two = ({"schema": 1, "colours": {"low": [1], **more}} for more in ({}, {"high": [2]}))
    for wrong in ([], {"schema": 2}, one, two, "{", "[" * 100_000):
        with pytest.raises(Refused, match=r"x.*: expected .*; delete it"):
            quality_of(wrong, "x", hint="delete it")
