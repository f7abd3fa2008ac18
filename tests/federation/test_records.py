"""Tests of what is written down and told of a round."""

from __future__ import annotations

from samfed_monai.federation.run_folder import round_record, round_traffic, site_record, skipped, told, total_traffic
from samfed_monai.protocol.transport import Failure, Traffic

SCORES = {"dice": 0.5, "iou": 0.4, "hd95": 3.0, "n": 2, "empty": {"both": 0, "prediction": 0, "label": 0}}


def test_a_round_is_told_in_one_line():
    missing = site_record(Failure("b", "ValueError"), None, "ValueError", None)
    scored = {**missing, "status": "ok", "validation": SCORES}
    record = round_record(2, 30, {"a": scored, "b": missing}, {"training": 17.2, "controller": 0.4})
    assert told(record) == "round 3 of 30: validation Dice 0.500, lowest 0.500 (a), skipped b, 18 s"


def test_a_round_without_scores_says_so():
    record = round_record(0, 1, {"a": site_record(Failure("a", "x"), None, "x", None)}, {"training": 1.0})
    assert told(record) == "round 1 of 1: no validation scores, skipped a, 1 s"


def test_bytes_of_rounds_and_of_what_was_sent_beside_them():
    record = {"sites": {"a": {"up_bytes": 1, "down_bytes": 2}, "b": {"up_bytes": 10, "down_bytes": 20}}}
    assert round_traffic(record) == {"up_bytes": 11, "down_bytes": 22}
    assert total_traffic([record, record], [Traffic(up=100, down=0)]) == {"up_bytes": 122, "down_bytes": 44}
    assert total_traffic([], []) == {"up_bytes": 0, "down_bytes": 0}


def test_answers_that_were_left_out_are_listed_with_their_reasons():
    sites = {"a": {"status": "ok", "reason": None}, "b": {"status": "skipped", "reason": "late"}}
    assert skipped([{"round": 4, "sites": sites}]) == [{"round": 4, "site": "b", "reason": "late"}]
