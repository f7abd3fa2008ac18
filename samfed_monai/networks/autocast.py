"""Running a network: mixed precision where an engine's own ``amp`` knows only CUDA, and test-time views."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
from monai.inferers import Inferer

from samfed_monai.core.errors import Problems
from samfed_monai.networks.views import VIEWS, logits_of, mean_of_views

logger = logging.getLogger(__name__)

Switch = bool | Literal["auto"]


@lru_cache
def bf16_gains(device_type: str) -> bool:
    """Whether bfloat16 is computed by the hardware of ``device_type`` (``"cpu"``, ``"cuda"``) rather than emulated.

    On a CPU that is AVX-512 BF16 or AMX; a processor without them runs bfloat16 slower than float32.
    """
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    if device_type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return torch.backends.mkldnn.is_available() and any(getattr(torch.cpu, name, bool)() for name in checks)
    return False


def bf16_possible(enabled: Switch, device_type: str) -> bool:
    """Whether an encoder computes in bfloat16: where it is asked for and :func:`bf16_gains`.

    ``True`` on a processor that would only emulate it, several times slower than float32, is reported once a process.
    """
    gains = bf16_gains(device_type)
    if enabled is True and not gains:
        _warn_float32(device_type)
    return gains and enabled is not False


@lru_cache  # once a process
def _warn_float32(device_type: str) -> None:
    text = "bf16 is true, but the %s of this machine does not compute bfloat16: going on in float32 (auto does so, too)"
    logger.warning(text, device_type)


def autocast(device_type: str, enabled: Switch = "auto", dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    """``torch.autocast`` whose ``enabled`` may be ``"auto"``: on where :func:`bf16_gains`."""
    return torch.autocast(device_type, dtype, enabled=bf16_gains(device_type) if enabled == "auto" else enabled)


class AutocastInferer(Inferer):
    """Runs a network under autocast and returns float32, so that losses and metrics never see half precision.

    It gives MONAI's trainers and evaluators bfloat16 on the CPU, where their own ``amp`` does nothing. It scales no
    gradients: bfloat16 has float32's range and needs no scaler; do not use it with ``torch.float16``.

    Args:
        enabled: ``true``, ``false``, or ``"auto"`` for wherever the processor computes bfloat16 itself.
        views: test-time views (1, 2, 4 or 8: mirrors and quarter turns) over which probabilities are averaged, for
            evaluation; each costs a pass of the network.

    Raises:
        Refused: another precision or another number of views.

    Example::

        "inferer": {"_target_": "samfed_monai.networks.AutocastInferer", "enabled": "auto"}
    """

    def __init__(self, enabled: Switch = "auto", views: int = 1) -> None:
        super().__init__()
        problems = Problems()
        if enabled not in (True, False, "auto"):
            problems.add("AutocastInferer -> enabled", found=repr(enabled), expected="true, false or 'auto'")
        if type(views) is not int or views not in VIEWS:
            problems.add("AutocastInferer -> views", found=repr(views), expected=f"one of {sorted(VIEWS)}")
        problems.refuse_if_any()
        self.enabled: Switch = enabled
        self.views = views

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Returns ``network(inputs)`` as float32, whatever its shape; with views, logits of the mean probability."""

        def once(images: torch.Tensor) -> torch.Tensor:
            with autocast(images.device.type, self.enabled):
                output = network(images, *args, **kwargs)
            return output.float()

        return once(inputs) if self.views == 1 else logits_of(mean_of_views(inputs, once, self.views))
