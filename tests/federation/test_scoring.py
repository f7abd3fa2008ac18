"""What a site's answer says of a model."""

from __future__ import annotations

from samfed_monai.federation.controller import site_scores
from samfed_monai.protocol import Envelope, Kind


def test_scores_and_counts_of_an_answer():
    metrics = {"dice": 0.2, "iou": 0.5, "hd95": 4.0, "empty_both": 1}
    scores = site_scores(Envelope(Kind.METRICS, "a", 0, 1, n=3, metrics=metrics))
    empty = {"both": 1, "prediction": 0, "label": 0}
    assert scores == {"dice": 0.2, "iou": 0.5, "hd95": 4.0, "n": 3, "empty": empty}


def test_a_score_that_was_not_sent_is_none():
    scores = site_scores(Envelope(Kind.METRICS, "a", 0, 1, n=5, metrics={}))
    assert (scores["dice"], scores["hd95"], scores["n"]) == (None, None, 5)
