"""How much each expert of each layer was used in a round."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events

from samfed_monai.handlers.mutual_distillation_term import require_experts
from samfed_monai.handlers.rounds import in_federation
from samfed_monai.networks.sam.paths import sam_outputs

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


class ExpertUsage:
    """Averages the routing of the supervised passes over a round into ``engine.state.expert_usage``.

    That is a dict from the layer's name to ``{"share": [K numbers that sum to 1], "tokens": T}``: the part of all
    assignments that each expert got, and the number of tokens that were routed (each to ``top`` experts). It is empty
    where no pass took the personal path. A trainer without rounds starts anew at every epoch.

    Raises:
        Refused: at ``STARTED``, a network without experts.

    Example::

        "after#expert_usage": {"_target_": "samfed_monai.handlers.ExpertUsage"}
    """

    def __init__(self) -> None:
        self._assigned: Tensor | None = None
        self._tokens: Tensor = torch.zeros(0)

    def attach(self, engine: Any) -> None:
        """Binds to a trainer."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _started(self, engine: Any) -> None:
        require_experts(engine.network, "after#expert_usage (ExpertUsage)")
        self._assigned, engine.state.expert_usage = None, {}

    def _epoch_started(self, engine: Any) -> None:
        if not in_federation(engine):
            self._assigned = None

    def __call__(self, engine: Any) -> None:
        """Adds one iteration; nothing leaves the device."""
        routing = sam_outputs(engine.state.output["pred"]).routing
        if routing is None:
            return
        tokens = torch.tensor(routing.tokens, dtype=torch.float64, device=routing.share.device)
        assigned = routing.share.double() * tokens[:, None]
        if self._assigned is None:
            self._assigned, self._tokens = assigned, tokens
        else:
            self._assigned, self._tokens = self._assigned + assigned, self._tokens + tokens

    def _epoch_completed(self, engine: Any) -> None:
        if self._assigned is None:
            engine.state.expert_usage = {}
            return
        shares = (self._assigned / self._tokens[:, None]).tolist()
        rows = zip(engine.network.expert_layers, shares, self._tokens.tolist(), strict=True)
        engine.state.expert_usage = {name: {"share": share, "tokens": int(count)} for name, share, count in rows}
        least = min(min(share) for share in shares)
        logger.debug("experts: the least used one of any layer got %.1f %% of its tokens' assignments", 100 * least)
