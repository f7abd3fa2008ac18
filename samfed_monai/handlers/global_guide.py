"""The guide that remembers the network as the round began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events

from samfed_monai.handlers.guide import Guide, is_read
from samfed_monai.handlers.network_copy import NetworkCopy
from samfed_monai.handlers.rounds import in_federation
from samfed_monai.losses import probabilities

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor


class GlobalGuide(Guide):
    """Probabilities of the round's global network, frozen in eval mode (docs/method.md, step 2, homogeneous mode).

    The copy is taken at ``STARTED``, when the client has just loaded the global weights. A trainer that runs on its
    own, without rounds, refreshes it at the start of every epoch.

    Args:
        name: what terms call this guide.

    Example::

        {"_target_": "samfed_monai.handlers.GlobalGuide", "name": "global"}
    """

    def __init__(self, *, name: str = "global") -> None:
        super().__init__(name)
        self._copy = NetworkCopy()

    def attach(self, engine: Engine) -> None:
        """Takes a copy of ``engine.network`` whenever a round starts."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)

    def is_needed(self, engine: Any) -> bool:
        """Whether a term reads it."""
        return is_read(self.name, engine)

    def _started(self, engine: Any) -> None:
        if self.is_needed(engine):
            self._copy.sync(engine.network)

    def _epoch_started(self, engine: Any) -> None:
        if not in_federation(engine):
            self._started(engine)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any], engine: Any) -> Tensor:
        """The copy's probabilities for the weak view; see :class:`Guide`."""
        return probabilities(engine.inferer(batch["image"], self._copy.network))
