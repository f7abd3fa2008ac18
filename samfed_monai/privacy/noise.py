"""Clipping and Gaussian noise, on a site's update or on the mean at a trusted server; sources of random numbers."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from samfed_monai.core.errors import Stopped
from samfed_monai.core.io import append_line
from samfed_monai.privacy.accounting import count_releases, epsilon, epsilon_of
from samfed_monai.privacy.audit import with_time
from samfed_monai.protocol.message import Message, message_refused

if TYPE_CHECKING:
    from samfed_monai.privacy.rules import CentralPrivacy
    from samfed_monai.protocol.strategy import Strategy

logger = logging.getLogger(__name__)

#: (count) -> that many draws from the standard normal distribution, float64.
Noise = Callable[[int], np.ndarray]

#: The ledger in a run's folder, one line for each mean with noise.
FILE_NAME = "privacy.jsonl"
#: The unit of privacy of noise at the server, as worded in ``results.json`` and in the report.
UNIT = "the steps of one site, counted as none"
_CLIP = "central_clip"
_NEUTRAL = 0.5  # probability to compare a mask with if no mask was received


class SystemNoise:
    """Normal numbers from the operating system's cryptographic generator (Box and Muller, 1958), without a seed.

    The uniform numbers have 53 bits, as those of numpy. The gaps of floating-point noise (Mironov, CCS 2012) are not
    addressed.
    """

    def __call__(self, count: int) -> np.ndarray:
        pairs = (count + 1) // 2
        bits = np.frombuffer(os.urandom(16 * pairs), dtype=np.uint64) >> np.uint64(11)
        uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53  # never 0, so that its logarithm is finite
        radius, angle = np.sqrt(-2.0 * np.log(uniform[:pairs])), 2.0 * math.pi * uniform[pairs:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def noisy_update(
    update: Mapping[str, Tensor],
    received: Mapping[str, Tensor],
    *,
    learned: Iterable[str],
    clip: float,
    noise_multiplier: float,
    noise: Noise,
) -> dict[str, Tensor]:
    """Returns ``received + clip(update - received) + N(0, (2 * clip * noise_multiplier)^2)`` for learned tensors.

    All learned tensors together are one vector; two clipped vectors are at most ``2 * clip`` apart. Other tensors
    (BatchNorm's running statistics, which are means over private images, and its counters) are sent back as received.

    Args:
        update: weights after the local epoch.
        received: weights before it; the same names, shapes and dtypes.
        learned: names of the parameters.
        clip, noise_multiplier: see :class:`DifferentialPrivacy`.
        noise: draws from the standard normal distribution.

    Raises:
        MessageRefused: ``received`` is of another network; NaN or infinity.
    """
    if any(name not in received or received[name].shape != tensor.shape for name, tensor in update.items()):
        expected = "the weights of the same network in the request, for comparison with the update"
        raise message_refused("differential privacy", "other tensors", expected)
    steps = _steps(update, received, learned)
    length = _norm(steps.values())
    if not math.isfinite(length):
        raise message_refused("message -> tensors", "NaN or infinity", "finite values")
    noisy = {name: tensor.detach().cpu().clone() for name, tensor in received.items() if name in update}
    for name, step in steps.items():
        change = _clip_factor(clip, length) * step + 2.0 * clip * noise_multiplier * _draw(noise, step)
        noisy[name] = (noisy[name].double() + change).to(update[name].dtype)
    return noisy


def noisy_masks(
    masks: Tensor, received: Tensor | None, *, clip: float, noise_multiplier: float, noise: Noise
) -> Tensor:
    """Clips each image's difference to ``received``, adds noise and returns 8-bit masks.

    The whole message is one release: one private image may change all N masks, so its sensitivity is
    ``2 * clip * sqrt(N)``.

    Args:
        masks: (N, C, h, w) uint8.
        received: the server's masks, of the same shape; ``None`` compares with a probability of 1/2.
        clip, noise_multiplier: see :class:`DifferentialPrivacy`; an image's mask is a vector of C h w probabilities.
        noise: draws from the standard normal distribution.
    """
    deviation = 2.0 * clip * math.sqrt(max(len(masks), 1)) * noise_multiplier
    is_comparable = received is not None and received.shape == masks.shape and received.dtype == masks.dtype
    known = received if is_comparable else None
    noisy = torch.empty_like(masks, device="cpu")
    for index, mask in enumerate(masks.detach().cpu()):
        old = torch.tensor(_NEUTRAL, dtype=torch.float64) if known is None else known[index].cpu().double() / 255
        step = mask.double() / 255 - old
        change = _clip_factor(clip, _norm([step])) * step + deviation * _draw(noise, step)
        noisy[index] = ((old + change).clamp(0, 1) * 255).round()
    return noisy


def _steps(new: Mapping[str, Tensor], old: Mapping[str, Tensor], learned: Iterable[str]) -> dict[str, Tensor]:
    """Returns the differences of the learned tensors, float64 on the CPU."""
    names = [name for name in learned if name in new and new[name].is_floating_point()]
    return {name: new[name].detach().cpu().double() - old[name].detach().cpu().double() for name in names}


def _norm(steps: Iterable[Tensor]) -> float:
    return math.sqrt(math.fsum(float(step.square().sum()) for step in steps))


def _clip_factor(clip: float, length: float) -> float:
    return min(1.0, clip / max(length, 1e-300))


def _draw(noise: Noise, like: Tensor) -> Tensor:
    return torch.from_numpy(noise(like.numel())).reshape(like.shape)


def step_noise(noise_multiplier: float, count_noise: float | None) -> float:
    """Returns the noise multiplier of the steps when the number of sites within the clip is released as well.

    ``(z^-2 - (2 s)^-2)^(-1/2)``: Andrew et al., arXiv 1905.03871, theorem 1. The numbers ``b - 1/2`` of the sites
    within the clip have a sensitivity of 1/2.

    Args:
        noise_multiplier: z, of both releases together.
        count_noise: s, standard deviation on the number of sites within the clip, > z / 2; ``None`` if not released.
    """
    if count_noise is None:
        return noise_multiplier
    return (noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5


def next_clip(clip: float, within: float, *, quantile: float, rate: float) -> float:
    """Returns the clip of the next round: ``clip * exp(-rate * (within - quantile))`` (algorithm 1 of the paper).

    Args:
        clip: clip of this round.
        within: part of the sites with steps within the clip; it has noise and may leave [0, 1].
        quantile: the desired part.
        rate: > 0.
    """
    return clip * math.exp(-rate * (within - quantile))


class CentralNoise:
    """Aggregates the updates of a round for a strategy that needs only their mean (:attr:`Exchange.mean`).

    ``w + (sum of clip(w_i - w) + N(0, (z' * clip)^2)) / S`` over the S sites that replied, where ``z'`` is
    ``noise_multiplier`` without a ``quantile`` and a little more with one (:func:`step_noise`). Sites count equally,
    whatever their number of images, which bounds the influence of each. The strategy gets the mean as a single update.
    Tensors that are no parameters (BatchNorm's statistics and counters) do not change.

    Each mean is entered in the ledger before its noise is drawn; a round that is repeated after a crash counts as two
    releases. Noise is from the system's generator: two runs with the same seed differ.

    It hides neither a site's update from the server nor its other numbers (number of images, means of loss terms,
    scores), which stay at the server.

    Args:
        settings: clip, noise and budget.
        strategy: the strategy that gets the mean, attached to its run.
        learned: names of the network's parameters.
        folder: folder of the run, for the ledger.
        noise: draws from the standard normal distribution; a seed is for tests, and no JSON can set one.
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
        self.learned, self.ledger = sorted(learned), Path(folder) / FILE_NAME
        self.load_state_dict({})

    @property
    def count_noise(self) -> float | None:
        """Standard deviation of the noise on the number of sites within the clip; ``None`` without a ``quantile``."""
        if self.settings.quantile is None:
            return None
        return self.settings.count_noise or max(len(self.strategy.server.sites) / 20, self.settings.noise_multiplier)

    def take(self, round: int, site: str, update: Message) -> None:
        """Adds the clipped step of one checked update."""
        steps = _steps(update.tensors, self.strategy.global_weights, self.learned)
        length = _norm(steps.values())
        for name, step in steps.items():
            self._sums[name] = self._sums.get(name, 0.0) + _clip_factor(self.clip, length) * step
        self._sites += 1
        self._within += length <= self.clip

    @torch.no_grad()
    def finish(self, round: int) -> None:
        """Passes the mean with noise to the strategy, and adapts the clip.

        Raises:
            Stopped: one more release would exceed ``epsilon``.
        """
        if not self._sites:
            return
        self._record_release(round)
        old, sites = self.strategy.global_weights, self._sites
        deviation = self.clip * step_noise(self.settings.noise_multiplier, self.count_noise)
        mean = {name: tensor.clone() for name, tensor in old.items()}
        for name, steps in self._sums.items():
            change = (steps + deviation * _draw(self.noise, steps)) / sites
            mean[name] = (old[name].double() + change).to(old[name].dtype)
        clip = self.clip
        if self.settings.quantile is not None and self.count_noise is not None:
            within = (self._within - sites / 2 + self.count_noise * float(self.noise(1)[0])) / sites + 0.5
            clip = next_clip(clip, within, quantile=self.settings.quantile, rate=self.settings.clip_rate)
            logger.info("round %d: from now on, steps are clipped to %.3g", round + 1, clip)
        self.load_state_dict({_CLIP: torch.tensor(clip, dtype=torch.float64)})
        update = self.strategy.mean_update(round, mean, sites)
        self.strategy.accept(round, update.site, update)
        self.strategy.finish(round)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the state of the next round: the clip."""
        return {_CLIP: torch.tensor(self.clip, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Restores a stored round and returns the other tensors; the ledger keeps all releases."""
        self.clip = float(state.get(_CLIP, self.settings.clip))
        self._sums: dict[str, Tensor] = {}
        self._sites = self._within = 0
        return {name: tensor for name, tensor in state.items() if name != _CLIP}

    def account(self, rounds: int) -> dict[str, Any]:
        """Returns ``results.json -> privacy -> central_differential_privacy`` for ``rounds`` stored rounds."""
        settings, spent = self.settings, self._releases(rounds)
        return {
            "unit": UNIT,
            **{name: getattr(settings, name) for name in ("clip", "quantile", "noise_multiplier", "delta")},
            "clip_last": self.clip,
            "releases": spent.total(),
            "epsilon_per_round": epsilon(settings.noise_multiplier, 1, settings.delta),
            "epsilon_total": epsilon_of(spent, settings.delta),
            "epsilon_replaced": epsilon_of({noise / 2: count for noise, count in spent.items()}, settings.delta),
        }

    def _releases(self, rounds: int) -> Counter[float]:
        """Returns the ledger's releases by noise multiplier, with at least one release for each stored round."""
        releases = count_releases(self.ledger)
        if (missing := rounds - releases.total()) > 0:
            text = "%s has %d of at least %d releases: repeated rounds are not counted; restore the file from a copy"
            logger.warning(text, self.ledger, releases.total(), rounds)
            releases[self.settings.noise_multiplier] += missing
        return releases

    def _record_release(self, round: int) -> None:
        noise, limit = self.settings.noise_multiplier, self.settings.epsilon
        after = self._releases(round) + Counter([noise])
        if limit is not None and (spent := epsilon_of(after, self.settings.delta)) > limit:
            reason = f"epsilon would be {spent:.3g} after one more round, above {limit:g}; repeated rounds count"
            raise Stopped(reason, "use the last model; each further round spends more")
        append_line(self.ledger, with_time({"round": round, "noise_multiplier": noise}))
