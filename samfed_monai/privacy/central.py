"""Central differential privacy: the mean of clipped steps with Gaussian noise, in place of the sites' updates."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from samfed_monai.core.errors import Stopped
from samfed_monai.core.io import append_line
from samfed_monai.privacy.accounting import count_noise, epsilon, epsilon_of
from samfed_monai.privacy.noise import Noise, SystemNoise
from samfed_monai.privacy.rules import CentralPrivacy
from samfed_monai.protocol.message import Kind, Message

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.protocol.strategy import Strategy

logger = logging.getLogger(__name__)

#: The ledger of a run's folder, one line for each mean with noise.
FILE_NAME = "privacy.jsonl"
#: What the guarantee is about; the words of ``results.json`` and of the report.
UNIT = "the steps of one site, counted as none"
_CLIP = "central_clip"
_MEAN = "mean"  # in place of a site's name


def step_noise(noise_multiplier: float, count_noise: float | None) -> float:
    """What is left for the steps of the noise that two releases together amount to.

    ``(z^-2 - (2 s)^-2)^(-1/2)``: Andrew et al., arXiv 1905.03871, theorem 1. The numbers ``b - 1/2`` of the sites
    within the clip have a sensitivity of 1/2.

    Args:
        noise_multiplier: z, of both releases together.
        count_noise: s, standard deviation on the number of sites within the clip, > z / 2; ``None``: not counted.
    """
    if count_noise is None:
        return noise_multiplier
    return (noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5


def next_clip(clip: float, within: float, *, quantile: float, rate: float) -> float:
    """The clip of the next round: ``clip * exp(-rate * (within - quantile))`` (algorithm 1 of the paper).

    Args:
        clip: of this round.
        within: part of the sites whose steps were no longer; with noise, so it may leave [0, 1].
        quantile: the part that is wanted.
        rate: > 0.
    """
    return clip * math.exp(-rate * (within - quantile))


class CentralNoise:
    """Aggregates the answers of a round for a strategy that needs their mean alone (:attr:`Exchange.mean`).

    ``w + (sum of clip(w_i - w) + N(0, (z' * clip)^2)) / S`` over the S sites that answered, where ``z'`` is
    ``noise_multiplier`` without a ``quantile`` and a little more with one (:func:`step_noise`). Every site counts
    alike, whatever its number of images: a site's share bounds what one can do. The strategy is given that as one
    answer. What is no parameter (BatchNorm's statistics and counters) stays as it is.

    Each mean is entered in the ledger before its noise is drawn; a round that is done again after a crash is two
    releases. Noise comes from the system's generator: two runs of one seed differ.

    It does not hide a site from the server, nor what a site says beside its weights (number of images, means of loss
    terms, scores), which stays at the server.

    Args:
        settings: clip, noise and budget.
        strategy: what takes the mean, attached to its run.
        learned: names of the network's parameters.
        folder: of the run, for the ledger.
        noise: draws of the standard normal distribution; a seed is for tests, and no JSON can set one.
    """

    def __init__(
        self,
        settings: CentralPrivacy,
        strategy: Strategy,
        *,
        learned: Iterable[str],
        folder: str | Path,
        noise: Noise | None = None,
    ) -> None:
        self.settings, self.strategy, self.noise = settings, strategy, noise or SystemNoise()
        self.learned, self.ledger = frozenset(learned), Path(folder) / FILE_NAME
        self.clip = float(settings.clip)
        self._sums: dict[str, Tensor] = {}
        self._sites = self._within = 0

    @property
    def count_noise(self) -> float | None:
        """Standard deviation of the noise on the number of sites within the clip; ``None``: not counted."""
        if self.settings.quantile is None:
            return None
        sites = len(self.strategy.server.sites)
        return self.settings.count_noise or max(sites / 20, self.settings.noise_multiplier)

    @torch.no_grad()
    def take(self, round: int, site: str, update: Message) -> None:
        """Adds one checked answer's step, shortened to the clip."""
        old = self.strategy.global_weights
        names = [name for name, tensor in old.items() if name in self.learned and tensor.is_floating_point()]
        steps = {name: update.tensors[name].double() - old[name].double() for name in names}
        length = math.sqrt(math.fsum(float(step.square().sum()) for step in steps.values()))
        share = min(1.0, self.clip / max(length, 1e-300))
        for name, step in steps.items():
            self._sums[name] = self._sums.get(name, 0.0) + share * step
        self._sites += 1
        self._within += length <= self.clip

    @torch.no_grad()
    def finish(self, round: int) -> None:
        """Gives the strategy the mean with noise, and moves the clip.

        Raises:
            Stopped: one more release would spend more than ``epsilon``.
        """
        if not self._sites:
            return
        self._enter(round)
        old, sites = self.strategy.global_weights, self._sites
        deviation = self.clip * step_noise(self.settings.noise_multiplier, self.count_noise)
        mean = {name: tensor.clone() for name, tensor in old.items()}
        for name, steps in self._sums.items():
            drawn = torch.from_numpy(self.noise(steps.numel())).reshape(steps.shape)
            mean[name] = (old[name].double() + (steps + deviation * drawn) / sites).to(old[name].dtype)
        if self.settings.quantile is not None and self.count_noise is not None:
            within = (self._within - sites / 2 + self.count_noise * float(self.noise(1)[0])) / sites + 0.5
            self.clip = next_clip(self.clip, within, quantile=self.settings.quantile, rate=self.settings.clip_rate)
            logger.info("round %d: steps are clipped to %.3g from here on", round + 1, self.clip)
        self._sums, self._sites, self._within = {}, 0, 0
        server = self.strategy.server
        update = Message(Kind.WEIGHTS, _MEAN, round, server.rounds, server.seed, n=sites, tensors=mean)
        self.strategy.accept(round, _MEAN, update)
        self.strategy.finish(round)

    def state_dict(self) -> dict[str, Tensor]:
        """What the next round starts from: the clip."""
        return {_CLIP: torch.tensor(self.clip, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to a stored round; the ledger stays, for what was released was released."""
        self.clip = float(state.get(_CLIP, self.settings.clip))
        self._sums, self._sites, self._within = {}, 0, 0

    def account(self) -> dict[str, Any]:
        """``results.json -> privacy -> central_differential_privacy``."""
        settings, spent = self.settings, count_noise(self.ledger, _noise_of)
        halved = {noise / 2: count for noise, count in spent.items()}
        return {
            "unit": UNIT,
            "clip": settings.clip,
            "clip_last": self.clip,
            "quantile": settings.quantile,
            "noise_multiplier": settings.noise_multiplier,
            "delta": settings.delta,
            "releases": sum(spent.values()),
            "epsilon_per_round": epsilon(settings.noise_multiplier, 1, settings.delta),
            "epsilon_total": epsilon_of(spent, settings.delta),
            "epsilon_replaced": epsilon_of(halved, settings.delta),
        }

    def _enter(self, round: int) -> None:
        noise, most = self.settings.noise_multiplier, self.settings.epsilon
        after = count_noise(self.ledger, _noise_of)
        after[noise] += 1
        if most is not None and (spent := epsilon_of(after, self.settings.delta)) > most:
            reason = f"epsilon would be {spent:.3g} after one more mean, of at most {most:g}; repeated rounds count"
            raise Stopped(reason, "take the last model as it is; more rounds spend more")
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        append_line(self.ledger, json.dumps({"time": now, "round": round, "noise_multiplier": noise}))


def _noise_of(entry: Any) -> Any:
    return entry["noise_multiplier"]
