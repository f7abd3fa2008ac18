from __future__ import annotations

import pytest

from samfed_monai.metrics import Scores, summarise

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
