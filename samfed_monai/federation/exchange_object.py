"""Converts messages to MONAI FL's ExchangeObject and back; ``Call``: the arguments of one call of a client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.fl.utils.constants import FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from samfed_monai.core.errors import Problem
from samfed_monai.core.seeds import derive_seed
from samfed_monai.protocol.message import Kind, Message, MessageRefused, message_refused, metric_range

if TYPE_CHECKING:
    from torch import Tensor

#: Entry of an ExchangeObject (which is a dict) under which a message's header travels.
HEADER = "samfed"


def to_exchange_object(message: Message) -> ExchangeObject:
    """An ExchangeObject that refers to the message's tensors; they are not copied."""
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
    """What a client answered to ``request``.

    A :class:`SamFedAlgo` answers with a header of its own. Any other MONAI FL client is taken to answer the request it
    was given, and the number of iterations it ran is taken as its number of images, as in NVIDIA FLARE's examples.

    Raises:
        MessageRefused: weight differences, which the strategies here do not add up.
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


def as_own_tensors(weights: Mapping[str, Any] | None, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights from an FL system that knows no header of ours, as tensors that this network could have sent itself.

    Such systems send NumPy arrays, average in their own precision, and average integers (the counter of a batch norm)
    into floats: floating values are cast to the network's dtype, integers are rounded. What is no array of numbers, has
    another shape or is not finite stays as it came, to be refused by the check of every message.

    Args:
        weights: names to tensors or NumPy arrays.
        like: the network's state.

    Raises:
        MessageRefused: values that are neither.
    """
    tensors, problems = {}, []
    for name, value in (weights or {}).items():
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiub":
            tensor = torch.tensor(value)
        elif isinstance(value, torch.Tensor):
            tensor = value
        else:
            found = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            problems.append(Problem(f"message -> {name}", found=found, expected="a tensor or an array of numbers"))
            continue
        tensors[name] = _cast(tensor, like[name].dtype) if name in like else tensor
    if problems:
        raise MessageRefused(problems)
    return tensors


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_floating_point() and not dtype.is_floating_point:
        return tensor.round().to(dtype) if bool(tensor.isfinite().all()) else tensor
    return tensor.to(dtype) if tensor.is_floating_point() or not dtype.is_floating_point else tensor


_OF_CLASS = {"dice": "dice", "iou": "iou", "hd95": "hd95", "images": "n"}
_OF_VOLUMES = {name: name for name in ("dice", "hd95_mm", "n", "measured")}
_COUNTS = {"n", "measured"}


def metrics_of_parts(summary: Mapping[str, Any]) -> dict[str, float]:
    """Scores of several classes, and of whole volumes, as metrics of a message, which knows classes by their numbers.

    Args:
        summary: of a set of images (:func:`samfed_monai.metrics.scores.summarise_volumes`); one of a single class,
            without slices of volumes, gives none.
    """
    volumes = summary.get("volumes") or {}
    parts = [(_OF_VOLUMES, "volume_{}", volumes)] if volumes else []
    for words, name, whole in ((_OF_CLASS, "{}_class_", summary), (_OF_VOLUMES, "volume_{}_class_", volumes)):
        classes = (whole.get("classes") or {}).values()
        parts += [(words, f"{name}{number}", part) for number, part in enumerate(classes, start=1)]
    found = {name.format(word): part[key] for words, name, part in parts for word, key in words.items()}
    return {name: value for name, value in found.items() if value is not None}


def parts_in(metrics: Mapping[str, float], classes: Sequence[str]) -> dict[str, Any]:
    """``{"classes": {name: {"dice", "iou", "hd95", "n"}}, "volumes": …}`` of a message's metrics, as its site had them.

    A number that is not there, a count as well, is ``None``: the site withheld it. Of a class that it lacks it sends 0.
    There are no ``classes`` of a single one, and no ``volumes`` where none was scored or sent.

    Args:
        metrics: of a message.
        classes: names, in the order of their numbers.
    """
    several = list(enumerate(classes, start=1)) if len(classes) > 1 else []

    def read(words: Mapping[str, str], name: str) -> dict[str, Any]:
        found: dict[str, Any] = {key: metrics.get(name.format(word)) for word, key in words.items()}
        return found | {key: int(found[key]) for key in _COUNTS & found.keys() if found[key] is not None}

    parts: dict[str, Any] = {}
    if several:
        parts["classes"] = {name: read(_OF_CLASS, f"{{}}_class_{number}") for number, name in several}
    if "volume_n" in metrics:
        parts["volumes"] = read(_OF_VOLUMES, "volume_{}")
        if several:
            of_class = {name: read(_OF_VOLUMES, f"volume_{{}}_class_{number}") for number, name in several}
            parts["volumes"]["classes"] = of_class
    return parts


def sendable(metrics: Mapping[Any, Any]) -> dict[str, float]:
    """Those of a client's ``metrics`` that may leave the site: allow-listed names with plain numbers."""
    numbers = {str(name): getattr(value, "item", lambda value=value: value)() for name, value in metrics.items()}
    return {name: value for name, value in numbers.items() if metric_range(name) and type(value) in (int, float)}


@dataclass(frozen=True)
class Call:
    """What one call of ``train``, ``get_weights`` or ``evaluate`` at one site asks for.

    Args:
        site: the client's name.
        round: the round, from 0; ``None`` from an FL system that counts none.
        rounds: how many there are; ``None`` where it is not known.
        seed: of the run.
        split: which images ``evaluate`` scores, ``validation`` or ``test``.
        model: what the model is called: ``initial``, ``current``, ``best``, ``last``, ``teacher``; ``None`` is none of
            them.
        purpose: what the tensors are for: ``replace`` the site's weights with them, ``distil`` from them, or ``keep``
            the network as it is.
        public: hash that the site's public set must have; empty asks for none.
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
        """The call in which MONAI FL hands a client ``data`` and ``extra``.

        The words travel in the header of ``data`` and are in ``extra`` once more, where FL systems without our header
        have theirs: ``extra`` goes before the header's own fields, and those before the header's ``extra``.
        """
        header = (data or {}).get(HEADER) or {}
        words = {**(header.get("extra") or {}), **header, **(extra or {})}
        known = {each.name for each in fields(cls)} - {"site"}
        return cls(str(site), **{name: value for name, value in words.items() if name in known and value is not None})

    @property
    def keeps_network(self) -> bool:
        """Whether a site that has a network of its own keeps it in this call: any purpose but ``replace``."""
        return self.purpose != "replace"

    def derive_seed(self, *what: str) -> int | None:
        """Seed of ``what`` at this site in this round; ``None`` where no round is named."""
        return None if self.round is None else derive_seed(self.seed, self.site, self.round, *what)

    def header(self, kind: Kind, *, n: int) -> dict[str, Any]:
        """The header of an answer with ``n`` images behind it."""
        rounds = 1 if self.rounds is None else self.rounds
        return Message(kind, self.site, self.round or 0, rounds, self.seed, n=n).header()
