"""Two parts of a network that are trained one after the other in every epoch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from ignite.engine import Events

if TYPE_CHECKING:
    from torch import nn


class PartsInTurn(ABC):
    """Trains one part in the first steps of an epoch and the other in those after; each rests while the other trains.

    A part at rest takes no gradient at all, not even a zero one, so that neither weight decay nor the moments of an
    optimizer move it; these wait as they are. Between iterations, and after one that failed, everything can be trained.

    Args:
        share: part of an epoch's steps that are first, rounded up.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.resting: dict[bool, list[nn.Parameter]] = {}
        """What rests in the first steps (``True``) and in those after; :meth:`check` says so."""

    def attach(self, engine: Any) -> None:
        """Binds to a trainer."""
        engine.add_event_handler(Events.STARTED, self.check)
        engine.add_event_handler(Events.ITERATION_STARTED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.release)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)

    @abstractmethod
    def check(self, engine: Any) -> None:
        """Sets :attr:`resting`, or refuses, before any work, what cannot be trained in turn."""

    def is_first(self, step: int, steps: int) -> bool:
        """Whether ``step`` (from 0) of the ``steps`` of an epoch is one of the first."""
        return step < math.ceil(self.share * steps)

    def __call__(self, engine: Any) -> None:
        """Sets what one iteration trains."""
        steps = engine.state.epoch_length
        for weight in self.resting[self.is_first((engine.state.iteration - 1) % steps, steps)]:
            weight.requires_grad_(False)
            weight.grad = None  # MONAI's trainer zeroes gradients, and a zero gradient still decays and moves

    def release(self, engine: Any) -> None:
        """Everything can be trained again."""
        for weights in self.resting.values():
            for weight in weights:
                weight.requires_grad_(True)

    def _failed(self, engine: Any, error: BaseException) -> None:
        if self.resting:
            self.release(engine)
        raise error
