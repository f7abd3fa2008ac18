"""How much each expert of each layer was used in a round."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch
from ignite.engine import Events

from samfed_monai.core.io import append_line
from samfed_monai.handlers.rounds import in_federation, round_of
from samfed_monai.networks.sam.network import require_experts, sam_outputs

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FILE_NAME = "expert_usage.jsonl"
"""At the site, beside its audit file: how each layer's experts were used, a line a round."""


class ExpertUsage:
    """Averages the routing of the supervised passes over a round into ``engine.state.expert_usage``.

    That is a dict from the layer's name to ``{"share": [K numbers that sum to 1], "tokens": T}``: the part of all
    assignments that each expert got, and the number of tokens that were routed (each to ``top`` experts). It is empty
    where no pass took the personal path. A trainer without rounds starts anew at every epoch.

    The means over the layers (``expert_1``, ... which sum to 1) and the least share of any expert in any layer
    (``expert_least``) join ``engine.state.term_means``: of the whole table they alone may leave a site, as statistics
    of its images that are withheld with the loss terms. Put it after what makes those means.

    Args:
        output_dir: the run's folder at the site: the table of every round is a line of
            ``sites/<site>/expert_usage.jsonl`` (mode 0600) in it; of a round that was repeated the last line holds.
            ``None`` keeps the table in memory.
        site: the site's name.

    Raises:
        Refused: at ``STARTED``, a network without experts.

    Example::

        "after#expert_usage": {
            "_target_": "samfed_monai.handlers.ExpertUsage", "output_dir": "@output_dir", "site": "@site"
        }
    """

    def __init__(self, *, output_dir: str | Path | None = None, site: str = "") -> None:
        self.path = None if output_dir is None else Path(output_dir) / "sites" / quote(site, safe=" ") / FILE_NAME
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
        engine.state.term_means = {**(getattr(engine.state, "term_means", None) or {}), **_summary(shares)}
        self._write(engine)
        least = min(min(share) for share in shares)
        logger.debug("experts: the least used one of any layer got %.1f %% of its tokens' assignments", 100 * least)

    def _write(self, engine: Any) -> None:
        if self.path is not None:
            append_line(self.path, json.dumps({"round": round_of(engine)[0], "layers": engine.state.expert_usage}))


def _summary(shares: list[list[float]]) -> dict[str, float]:
    means = [sum(layer[expert] for layer in shares) / len(shares) for expert in range(len(shares[0]))]
    named = {f"expert_{number}": mean for number, mean in enumerate(means, start=1)}
    return {**named, "expert_least": min(map(min, shares))}
