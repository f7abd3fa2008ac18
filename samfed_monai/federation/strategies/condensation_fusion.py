"""Condensation and fusion: unlike networks learn from each other through the public set (HSSF's RC and RF)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from samfed_monai.core.errors import Problems
from samfed_monai.core.seeds import derive_seed
from samfed_monai.federation import optimizer_state
from samfed_monai.federation.envelope import Envelope, Kind
from samfed_monai.federation.random_state import own_random_state
from samfed_monai.federation.sharing.public_masks import MASKS, Exchange
from samfed_monai.federation.strategies.base import Strategy
from samfed_monai.losses import choose, most_reliable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samfed_monai.federation.server import Server


class CondensationFusion(Strategy):
    """Heterogeneous SAM-Fed: regularity condensation at the server, regularity fusion at the sites (docs/method.md).

    The server has a network of its own. A round: each site fuses (RF, :class:`PublicMaskSharing`) towards the server's
    soft masks of ``D_p``, trains on its own images, and answers; the server then condenses (RC): it trains on ``D_p``
    with, for each image, the soft mask of the most reliable site as target, where that site beats the server and
    exceeds ``floor``. Before round 0 no site has answered, so the first masks are those of the warm-started server.

    Every network runs over ``D_p`` once a round: its masks serve its own reliability, the other side's gate and the
    target alike.

    Args:
        exchange: ``predictions`` (8-bit soft masks travel) or ``weights`` (networks travel; the server builds each
            site's). Both give the same targets to the bit.
        floor: reliability that a site must exceed to be learned from, in [0, 1) (HSSF, Ma et al., TMI 2024: 0.75).

    Raises:
        Refused: an option out of its range; at :meth:`attach`, a bundle without ``sharing``.

    Example::

        "strategy": {"_target_": "samfed_monai.federation.CondensationFusion", "exchange": "predictions"}
    """

    personal = True

    def __init__(self, *, exchange: str = "predictions", floor: float = 0.75) -> None:
        problems = Problems()
        known = [Exchange.PREDICTIONS.value, Exchange.WEIGHTS.value]
        if exchange not in known:
            expected = f"one of {known}"
            problems.add("strategy#exchange", found=repr(exchange), expected=expected)
        if not 0 <= floor < 1:
            problems.add("strategy#floor", found=repr(floor), expected="a number in [0, 1)")
        problems.refuse_if_any()
        self.exchange, self.floor = Exchange(exchange), floor
        self.exchange_name = self.exchange.value
        self.answer_kind = Kind.WEIGHTS if self.exchange is Exchange.WEIGHTS else Kind.SOFT_MASKS
        self._answers: dict[str, Tensor] = {}
        self._site_networks: dict[str, nn.Module] = {}

    def attach(self, server: Server) -> CondensationFusion:
        super().attach(server)
        self.bench = server.open_bench("heterogeneous")
        self.bench.network.load_state_dict(self.global_weights)
        self.bench.reset()
        return self

    def requirements(self) -> dict[str, str]:
        return {"public": self.bench.public_hash}

    def configure(self, round: int) -> dict[str, Envelope]:
        self._answers = {}
        kind, tensors = Kind.SOFT_MASKS, {MASKS: self.bench.own_masks()}
        if self.exchange is Exchange.WEIGHTS:
            kind, tensors = Kind.WEIGHTS, self.global_weights
        return {site: self._message(site, round, kind, tensors, purpose="distil") for site in self.server.sites}

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        if self.exchange is Exchange.WEIGHTS:
            return self._network_of(site).state_dict()
        return {MASKS: self.bench.own_masks()}

    def accept(self, round: int, site: str, update: Envelope) -> None:
        if self.exchange is Exchange.WEIGHTS:
            network = self._network_of(site)
            network.load_state_dict(update.tensors)
            self._answers[site] = self.bench.predictor.masks(network)
        else:
            self._answers[site] = update.tensors[MASKS]

    def refine(self, round: int) -> None:
        if not self._answers:
            return
        masks = torch.stack([self._answers[site] for site in sorted(self._answers)])
        reliability = torch.stack([self.bench.predictor.reliability(each) for each in masks])
        chosen, gate = most_reliable(reliability, self.bench.predictor.reliability(self.bench.own_masks()), self.floor)
        with own_random_state(derive_seed(self.server.seed, "server", round, "condense")):
            self.bench.phase.run(round, self.server.rounds, choose(masks, chosen), gate)
        self.bench.reset()
        self.bench.own_masks()  # of the next round; made here, where it counts as the server's time
        state = self.bench.network.state_dict()
        self.global_weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return optimizer_state.pack(self.bench.optimizer)

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self.bench.network.load_state_dict(self.global_weights)
        if state:
            optimizer_state.unpack(self.bench.optimizer, state)
        self.bench.reset()

    def _network_of(self, site: str) -> nn.Module:
        if site not in self._site_networks:
            self._site_networks[site] = self.server.networks[site]().to(self.bench.predictor.device)
        return self._site_networks[site]
