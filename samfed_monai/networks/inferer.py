"""Inference: mixed precision on any device (an engine's ``amp`` supports CUDA only), and test-time views."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from monai.inferers import Inferer
from torch import Tensor

from samfed_monai.core.errors import Problem
from samfed_monai.core.validators import require
from samfed_monai.losses import probabilities

logger = logging.getLogger(__name__)

Switch = bool | Literal["auto"]


def switch_problems(where: str, value: Any) -> list[Problem]:
    """Returns the problem of an invalid :data:`Switch`."""
    return [] if value in (True, False, "auto") else [Problem(where, repr(value), "true, false or 'auto'")]


@lru_cache
def bf16_gains(device_type: str) -> bool:
    """Whether ``device_type`` (``"cpu"``, ``"cuda"``) computes bfloat16 in hardware.

    A CPU needs AVX-512 BF16 or AMX; without them bfloat16 is emulated, slower than float32.
    """
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    if device_type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return torch.backends.mkldnn.is_available() and any(getattr(torch.cpu, name, bool)() for name in checks)
    return False


def bf16_possible(enabled: Switch, device_type: str) -> bool:
    """Whether an encoder computes in bfloat16: if it is enabled and :func:`bf16_gains`.

    ``True`` on a processor that would emulate it, several times slower than float32, logs a warning once per process.
    """
    gains = bf16_gains(device_type)
    if enabled is True and not gains:
        _warn_float32(device_type)
    return gains and enabled is not False


@lru_cache  # once per process
def _warn_float32(device_type: str) -> None:
    text = "bf16 is true, but the %s of this machine does not support bfloat16: continuing in float32 (as with auto)"
    logger.warning(text, device_type)


def autocast(device_type: str, enabled: Switch = "auto", dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    """Returns ``torch.autocast``, with ``enabled="auto"`` enabling it if :func:`bf16_gains`."""
    return torch.autocast(device_type, dtype, enabled=bf16_gains(device_type) if enabled == "auto" else enabled)


class View(NamedTuple):
    """One of the eight symmetries of the square: a horizontal flip, then quarter turns."""

    mirror: bool
    turns: int

    def apply(self, images: Tensor) -> Tensor:
        """Maps ``(..., H, W)`` to ``(..., H, W)``, or to ``(..., W, H)`` for an odd number of turns."""
        return torch.rot90(images.flip(-1) if self.mirror else images, self.turns, (-2, -1))

    def undo(self, images: Tensor) -> Tensor:
        """The inverse of :meth:`apply`, exactly."""
        rotated = torch.rot90(images, -self.turns, (-2, -1))
        return rotated.flip(-1) if self.mirror else rotated


VIEWS: dict[int, tuple[View, ...]] = {
    1: (View(False, 0),),
    2: (View(False, 0), View(True, 0)),
    4: (View(False, 0), View(True, 0), View(False, 2), View(True, 2)),
    8: tuple(View(mirror, turns) for mirror in (False, True) for turns in range(4)),
}
"""Test-time views by their number: identity, horizontal flip, both flips, flip x quarter turns."""


def views_problems(where: str, value: Any) -> list[Problem]:
    """Returns the problem of an invalid number of test-time views."""
    return [] if type(value) is int and value in VIEWS else [Problem(where, repr(value), f"one of {sorted(VIEWS)}")]


def mean_of_views(images: Tensor, network: Callable[[Tensor], Tensor], views: int) -> Tensor:
    """Returns the mean probability of a network over test-time views.

    Args:
        images: ``(B, 3, H, W)`` float in [0, 1].
        network: maps images to logits ``(B, C, H, W)``; sigmoid for one channel, else softmax over the channels.
        views: 1, 2, 4 or 8. They run one after the other, with the memory of one.

    Returns:
        ``(B, C, H, W)`` float32 in [0, 1].
    """
    predictions = [view.undo(probabilities(network(view.apply(images)).float())) for view in VIEWS[views]]
    return torch.stack(predictions).mean(0)


def logits_of(probabilities: Tensor) -> Tensor:
    """Returns finite logits ``(B, C, H, W)`` of probabilities, which are clamped to float32's epsilon."""
    eps = torch.finfo(torch.float32).eps
    probabilities = probabilities.clamp(eps, 1 - eps)
    return torch.logit(probabilities) if probabilities.shape[1] == 1 else probabilities.log()


class AutocastInferer(Inferer):
    """Runs a network under autocast and returns float32, so that losses and metrics never get half precision.

    It gives MONAI's trainers and evaluators bfloat16 on the CPU, where their own ``amp`` has no effect. It does not
    scale gradients: bfloat16 has float32's range; do not use it with ``torch.float16``.

    Args:
        enabled: ``true``, ``false``, or ``"auto"``: where the processor computes bfloat16 in hardware.
        views: number of test-time views (1, 2, 4 or 8: flips and quarter turns) to average probabilities over, for
            evaluation; each costs a pass of the network.

    Raises:
        Refused: another value of ``enabled`` or ``views``.

    Example::

        "inferer": {"_target_": "samfed_monai.networks.AutocastInferer", "enabled": "auto"}
    """

    def __init__(self, enabled: Switch = "auto", views: int = 1) -> None:
        super().__init__()
        require(
            switch_problems("AutocastInferer -> enabled", enabled), views_problems("AutocastInferer -> views", views)
        )
        self.enabled, self.views = enabled, views

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Returns ``network(inputs)`` as float32, whatever its shape; with views, logits of the mean probability."""

        def predict(images: Tensor) -> Tensor:
            with autocast(images.device.type, self.enabled):
                output = network(images, *args, **kwargs)
            return output.float()

        return predict(inputs) if self.views == 1 else logits_of(mean_of_views(inputs, predict, self.views))
