"""Converts messages to MONAI FL's ExchangeObject and back; ``Call``: the arguments of one call of a client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from monai.fl.utils.constants import FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from samfed_monai.core.errors import Problem
from samfed_monai.core.seeds import derive_seed
from samfed_monai.protocol.message import Kind, Message, MessageRefused, message_refused, metric_range

#: Key of an ExchangeObject (a dict) that holds a message's header.
HEADER = "samfed"


def to_exchange_object(message: Message) -> ExchangeObject:
    """Returns an ExchangeObject that refers to the message's tensors without copying them."""
    exchange = ExchangeObject(
        weights=message.tensors or None,
        metrics=message.metrics or None,
        weight_type=WeightType.WEIGHTS if message.kind == Kind.WEIGHTS else None,
    )
    exchange[HEADER] = message.header()
    return exchange


def call_extra(message: Message) -> dict[str, Any]:
    """The ``extra`` argument for ``ClientAlgo.train`` and ``evaluate``: round, rounds, seed and the message's own."""
    return {"round": message.round, "rounds": message.rounds, "seed": message.seed, **message.extra}


def from_exchange_object(exchange: ExchangeObject, *, request: Message) -> Message:
    """Returns a client's reply to ``request`` as a message.

    A :class:`SamFedAlgo` replies with a header of its own. Any other MONAI FL client is assumed to reply to the request
    it was given, and its number of iterations is used as its number of images, as in NVIDIA FLARE's examples.

    Raises:
        MessageRefused: the reply has weight differences, which the strategies here do not accept.
    """
    if exchange.weight_type == WeightType.WEIGHT_DIFF:
        hint = "create the client with send_weight_diff=False"
        raise message_refused("message -> tensors", "differences", "full weights", hint)
    tensors = dict(exchange.weights or {})
    header = exchange.get(HEADER)
    if header is not None:
        fields = {**header, "kind": Kind(header["kind"]), "metrics": dict(exchange.metrics or {})}
        return Message(tensors=tensors, **fields)
    statistics = exchange.statistics or {}
    kind, n = Kind.WEIGHTS if tensors else Kind.METRICS, int(statistics.get(FlStatistics.NUM_EXECUTED_ITERATIONS, 0))
    return replace(request, kind=kind, n=n, tensors=tensors, metrics=dict(exchange.metrics or {}), extra={})


def as_network_tensors(weights: Mapping[str, Any] | None, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts weights from an FL system without this package's header to tensors as this network could have sent them.

    Such systems send NumPy arrays, average in their own precision, and average integers (the counter of a batch norm)
    into floats: floating values are cast to the network's dtype, or rounded for an integer tensor. Wrong shapes and
    values that are not finite are left for the check of every message, which refuses them.

    Args:
        weights: names to tensors or NumPy arrays.
        like: the network's state.

    Raises:
        MessageRefused: values that are neither tensors nor arrays of numbers.
    """
    tensors, problems = {}, []
    for name, value in (weights or {}).items():
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiub":
            tensor = torch.tensor(value)
        elif isinstance(value, torch.Tensor):
            tensor = value
        else:
            kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            problems.append(Problem(f"message -> {name}", found=kind, expected="a tensor or an array of numbers"))
            continue
        tensors[name] = _cast(tensor, like[name].dtype) if name in like else tensor
    if problems:
        raise MessageRefused(problems)
    return tensors


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_floating_point() and not dtype.is_floating_point:
        return tensor.round().to(dtype) if bool(tensor.isfinite().all()) else tensor
    return tensor.to(dtype) if tensor.is_floating_point() or not dtype.is_floating_point else tensor


_CLASS_KEYS = {"dice": "dice", "iou": "iou", "hd95": "hd95", "images": "n"}
_VOLUME_KEYS = {name: name for name in ("dice", "hd95_mm", "n", "measured")}
_COUNTS = {"n", "measured"}


def metrics_of_parts(summary: Mapping[str, Any]) -> dict[str, float]:
    """Returns scores by class and of whole volumes as metrics of a message, which identifies classes by number.

    Args:
        summary: of a set of images (:func:`samfed_monai.metrics.scores.summarise_volumes`); with a single class and no
            volumes the result is empty.
    """
    volumes = summary.get("volumes") or {}
    parts = [(_VOLUME_KEYS, "volume_{}", volumes)] if volumes else []
    for keys, name, scores in ((_CLASS_KEYS, "{}_class_", summary), (_VOLUME_KEYS, "volume_{}_class_", volumes)):
        classes = (scores.get("classes") or {}).values()
        parts += [(keys, f"{name}{number}", part) for number, part in enumerate(classes, start=1)]
    metrics = {name.format(metric): part[key] for keys, name, part in parts for metric, key in keys.items()}
    return {name: value for name, value in metrics.items() if value is not None}


def parts_in(metrics: Mapping[str, float], classes: Sequence[str]) -> dict[str, Any]:
    """Reads ``{"classes": {name: {"dice", "iou", "hd95", "n"}}, "volumes": …}`` from a message's metrics.

    A missing score or count is ``None``: the site withheld it. For a class without images the site sends a count of 0.
    ``classes`` is left out if there is only one, ``volumes`` if none were scored or sent.

    Args:
        metrics: of a message.
        classes: names, in the order of their numbers.
    """
    several = list(enumerate(classes, start=1)) if len(classes) > 1 else []

    def read(keys: Mapping[str, str], name: str) -> dict[str, Any]:
        found: dict[str, Any] = {key: metrics.get(name.format(metric)) for metric, key in keys.items()}
        return found | {key: int(found[key]) for key in _COUNTS & found.keys() if found[key] is not None}

    parts: dict[str, Any] = {}
    if several:
        parts["classes"] = {name: read(_CLASS_KEYS, f"{{}}_class_{number}") for number, name in several}
    if "volume_n" in metrics:
        parts["volumes"] = read(_VOLUME_KEYS, "volume_{}")
        if several:
            classes_of_volumes = {name: read(_VOLUME_KEYS, f"volume_{{}}_class_{number}") for number, name in several}
            parts["volumes"]["classes"] = classes_of_volumes
    return parts


def sendable(metrics: Mapping[Any, Any]) -> dict[str, float]:
    """Filters a client's ``metrics`` to those that may leave the site: allow-listed names with plain numbers."""
    numbers = {str(name): getattr(value, "item", lambda value=value: value)() for name, value in metrics.items()}
    return {name: value for name, value in numbers.items() if metric_range(name) and type(value) in (int, float)}


@dataclass(frozen=True)
class Call:
    """Arguments of one call of ``train``, ``get_weights`` or ``evaluate`` at one site.

    Args:
        site: the client's name.
        round: the round, from 0; ``None`` if the FL system does not count rounds.
        rounds: number of rounds; ``None`` if unknown.
        seed: the run's seed.
        split: images that ``evaluate`` scores, ``validation`` or ``test``.
        model: name of the model: ``initial``, ``current``, ``best``, ``last``, ``teacher``; ``None`` for any other.
        purpose: use of the tensors: ``replace`` the site's weights with them, ``distil`` from them, or ``keep`` the
            network as it is.
        public: hash that the site's public set must have; empty for no check.
    """

    site: str
    round: int | None = None
    rounds: int | None = None
    seed: int = 0
    split: str = "validation"
    model: str | None = None
    purpose: str = "replace"
    public: str = ""

    @classmethod
    def of(cls, site: Any, extra: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None) -> Call:
        """Reads the call from the ``data`` and ``extra`` that MONAI FL passes to a client.

        Values come from the header of ``data`` and from ``extra``, which is all that other FL systems send. ``extra``
        takes precedence over the header's own fields, and these over the header's ``extra``.
        """
        header = (data or {}).get(HEADER) or {}
        values = {**(header.get("extra") or {}), **header, **(extra or {})}
        names = {attribute.name for attribute in fields(cls)} - {"site"}
        return cls(str(site), **{name: value for name, value in values.items() if name in names and value is not None})

    @property
    def keeps_network(self) -> bool:
        """Whether a site with a network of its own keeps it in this call: any purpose except ``replace``."""
        return self.purpose != "replace"

    def derive_seed(self, *what: str) -> int | None:
        """Seed of ``what`` at this site in this round; ``None`` without a round."""
        return None if self.round is None else derive_seed(self.seed, self.site, self.round, *what)

    def header(self, kind: Kind, *, n: int) -> dict[str, Any]:
        """Header of a reply that is based on ``n`` images."""
        rounds = 1 if self.rounds is None else self.rounds
        return Message(kind, self.site, self.round or 0, rounds, self.seed, n=n).header()
