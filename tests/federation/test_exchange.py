"""Envelope to ExchangeObject and back, with clients that know nothing of envelopes."""

from __future__ import annotations

import pytest
from monai.fl.utils.constants import FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from samfed_monai.federation import from_exchange, to_exchange
from samfed_monai.protocol import Envelope, Kind, MessageRefused
from tests.federation.toys import weights

REQUEST = Envelope(Kind.WEIGHTS, "a", 2, 5, 7, tensors=weights())


@pytest.mark.parametrize("kind", list(Kind))
def test_there_and_back_without_a_copy(kind):
    tensors = {} if kind == Kind.METRICS else weights()
    sent = Envelope(kind, "a", 2, 5, 7, n=3, tensors=tensors, metrics={"dice": 0.5}, extra={"split": "test"})
    received = from_exchange(to_exchange(sent), request=REQUEST)
    assert received.header() == sent.header()
    assert all(received.tensors[name] is tensor for name, tensor in tensors.items())


def test_a_plain_monai_client_answers_its_request_with_iterations_for_images():
    statistics = {FlStatistics.NUM_EXECUTED_ITERATIONS: 12}
    answer = ExchangeObject(weights=weights(), weight_type=WeightType.WEIGHTS, statistics=statistics)
    received = from_exchange(answer, request=REQUEST)
    assert (received.site, received.round, received.n) == ("a", 2, 12)
    received.check(up=True, like=weights(), site="a", round=2)


def test_weight_differences_are_refused():
    with pytest.raises(MessageRefused, match="expected full weights, found differences; create the client with send_w"):
        from_exchange(ExchangeObject(weights=weights(), weight_type=WeightType.WEIGHT_DIFF), request=REQUEST)
