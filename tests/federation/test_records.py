"""Tests of what is written down and told of a round."""

from __future__ import annotations

from samfed_monai.federation.failure import Failure
from samfed_monai.federation.records import round_record, site_record, told

SCORES = {"dice": 0.5, "iou": 0.4, "hd95": 3.0, "n": 2, "empty": {"both": 0, "prediction": 0, "label": 0}}


def test_a_round_is_told_in_one_line():
    skipped = site_record(Failure("b", "ValueError"), None, "ValueError", None)
    scored = {**skipped, "status": "ok", "validation": SCORES}
    record = round_record(2, 30, {"a": scored, "b": skipped}, {"training": 17.2, "controller": 0.4})
    assert told(record) == "round 3 of 30: validation Dice 0.500, lowest 0.500 (a), skipped b, 18 s"


def test_a_round_without_scores_says_so():
    record = round_record(0, 1, {"a": site_record(Failure("a", "x"), None, "x", None)}, {"training": 1.0})
    assert told(record) == "round 1 of 1: no validation scores, skipped a, 1 s"
