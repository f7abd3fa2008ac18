from __future__ import annotations

import pytest

from samfed_monai.metrics import Scores, convention, pool, summarise, worst
from samfed_monai.results.schema import RESULTS_SCHEMA

TABLE = [Scores(0.8, 0.6, 10.0), Scores(0.0, 0.0, 50.0, "prediction"), Scores(1.0, 1.0, 0.0, "both")]


def test_means_and_counts_of_three_images():
    summary = summarise(TABLE)
    assert summary["dice"] == pytest.approx(0.6)
    assert summary["iou"] == pytest.approx(1.6 / 3)
    assert summary["hd95"] == pytest.approx(20.0)
    assert summary["n"] == 3
    assert summary["empty"] == {"both": 1, "prediction": 1, "label": 0}


def test_hssfs_convention_leaves_empty_masks_out_of_hd95_only():
    summary = summarise(TABLE, skip_empty=True)
    assert summary["hd95"] == 10.0
    assert summary["dice"] == pytest.approx(0.6)
    assert summary["n"] == 3


def test_no_image_has_no_mean():
    assert summarise([]) == {
        "dice": None,
        "iou": None,
        "hd95": None,
        "n": 0,
        "empty": {"both": 0, "prediction": 0, "label": 0},
    }


@pytest.mark.parametrize("skip_empty", [False, True])
def test_pooled_sites_are_the_summary_of_all_their_images(skip_empty):
    sites = [TABLE, [Scores(0.5, 0.4, 3.0)] * 4, [Scores(0.0, 0.0, 50.0, "label")], []]
    pooled = pool([summarise(site, skip_empty=skip_empty) for site in sites], skip_empty=skip_empty)
    whole = summarise([score for site in sites for score in site], skip_empty=skip_empty)
    assert pooled == {**whole, **{name: pytest.approx(whole[name]) for name in ("dice", "iou", "hd95")}}


def test_sites_of_which_every_mask_is_empty_have_no_hd95_when_skipped():
    site = summarise([Scores(0.0, 0.0, 50.0, "prediction")], skip_empty=True)
    assert site["hd95"] is None
    assert pool([site, site], skip_empty=True) == {
        "dice": 0.0,
        "iou": 0.0,
        "hd95": None,
        "n": 2,
        "empty": {"both": 0, "prediction": 2, "label": 0},
    }


def of_site(dice, n, both=0, hd95=4.0):
    return {"dice": dice, "iou": 0.5, "hd95": hd95, "n": n, "empty": {"both": both, "prediction": 0, "label": 0}}


def test_the_mean_is_over_images_and_a_score_that_is_missing_does_not_count():
    pooled = pool([of_site(0.2, 1, both=1), of_site(0.6, 3), of_site(None, 5)])
    assert pooled["dice"] == pytest.approx(0.5)
    assert (pooled["n"], pooled["empty"]["both"]) == (9, 1)
    assert pool([])["dice"] is None


def test_hd95_that_skips_empty_masks_weighs_by_the_images_that_it_is_the_mean_of():
    sites = [of_site(0.5, 4, both=3), of_site(0.5, 3, hd95=8.0)]
    assert pool(sites)["hd95"] == (4 * 4.0 + 3 * 8.0) / 7
    assert pool(sites, skip_empty=True)["hd95"] == (1 * 4.0 + 3 * 8.0) / 4


def test_the_worst_site_is_the_lowest_dice_and_the_first_by_name_among_equals():
    assert worst({"a": of_site(0.6, 1), "b": of_site(0.2, 3), "c": of_site(None, 0)})["site"] == "b"
    assert worst({"b": of_site(0.2, 1), "a": of_site(0.2, 3)}) == {"site": "a", **of_site(0.2, 3)}
    assert worst({"a": of_site(None, 0)}) is None


def test_the_convention_is_stated_in_the_words_of_results_json():
    assert convention() == {"hd95": "max of directed", "empty": "diagonal"}
    assert convention(pooled=True, skip_empty=True) == {"hd95": "pooled", "empty": "skipped"}
    schema = RESULTS_SCHEMA["properties"]["convention"]["properties"]
    for pooled in (False, True):
        for key, word in convention(pooled=pooled, skip_empty=pooled).items():
            assert word in schema[key]["enum"]
