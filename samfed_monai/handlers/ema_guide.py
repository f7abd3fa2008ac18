"""The guide that averages the student over its last steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events

from samfed_monai.errors import Problem, Refused
from samfed_monai.handlers.guide import Guide, is_read
from samfed_monai.handlers.network_copy import NetworkCopy
from samfed_monai.losses import probabilities

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor


class EmaGuide(Guide):
    """Probabilities of an exponential moving average of the student, buffers included, in eval mode (docs/method.md).

    At ``STARTED`` the average is set to the student, since global weights have just arrived and an older average would
    pull towards the round before; after every optimizer step it moves by ``1 - decay``.

    Args:
        name: what terms call this guide.
        decay: part of the old average that is kept at each step, in [0, 1).

    Raises:
        Refused: a decay outside [0, 1).

    Example::

        {"_target_": "samfed_monai.handlers.EmaGuide", "name": "ema", "decay": 0.99}
    """

    def __init__(self, *, name: str = "ema", decay: float = 0.99) -> None:
        super().__init__(name)
        if not 0 <= decay < 1:
            where, expected = f"guides#{name} (EmaGuide) -> decay", "a number in [0, 1)"
            raise Refused([Problem(where, found=repr(decay), expected=expected)])
        self.decay = decay
        self._copy = NetworkCopy()

    def attach(self, engine: Engine) -> None:
        """Re-synchronises at the start of a run and averages after each step."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stepped)

    def is_needed(self, engine: Any) -> bool:
        """Whether a term reads it: the average is not even kept where none does."""
        return is_read(self.name, engine)

    def _started(self, engine: Any) -> None:
        if self.is_needed(engine):
            self._copy.sync(engine.network)

    def _stepped(self, engine: Any) -> None:
        if self.is_needed(engine):
            self._copy.average(engine.network, self.decay)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any], engine: Any) -> Tensor:
        """The average's probabilities for the weak view; see :class:`Guide`."""
        return probabilities(engine.inferer(batch["image"], self._copy.network))
