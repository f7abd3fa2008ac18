"""Trains two parts of a network one after the other in every epoch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ignite.engine import Events
from torch import nn

from samfed_monai.core.errors import Problem
from samfed_monai.core.validators import require


class PartsInTurn(ABC):
    """Trains one part of a network in the first steps of an epoch and the other in the remaining steps.

    The resting part has no gradient, not even zero, so that neither weight decay nor the optimizer's moments change
    it; its moments are kept. Between iterations, and after a failed one, all parameters are trainable.

    Args:
        share: fraction of an epoch's steps for the first part, rounded up.
    """

    #: Place in the bundle, for messages.
    where: str

    def __init__(self, share: float) -> None:
        self.share = share
        self.resting: dict[bool, list[nn.Parameter]] = {}
        """Parameters that rest in the first steps (``True``) and in the others; set by :meth:`check`."""

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, self.check)
        engine.add_event_handler(Events.ITERATION_STARTED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.release)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._release_and_raise)

    @abstractmethod
    def check(self, engine: Any) -> None:
        """Sets :attr:`resting`, or refuses, before any work, a network that cannot be trained in turn."""

    def set_parts(self, engine: Any, parts: Mapping[str, list[nn.Parameter]], *, hint: str) -> None:
        """Sets :attr:`resting`, so that the first of two parts is trained in the first steps, then the second.

        Args:
            engine: the trainer.
            parts: the two parts' names, each with its trainable parameters.
            hint: how to fix a part without trainable parameters.

        Raises:
            Refused: a part without trainable parameters, or an epoch without a step for one of them.
        """
        empty = (f"none in the {part} part" for part, weights in parts.items() if not weights)
        problems = (Problem(self.where, found, "trainable layers in each part", hint) for found in empty)
        require(problems, self.step_problems(engine.state.epoch_length))
        first, second = parts.values()
        self.resting = {True: second, False: first}

    def step_problems(self, steps: int | None) -> list[Problem]:
        """A problem if an epoch of so many steps has none for the second part."""
        if steps is not None and not self.is_first(steps - 1, steps):
            return []
        found = "an epoch of unknown length" if steps is None else f"{steps} steps with a share of {self.share}"
        hint = "lower share"
        if self.share < 1:
            hint = f"set local_steps to {math.ceil(round(1 / (1 - self.share), 9))} or more, or {hint}"
        return [Problem(self.where, found, "at least one step for each part", hint)]

    def is_first(self, step: int, steps: int) -> bool:
        """Whether ``step`` (from 0) of the ``steps`` of an epoch trains the first part."""
        return step < math.ceil(round(self.share * steps, 9))  # 0.55 * 20 is slightly more than 11

    def __call__(self, engine: Any) -> None:
        """Freezes the resting part for one iteration."""
        steps = engine.state.epoch_length
        for weight in self.resting[self.is_first((engine.state.iteration - 1) % steps, steps)]:
            weight.requires_grad_(False)
            weight.grad = None  # MONAI's trainer zeroes gradients, and a zero gradient still decays and moves

    def release(self, engine: Any) -> None:
        """Makes all parameters trainable again."""
        for weights in self.resting.values():
            for weight in weights:
                weight.requires_grad_(True)

    def _release_and_raise(self, engine: Any, error: BaseException) -> None:
        if self.resting:
            self.release(engine)
        raise error
