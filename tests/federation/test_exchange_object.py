"""Between messages and MONAI FL: ExchangeObjects and back, and what a client reads from a call."""

from __future__ import annotations

import pytest
import torch
from monai.fl.utils.constants import FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from samfed_monai.core.seeds import derive_seed
from samfed_monai.federation import from_exchange_object, to_exchange_object
from samfed_monai.federation.exchange_object import HEADER, Call, sendable
from samfed_monai.protocol import Kind, Message, MessageRefused
from tests.federation.toys import weights

REQUEST = Message(Kind.WEIGHTS, "a", 2, 5, 7, tensors=weights())


@pytest.mark.parametrize("kind", list(Kind))
def test_message_round_trip_does_not_copy_tensors(kind):
    tensors = {} if kind == Kind.METRICS else weights()
    sent = Message(kind, "a", 2, 5, 7, n=3, tensors=tensors, metrics={"dice": 0.5}, extra={"split": "test"})
    received = from_exchange_object(to_exchange_object(sent), request=REQUEST)
    assert received.header() == sent.header()
    assert all(received.tensors[name] is tensor for name, tensor in tensors.items())


def test_answer_of_plain_monai_client_counts_iterations():
    statistics = {FlStatistics.NUM_EXECUTED_ITERATIONS: 12}
    answer = ExchangeObject(weights=weights(), weight_type=WeightType.WEIGHTS, statistics=statistics)
    received = from_exchange_object(answer, request=REQUEST)
    assert (received.site, received.round, received.n) == ("a", 2, 12)
    received.check(up=True, like=weights(), site="a", round=2)


def test_weight_differences_are_refused():
    with pytest.raises(MessageRefused, match="expected full weights, found differences; create the client with send_w"):
        from_exchange_object(ExchangeObject(weights=weights(), weight_type=WeightType.WEIGHT_DIFF), request=REQUEST)


def test_sendable_keeps_known_numeric_metrics_only():
    found = {"dice": torch.tensor(0.5), "empty_both": 2, "Jane Doe": 1.0, "iou": "0.5", "hd95": True}
    assert sendable(found) == {"dice": 0.5, "empty_both": 2}


def test_call_fields_follow_source_precedence():
    header = {"round": 1, "rounds": 5, "extra": {"split": "test", "rounds": 9, "held": "0" * 32}, "kind": "weights"}
    call = Call.of("a", {"round": 2, "purpose": "keep", "of_another_system": 1}, {HEADER: header})
    assert call == Call("a", 2, 5, split="test", purpose="keep")
    assert Call.of("a", {"rounds": None}, ExchangeObject()) == Call("a"), "nothing was given"


def test_seed_is_derived_from_site_round_and_purpose():
    call = Call.of("a", {"round": 3, "seed": 7})
    assert call.derive_seed("train") == derive_seed(7, "a", 3, "train")
    assert call.derive_seed() == derive_seed(7, "a", 3)
    assert Call.of("a", {"seed": 7}).derive_seed("train") is None, "an FL system that counts no rounds"


def test_answer_header_takes_call_fields_or_defaults():
    header = Call.of("a", {"round": 1, "rounds": 4, "seed": 7}).header(Kind.WEIGHTS, n=5)
    assert header == Message(Kind.WEIGHTS, "a", 1, 4, 7, n=5).header()
    assert Call.of(None).header(Kind.METRICS, n=0) == Message(Kind.METRICS, "None", 0, 1, 0).header()
