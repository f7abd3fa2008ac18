"""Two parts of a network that are trained one after the other in every epoch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ignite.engine import Events

from samfed_monai.core.errors import Problem
from samfed_monai.core.validators import require

if TYPE_CHECKING:
    from torch import nn


class PartsInTurn(ABC):
    """Trains one part in the first steps of an epoch and the other in those after; each rests while the other trains.

    A part at rest takes no gradient at all, not even a zero one, so that neither weight decay nor the moments of an
    optimizer move it; these wait as they are. Between iterations, and after one that failed, everything can be trained.

    Args:
        share: part of an epoch's steps that are first, rounded up.
    """

    #: Where a bundle has it, for messages.
    where: str

    def __init__(self, share: float) -> None:
        self.share = share
        self.resting: dict[bool, list[nn.Parameter]] = {}
        """What rests in the first steps (``True``) and in those after; :meth:`check` says so."""

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, self.check)
        engine.add_event_handler(Events.ITERATION_STARTED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.release)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)

    @abstractmethod
    def check(self, engine: Any) -> None:
        """Sets :attr:`resting`, or refuses, before any work, what cannot be trained in turn."""

    def settle(self, engine: Any, parts: Mapping[str, list[nn.Parameter]], *, hint: str) -> None:
        """Sets :attr:`resting`, so that the first of two parts is trained in the first steps and the second after it.

        Args:
            engine: the trainer.
            parts: what the two are called, to what of each is trained.
            hint: what to do about a part of which nothing is trained.

        Raises:
            Refused: such a part, and an epoch that has no step for one of them.
        """
        empty = (f"nothing of the {part} part to train" for part, weights in parts.items() if not weights)
        lacking = (Problem(self.where, found, "a layer of each part", hint) for found in empty)
        require(lacking, self.too_few(engine.state.epoch_length))
        first, second = parts.values()
        self.resting = {True: second, False: first}

    def too_few(self, steps: int | None) -> list[Problem]:
        """The problem of an epoch of so many steps that has none for the second part; none where it has."""
        if steps is not None and not self.is_first(steps - 1, steps):
            return []
        found = "an epoch of unknown length" if steps is None else f"{steps} steps with a share of {self.share}"
        least = f"set local_steps to {math.ceil(round(1 / (1 - self.share), 9))} or more, or " if self.share < 1 else ""
        return [Problem(self.where, found, "at least one step for each part", f"{least}lower share")]

    def is_first(self, step: int, steps: int) -> bool:
        """Whether ``step`` (from 0) of the ``steps`` of an epoch is one of the first."""
        return step < math.ceil(round(self.share * steps, 9))  # 0.55 * 20 is a little more than 11

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
