"""Scores of whole volumes: boxes counted by hand, distances in millimetres, classes that a label does not hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samfed_monai.metrics import pool, summarise
from samfed_monai.metrics.scores import Volume, pool_volumes, summarise_volumes, volume_scores

SHAPE = (4, 8, 8)
SPACING = (6.0, 2.0, 1.0)


def box(*slices: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[slices] = True
    return mask


LABEL = box(slice(0, 2), slice(2, 6), slice(2, 6))


@pytest.mark.parametrize(
    ("prediction", "dice", "far"),
    [
        (LABEL, 1.0, 0.0),
        (box(slice(1, 3), slice(2, 6), slice(2, 6)), 0.5, 6.0),  # one slice further: a slice is 6 mm
        (box(slice(0, 2), slice(3, 7), slice(2, 6)), 0.75, 2.0),  # one row
        (box(slice(0, 2), slice(2, 6), slice(4, 8)), 0.5, 2.0),  # two columns of 1 mm
        (box(slice(0, 1), slice(2, 6), slice(2, 6)), 2 / 3, 6.0),  # half of the slices
    ],
)
def test_dice_is_of_all_slices_together_and_distances_are_in_millimetres(prediction, dice, far):
    scores = volume_scores(prediction, LABEL, SPACING)
    assert scores.dice == pytest.approx(dice)
    assert scores.hd95 == pytest.approx(far)
    assert volume_scores(prediction, LABEL, None).hd95 is None


def test_what_a_label_does_not_hold_has_no_dice_and_what_is_missed_has_0():
    nothing = np.zeros(SHAPE, bool)
    assert volume_scores(LABEL, nothing, SPACING) == volume_scores(nothing, nothing, SPACING)
    assert volume_scores(LABEL, nothing, SPACING).dice is None
    missed = volume_scores(nothing, LABEL, SPACING)
    assert (missed.dice, missed.hd95) == (0.0, None)


def volume(prediction: np.ndarray, label: np.ndarray, spacing: tuple[float, float, float] | None = SPACING) -> Volume:
    pairs = zip(prediction.astype(np.uint8), label.astype(np.uint8), strict=True)
    return Volume(spacing, dict(enumerate(pairs, start=1)))


def test_means_are_over_volumes_that_hold_a_class_and_an_absent_class_is_undefined():
    half = box(slice(0, 1), slice(2, 6), slice(2, 6))
    found = summarise_volumes([volume(LABEL, LABEL), volume(half, LABEL, None)], ["kidney", "spleen"])
    assert found["classes"] == {
        "kidney": {"dice": pytest.approx(5 / 6), "hd95_mm": 0.0, "n": 2, "measured": 1},
        "spleen": {"dice": None, "hd95_mm": None, "n": 0, "measured": 0},
    }
    assert {key: found[key] for key in ("dice", "hd95_mm", "n", "measured")} == found["classes"]["kidney"]
    assert "classes" not in summarise_volumes([volume(LABEL, LABEL)], ["foreground"])


def test_slices_between_others_that_were_not_scored_keep_their_place():
    pairs = {2: (LABEL[0], LABEL[0]), 4: (LABEL[1], LABEL[1])}
    prediction, label = Volume(SPACING, pairs).stacked()
    assert prediction.shape == (3, 8, 8)
    assert [bool(each.any()) for each in label] == [True, False, True]


sites = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=4)


@given(sites)
@settings(max_examples=30, deadline=None)
def test_sites_pool_to_what_their_volumes_together_give(counts):
    half = box(slice(0, 1), slice(2, 6), slice(2, 6))
    of_sites = [[volume(LABEL, LABEL)] * whole + [volume(half, LABEL, None)] * halves for whole, halves in counts]
    pooled = pool_volumes(summarise_volumes(each, ["a", "b"]) for each in of_sites)
    together = summarise_volumes([each for site in of_sites for each in site], ["a", "b"])
    assert pooled == {**together, "dice": pytest.approx(together["dice"]), "classes": pooled["classes"]}
    assert pooled["classes"]["a"] == {
        **together["classes"]["a"],
        "dice": pytest.approx(together["classes"]["a"]["dice"]),
    }


def test_a_site_of_pictures_alone_has_no_volumes_in_the_pool():
    of_volumes = {**summarise([]), "volumes": summarise_volumes([volume(LABEL, LABEL)], [])}
    assert pool([summarise([]), of_volumes])["volumes"]["n"] == 1
    assert "volumes" not in pool([summarise([])])
