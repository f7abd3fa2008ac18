"""Weighs the labelled loss that MONAI's trainer computes, down to nothing."""

from __future__ import annotations

from typing import Any

from ignite.engine import Events
from monai.engines.utils import IterationEvents
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from samfed_monai.errors import Problem, Refused
from samfed_monai.handlers.records import record_supervised


class SupervisedWeight:
    """Multiplies the supervised loss before any term is added; 0 makes a site learn from its own images alone.

    List it in ``before``. With weight 0 the public batch leaves no trace: its gradient is zero, and for its forward
    pass BatchNorm's running statistics stand still (the pass itself is MONAI's, and its time is spent). The loss is
    recorded as it was, under ``supervised``.

    Args:
        weight: factor >= 0.

    Raises:
        Refused: a negative weight.

    Example::

        "before#supervised": {"_target_": "samfed_monai.handlers.SupervisedWeight", "weight": 0.0}
    """

    def __init__(self, *, weight: float = 0.0) -> None:
        if not weight >= 0:
            where = "before#supervised (SupervisedWeight) -> weight"
            raise Refused([Problem(where, found=repr(weight), expected="a number >= 0")])
        self.weight = weight
        self._momenta: list[tuple[_BatchNorm, float | None]] = []

    def attach(self, engine: Any) -> None:
        """Binds to a trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
        if self.weight == 0:
            engine.add_event_handler(Events.ITERATION_STARTED, self._hold)
            engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._release)

    def __call__(self, engine: Any) -> None:
        """Weighs the loss."""
        record_supervised(engine)
        engine.state.output["loss"] = engine.state.output["loss"] * self.weight

    def _hold(self, engine: Any) -> None:
        self._release(engine)  # what a step that failed left behind
        norms = [layer for layer in engine.network.modules() if isinstance(layer, _BatchNorm)]
        self._momenta = [(layer, layer.momentum) for layer in norms if _moves(layer)]
        for layer, _ in self._momenta:
            layer.momentum = 0.0  # running = running + 0 * (batch - running)

    def _release(self, engine: Any) -> None:
        for layer, momentum in self._momenta:
            layer.momentum = momentum
        self._momenta = []


def _moves(layer: nn.Module) -> bool:
    return bool(getattr(layer, "track_running_stats", False))
