"""Scores of few images are withheld."""

from __future__ import annotations

import pytest

from samfed_monai.federation.server import site_scores
from samfed_monai.metrics.scores import pool
from samfed_monai.privacy.allowed import EFFORT, NO_IMAGES, withheld_reason, withhold_small
from samfed_monai.protocol import Kind, Message


def scores(n: int = 40, **counts: float) -> Message:
    metrics = {"dice": 0.5, "hd95": 3.0, "iterations": 7, **counts}
    return Message(Kind.METRICS, "Bern", 0, 1, n=n, metrics=metrics)


@pytest.mark.parametrize(
    ("counts", "left"),
    [
        ({"empty_both": 0, "empty_prediction": 4, "empty_label": 5}, {"dice", "hd95", "empty_both", "empty_label"}),
        ({"empty_both": 1, "empty_prediction": 1, "empty_label": 2}, {"dice", "hd95"}),
        ({"empty_both": 5, "empty_prediction": 0}, {"dice", "hd95", "empty_both", "empty_prediction"}),
        ({"empty_both": 30, "empty_label": 5}, {"dice", "hd95", "empty_both", "empty_label"}),  # 5 have neither empty
        ({"empty_both": 30, "empty_label": 6}, {"dice"}),  # 4 have
        ({"empty_both": 30, "empty_label": 9, "iou": 0.4}, {"dice"}),  # of one, 40 dice - 30 would be its own
        ({"empty_both": 36, "empty_label": 3, "iou": 0.4}, {"dice"}),
        ({"empty_both": 37, "empty_label": 3}, {"dice"}),
        ({"iou": 0.4}, {"dice", "hd95", "iou"}),
    ],
)
def test_fault_59_small_counts_of_empty_masks_are_withheld(counts, left):
    sent = withhold_small(scores(**counts), 5)
    assert sent.n == 40
    assert sent.metrics == {name: value for name, value in scores(**counts).metrics.items() if name in left | EFFORT}
    assert withhold_small(scores(**counts), 1) == scores(**counts), "1 withholds nothing"


def test_fault_59_withheld_count_is_reported_as_null():
    found = site_scores(withhold_small(scores(empty_both=3, empty_prediction=0, empty_label=9), 5))
    assert found["empty"] == {"both": None, "prediction": 0, "label": 9}
    nothing = site_scores(withhold_small(scores(n=4, empty_both=1), 5))
    assert nothing["empty"] == {"both": 0, "prediction": 0, "label": 0}, "its counts are shown without scores"
    other = {"dice": 1.0, "iou": None, "hd95": 1.0, "n": 10, "empty": {"both": 1, "prediction": 1, "label": 1}}
    pooled = pool([found, other], skip_empty=True)
    assert pooled["empty"] == {"both": None, "prediction": 1, "label": 10}
    assert pooled["hd95"] == pytest.approx((3.0 * 31 + 1.0 * 7) / 38), "of 40 nine, of 10 three are known to be empty"
    assert pooled["dice"] == pytest.approx((0.5 * 40 + 1.0 * 10) / 50)


def test_fault_59_scores_of_rare_classes_are_withheld():
    classes = {
        **{f"{name}_class_{number}": 0.5 for name in ("dice", "iou", "hd95") for number in range(1, 7)},
        **{"images_class_1": 4, "images_class_2": 5, "images_class_3": 1, "images_class_4": 36, "images_class_5": 0},
        "images_class_6": 39,
    }
    sent = withhold_small(scores(**classes), 5).metrics
    kept = {name for name in sent if "_class_" in name}
    shown = {f"{name}_class_{number}" for name in ("dice", "iou", "hd95") for number in (2, 4, 5, 6)}
    # of 40 images 36 hold class 4, and 39 class 6: that 4, or one, do not is as few as that 4 do
    assert kept == shown | {"images_class_2", "images_class_5"}
    assert {name: sent[name] for name in ("dice", "hd95", "iterations")} == {"dice": 0.5, "hd95": 3.0, "iterations": 7}


GROUPS = {"quality_images_0": 6, "quality_estimate_0": 0.9, "quality_dice_0": 0.8, "quality_margin_0": 0.1}


@pytest.mark.parametrize(("least", "left"), [(6, True), (7, False)])
def test_quality_groups_are_withheld_below_minimum(least, left):
    sent = withhold_small(scores(**GROUPS), least).metrics
    assert (sent.keys() >= GROUPS.keys(), bool(sent.keys() & GROUPS.keys())) == (left, left)
    assert sent["dice"] == 0.5


@pytest.mark.parametrize(("images", "left"), [(4, False), (5, True), (32, True)])
def test_expected_dice_is_withheld_below_minimum(images, left):
    expected = {"expected_dice": 0.8, "expected_images": images}
    sent = withhold_small(Message(Kind.METRICS, "Bern", 0, 1, n=0, metrics={"seconds": 1.0, **expected}), 5)
    assert sent.metrics == {"seconds": 1.0, **(expected if left else {})}
    assert withheld_reason(sent) == NO_IMAGES
    scored = withhold_small(scores(**expected), 5).metrics
    assert scored == {**scores().metrics, **(expected if left else {})}, "of few images, beside scores of many"
    few = Message(Kind.METRICS, "Bern", 0, 1, n=3, metrics={"dice": 0.5, **expected})
    assert withhold_small(few, 5).metrics == {}, "with the scores of few labelled images goes what they promised"
