"""Scores of all sites together."""

from __future__ import annotations

from samfed_monai.federation import Envelope, Kind
from samfed_monai.federation.scoring import average, site_scores, worst
from samfed_monai.metrics import pool


def scores(dice, n, both=0):
    metrics = {} if dice is None else {"dice": dice, "iou": 0.5, "hd95": 4.0, "empty_both": both}
    return site_scores(Envelope(Kind.METRICS, "a", 0, 1, n=n, metrics=metrics))


def test_average_is_over_images_and_not_over_sites():
    result = average({"a": scores(0.2, 1, both=1), "b": scores(0.6, 3), "c": scores(None, 5)})
    assert abs(result["dice"] - 0.5) < 1e-12
    assert (result["n"], result["empty"]["both"]) == (9, 1)


def test_hd95_that_skips_empty_masks_weighs_by_the_images_that_it_is_the_mean_of():
    sites = {"a": scores(0.5, 4, both=3), "b": {**scores(0.5, 3), "hd95": 8.0}}
    assert average(sites)["hd95"] == (4 * 4.0 + 3 * 8.0) / 7
    assert average(sites, skip_empty=True)["hd95"] == (1 * 4.0 + 3 * 8.0) / 4
    assert average(sites, skip_empty=True)["dice"] == 0.5
    nothing_left = {"a": {**scores(0.5, 4, both=4), "hd95": None}}
    assert average(nothing_left, skip_empty=True)["hd95"] is None


def test_both_averages_of_the_package_agree():
    sites = {"a": scores(0.25, 4, both=3), "b": {**scores(0.5, 4), "hd95": 8.0}}
    for skip_empty in (False, True):
        assert average(sites, skip_empty=skip_empty) == pool(sites.values(), skip_empty=skip_empty)


def test_worst_is_the_lowest_dice():
    assert worst({"a": scores(0.6, 1), "b": scores(0.2, 3), "c": scores(None, 0)})["site"] == "b"


def test_no_scores_at_all():
    assert average({})["dice"] is None
    assert worst({"a": scores(None, 0)}) is None
