"""Clipping and Gaussian noise: on a site's answer, on the mean at a trusted server; sources of random numbers."""

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

from samfed_monai.core.errors import Stopped
from samfed_monai.core.io import append_line
from samfed_monai.privacy.accounting import count_noise, epsilon, epsilon_of, noise_of_entry
from samfed_monai.privacy.audit import stamped
from samfed_monai.protocol.message import Kind, Message, message_refused

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.privacy.rules import CentralPrivacy
    from samfed_monai.protocol.strategy import Strategy

logger = logging.getLogger(__name__)

#: (count) -> that many draws of the standard normal distribution, float64.
Noise = Callable[[int], np.ndarray]

#: The ledger of a run's folder, one line for each mean with noise.
FILE_NAME = "privacy.jsonl"
#: What noise at the server is about; the words of ``results.json`` and of the report.
UNIT = "the steps of one site, counted as none"
_CLIP = "central_clip"
_MEAN = "mean"  # in place of a site's name
_MIDDLE = 0.5  # of a probability: what a mask is compared with where no mask was received


class SystemNoise:
    """Normal numbers out of the operating system's cryptographic generator (Box and Muller, 1958): no seed to guess.

    The uniform numbers have 53 bits, as those of numpy. That floating-point noise has gaps (Mironov, CCS 2012) is not
    treated.
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
    """``received + clip(update - received) + N(0, (2 * clip * noise_multiplier)^2)`` on what was learned.

    All learned tensors together are one vector; two of them that were clipped are at most ``2 * clip`` apart. What was
    not learned (BatchNorm's running statistics, which are means over private images, and its counters) is sent back
    as it was received.

    Args:
        update: weights after the local epoch.
        received: weights before it; the same names, shapes and dtypes.
        learned: names of the parameters.
        clip, noise_multiplier: as in :class:`DifferentialPrivacy`.
        noise: draws of the standard normal distribution.

    Raises:
        MessageRefused: ``received`` is not of the same network; NaN or infinity.
    """
    if any(name not in received or received[name].shape != tensor.shape for name, tensor in update.items()):
        expected = "weights of the same network in the request, to which the update is compared"
        raise message_refused("differential privacy", "other tensors", expected)
    steps = _steps(update, received, learned)
    length = _length(steps.values())
    if not math.isfinite(length):
        raise message_refused("message -> tensors", "NaN or infinity", "finite values")
    sent = {name: tensor.detach().cpu().clone() for name, tensor in received.items() if name in update}
    for name, step in steps.items():
        moved = _share(clip, length) * step + 2.0 * clip * noise_multiplier * _drawn(noise, step)
        sent[name] = (sent[name].double() + moved).to(update[name].dtype)
    return sent


def noisy_masks(
    masks: Tensor, received: Tensor | None, *, clip: float, noise_multiplier: float, noise: Noise
) -> Tensor:
    """Soft masks with each image's difference to ``received`` clipped, noise added, back in 8 bits.

    The whole message is one release: all N masks may change with one private image, so its sensitivity is
    ``2 * clip * sqrt(N)``.

    Args:
        masks: (N, C, h, w) uint8.
        received: the server's, of the same shape, or ``None``: then they are compared with a probability of 1/2.
        clip, noise_multiplier: as in :class:`DifferentialPrivacy`; an image's mask is a vector of C h w probabilities.
        noise: draws of the standard normal distribution.
    """
    deviation = 2.0 * clip * math.sqrt(max(len(masks), 1)) * noise_multiplier
    same = received is not None and received.shape == masks.shape and received.dtype == masks.dtype
    known = received if same else None
    sent = torch.empty_like(masks, device="cpu")
    for index, mask in enumerate(masks.detach().cpu()):
        old = torch.tensor(_MIDDLE, dtype=torch.float64) if known is None else known[index].cpu().double() / 255
        step = mask.double() / 255 - old
        moved = _share(clip, _length([step])) * step + deviation * _drawn(noise, step)
        sent[index] = ((old + moved).clamp(0, 1) * 255).round()
    return sent


def _steps(new: Mapping[str, Tensor], old: Mapping[str, Tensor], learned: Iterable[str]) -> dict[str, Tensor]:
    """Differences of the learned tensors, float64 on the CPU."""
    names = [name for name in learned if name in new and new[name].is_floating_point()]
    return {name: new[name].detach().cpu().double() - old[name].detach().cpu().double() for name in names}


def _length(steps: Iterable[Tensor]) -> float:
    return math.sqrt(math.fsum(float(step.square().sum()) for step in steps))


def _share(clip: float, length: float) -> float:
    return min(1.0, clip / max(length, 1e-300))


def _drawn(noise: Noise, like: Tensor) -> Tensor:
    return torch.from_numpy(noise(like.numel())).reshape(like.shape)


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
        self.learned, self.ledger = sorted(learned), Path(folder) / FILE_NAME
        self.load_state_dict({})

    @property
    def count_noise(self) -> float | None:
        """Standard deviation of the noise on the number of sites within the clip; ``None``: not counted."""
        if self.settings.quantile is None:
            return None
        sites = len(self.strategy.server.sites)
        return self.settings.count_noise or max(sites / 20, self.settings.noise_multiplier)

    def take(self, round: int, site: str, update: Message) -> None:
        """Adds one checked answer's step, shortened to the clip."""
        steps = _steps(update.tensors, self.strategy.global_weights, self.learned)
        length = _length(steps.values())
        for name, step in steps.items():
            self._sums[name] = self._sums.get(name, 0.0) + _share(self.clip, length) * step
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
            moved = (steps + deviation * _drawn(self.noise, steps)) / sites
            mean[name] = (old[name].double() + moved).to(old[name].dtype)
        clip = self.clip
        if self.settings.quantile is not None and self.count_noise is not None:
            within = (self._within - sites / 2 + self.count_noise * float(self.noise(1)[0])) / sites + 0.5
            clip = next_clip(clip, within, quantile=self.settings.quantile, rate=self.settings.clip_rate)
            logger.info("round %d: steps are clipped to %.3g from here on", round + 1, clip)
        self.load_state_dict({_CLIP: torch.tensor(clip, dtype=torch.float64)})
        server = self.strategy.server
        update = Message(Kind.WEIGHTS, _MEAN, round, server.rounds, server.seed, n=sites, tensors=mean)
        self.strategy.accept(round, _MEAN, update)
        self.strategy.finish(round)

    def state_dict(self) -> dict[str, Tensor]:
        """What the next round starts from: the clip."""
        return {_CLIP: torch.tensor(self.clip, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Goes back to a stored round; returns the other names. The ledger keeps what was released."""
        self.clip = float(state.get(_CLIP, self.settings.clip))
        self._sums: dict[str, Tensor] = {}
        self._sites = self._within = 0
        return {name: tensor for name, tensor in state.items() if name != _CLIP}

    def account(self, rounds: int) -> dict[str, Any]:
        """``results.json -> privacy -> central_differential_privacy`` of a run with so many stored rounds."""
        settings, spent = self.settings, self._spent(rounds)
        return {
            "unit": UNIT,
            **{name: getattr(settings, name) for name in ("clip", "quantile", "noise_multiplier", "delta")},
            "clip_last": self.clip,
            "releases": spent.total(),
            "epsilon_per_round": epsilon(settings.noise_multiplier, 1, settings.delta),
            "epsilon_total": epsilon_of(spent, settings.delta),
            "epsilon_replaced": epsilon_of({noise / 2: count for noise, count in spent.items()}, settings.delta),
        }

    def _spent(self, rounds: int) -> Counter[float]:
        """Noise multiplier to the number of releases: those of the ledger, at least one for each stored round."""
        spent = count_noise(self.ledger, noise_of_entry)
        if (lost := rounds - spent.total()) > 0:
            text = "%s has %d of at least %d releases: rounds that were repeated do not count; put it back from a copy"
            logger.warning(text, self.ledger, spent.total(), rounds)
            spent[self.settings.noise_multiplier] += lost
        return spent

    def _enter(self, round: int) -> None:
        noise, most = self.settings.noise_multiplier, self.settings.epsilon
        after = self._spent(round) + Counter([noise])
        if most is not None and (spent := epsilon_of(after, self.settings.delta)) > most:
            reason = f"epsilon would be {spent:.3g} after one more mean, of at most {most:g}; repeated rounds count"
            raise Stopped(reason, "take the last model as it is; more rounds spend more")
        append_line(self.ledger, stamped({"round": round, "noise_multiplier": noise}))
