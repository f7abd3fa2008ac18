"""What a message may hold: every refusal has its reason."""

from __future__ import annotations

import math

import pytest
import torch

from samfed_monai.protocol import Envelope, Kind, MessageRefused
from tests.federation.toys import weights


def up(**changes) -> Envelope:
    fields = {"kind": Kind.WEIGHTS, "site": "a", "round": 2, "rounds": 5, "n": 7, "tensors": weights()}
    return Envelope(**{**fields, **changes})


def check(message: Envelope, **options) -> None:
    message.check(up=True, like=weights(), site="a", round=2, **options)


def test_a_sound_message_passes():
    check(up(metrics={"seconds": 1.5, "term_sam_kd": 0.25, "iterations": 3}, extra={"split": "test"}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_fault_32_nan_and_infinity_are_refused(value):
    tensors = weights()
    tensors["w"][1, 2] = value
    with pytest.raises(MessageRefused, match="message -> w: expected finite values, found NaN or infinity"):
        check(up(tensors=tensors))


def test_finite_values_whose_sum_overflows_are_not_refused():
    check(up(tensors={**weights(), "w": torch.full((2, 3), 3e38)}))


@pytest.mark.parametrize("shape", [(3, 2), (1, 3), (6,), (2, 3, 1)])
def test_fault_33_wrong_shape_is_refused_even_when_it_could_be_broadcast_or_reshaped(shape):
    with pytest.raises(MessageRefused, match=r"message -> w: expected shape \(2, 3\), found shape"):
        check(up(tensors={**weights(), "w": torch.ones(shape)}))


def test_fault_34_missing_and_extra_keys_are_refused_together_and_extra_names_are_not_repeated():
    tensors = weights()
    del tensors["b"]
    with pytest.raises(MessageRefused) as caught:
        check(up(tensors={**tensors, "Jane Doe.png": torch.ones(1)}))
    assert "message -> b: expected shape (2,), found no such tensor" in str(caught.value)
    assert "found 1 with unknown names" in str(caught.value)
    assert "Jane" not in str(caught.value)


def test_fault_35_wrong_dtype_is_refused():
    with pytest.raises(MessageRefused, match=r"message -> w: expected torch.float32, found torch.float64"):
        check(up(tensors={**weights(), "w": torch.ones(2, 3, dtype=torch.float64)}))


@pytest.mark.parametrize("n", [0, -1, 10**12, 2.0, True, "7", math.nan])
def test_fault_38_counts_that_are_no_counts_are_refused(n):
    with pytest.raises(MessageRefused, match="message -> n: expected a whole number from 1 to 10000000"):
        check(up(n=n))


def test_fault_38_an_evaluation_of_no_images_is_possible():
    Envelope(Kind.METRICS, "a", 2, 5, n=0).check(up=True, site="a", round=2)


def test_fault_40_a_message_without_tensors_is_refused():
    with pytest.raises(MessageRefused, match="refused: 3 problems"):
        check(up(tensors={}))


def test_fault_44_another_round_is_refused():
    with pytest.raises(MessageRefused, match="message -> round: expected round 2, found round 1"):
        check(up(round=1))


def test_another_sites_name_is_refused():
    with pytest.raises(MessageRefused, match="message -> site: expected the sender's own name"):
        check(up(site="b"))


def test_another_version_is_refused():
    with pytest.raises(MessageRefused, match="message -> version: expected 1, found 2; update both ends"):
        check(up(version=2))


def test_fault_55_images_in_a_payload_are_refused():
    image = torch.rand(3, 8, 8)
    with pytest.raises(MessageRefused, match="1 with unknown names"):
        check(up(tensors={**weights(), "image": image}))
    for kind in Kind:
        with pytest.raises(MessageRefused, match="message -> tensors: expected numbers only"):
            up(kind=kind, tensors={"image": image}).check(up=True, site="a", round=2)


@pytest.mark.parametrize(
    "content",
    [
        {"metrics": {"/data/Jane Doe.png": 1.0}},
        {"metrics": {"dice": "/data/Jane Doe.png"}},
        {"metrics": {"dice": math.nan}},
        {"metrics": {"term_/data/Jane Doe": 1.0}},
        {"metrics": {"dice": [0.1, 0.2]}},
        {"metrics": {"dice": True}},
        {"extra": {"path": "/data/Jane Doe.png"}},
        {"extra": {"split": "/data/Jane Doe.png"}},
        {"extra": {"/data/Jane Doe.png": "test"}},
    ],
)
def test_fault_58_paths_and_tables_are_refused_and_not_repeated(content):
    with pytest.raises(MessageRefused, match=r"message -> (metrics|extra)") as caught:
        check(up(**content))
    assert "Jane" not in str(caught.value)


def test_all_problems_come_at_once():
    with pytest.raises(MessageRefused, match="refused: 4 problems"):
        check(up(round=0, site="b", n=-1, tensors={**weights(), "w": torch.ones(3)}))
