"""The Gaussian mechanism as pure functions, and its sources of random numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from samfed_monai.core.errors import Problem
from samfed_monai.protocol.message import MessageRefused

if TYPE_CHECKING:
    from torch import Tensor

#: (count) -> that many draws of the standard normal distribution, float64.
Noise = Callable[[int], np.ndarray]

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


class SeededNoise:
    """Normal numbers that come back with their seed: for tests only, who knows the seed can take the noise away."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def __call__(self, count: int) -> np.ndarray:
        return self._random.standard_normal(count)


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
        raise MessageRefused([Problem("differential privacy", found="other tensors", expected=expected)])
    names = [name for name in learned if name in update and update[name].is_floating_point()]
    length = math.sqrt(math.fsum(_length(update[name].double() - received[name].double()) ** 2 for name in names))
    _require_finite(length)
    share, deviation = min(1.0, clip / max(length, 1e-300)), 2.0 * clip * noise_multiplier
    sent = {name: tensor.detach().cpu().clone() for name, tensor in received.items() if name in update}
    for name in names:
        old = received[name].detach().cpu().double()
        drawn = torch.from_numpy(noise(old.numel())).reshape(old.shape)
        step = (update[name].detach().cpu().double() - old) * share
        sent[name] = (old + step + deviation * drawn).to(update[name].dtype)
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
    same = received is not None and received.shape == masks.shape and received.dtype == masks.dtype
    deviation = 2.0 * clip * math.sqrt(max(len(masks), 1)) * noise_multiplier
    sent = torch.empty_like(masks, device="cpu")
    for index, mask in enumerate(masks.detach().cpu()):
        old = torch.tensor(_MIDDLE, dtype=torch.float64)
        if same and received is not None:
            old = received[index].cpu().double() / 255
        step = mask.double() / 255 - old
        share = min(1.0, clip / max(_length(step), 1e-300))
        drawn = torch.from_numpy(noise(mask.numel())).reshape(mask.shape)
        sent[index] = ((old + share * step + deviation * drawn).clamp(0, 1) * 255).round()
    return sent


def _length(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))


def _require_finite(length: float) -> None:
    if not math.isfinite(length):
        raise MessageRefused([Problem("message -> tensors", found="NaN or infinity", expected="finite values")])
