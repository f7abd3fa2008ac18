"""Envelope to MONAI FL's ExchangeObject and back: the one place that knows both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai.fl.utils.constants import FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from samfed_monai.core.errors import Problem
from samfed_monai.federation.envelope import METRIC_NAMES, TERM_NAME, Envelope, Kind, MessageRefused

#: Entry of an ExchangeObject (which is a dict) under which an envelope's header travels.
HEADER = "samfed"


def to_exchange(envelope: Envelope) -> ExchangeObject:
    """An ExchangeObject that refers to the envelope's tensors; they are not copied."""
    exchange = ExchangeObject(
        weights=envelope.tensors or None,
        metrics=envelope.metrics or None,
        weight_type=WeightType.WEIGHTS if envelope.kind == Kind.WEIGHTS else None,
    )
    exchange[HEADER] = envelope.header()
    return exchange


def call_extra(envelope: Envelope) -> dict[str, Any]:
    """The ``extra`` argument for ``ClientAlgo.train`` and ``evaluate``: round, rounds, seed and the envelope's own."""
    return {"round": envelope.round, "rounds": envelope.rounds, "seed": envelope.seed, **envelope.extra}


def from_exchange(exchange: ExchangeObject, *, request: Envelope) -> Envelope:
    """What a client answered to ``request``.

    A :class:`SamFedAlgo` answers with a header of its own. Any other MONAI FL client is taken to answer the request it
    was given, and the number of iterations it ran stands in for its number of images, as in NVIDIA FLARE's examples.

    Raises:
        MessageRefused: weight differences, which the strategies here do not add up.
    """
    if exchange.weight_type == WeightType.WEIGHT_DIFF:
        mend = "create the client with send_weight_diff=False"
        raise MessageRefused([Problem("message -> tensors", found="differences", expected="full weights", mend=mend)])
    tensors = dict(exchange.weights or {})
    header = exchange.get(HEADER)
    if header is not None:
        fields = {**header, "kind": Kind(header["kind"]), "metrics": dict(exchange.metrics or {})}
        return Envelope(tensors=tensors, **fields)
    statistics = exchange.statistics or {}
    return Envelope(
        kind=Kind.WEIGHTS if tensors else Kind.METRICS,
        site=request.site,
        round=request.round,
        rounds=request.rounds,
        seed=request.seed,
        n=int(statistics.get(FlStatistics.NUM_EXECUTED_ITERATIONS, 0)),
        tensors=tensors,
        metrics=dict(exchange.metrics or {}),
    )


def sendable(metrics: Mapping[Any, Any]) -> dict[str, float]:
    """Those of a client's ``metrics`` that may leave the site: allow-listed names with plain numbers."""
    numbers = {str(name): getattr(value, "item", lambda value=value: value)() for name, value in metrics.items()}
    return {
        name: value
        for name, value in numbers.items()
        if (name in METRIC_NAMES or TERM_NAME.fullmatch(name)) and type(value) in (int, float)
    }
