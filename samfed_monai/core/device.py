"""What computes: the device that ``--device`` or ``SAMFED_DEVICE`` names, else the first GPU, else the CPU's cores."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from samfed_monai.core.errors import refused

if TYPE_CHECKING:
    import torch

VARIABLE = "SAMFED_DEVICE"
"""Set by ``--device`` for the whole command, processes that it starts included."""


def best_device() -> torch.device:
    """The device that was asked for, else the first GPU where there is one, else the CPU.

    Raises:
        Refused: a device that PyTorch does not know, or that is not here.

    Example::

        "device": {"_target_": "samfed_monai.bundle.best_device"}
    """
    import torch

    asked = os.environ.get(VARIABLE, "")
    if not asked:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.zeros(1, device=device).item()  # a device without memory, as meta, cannot say what it holds
    except (RuntimeError, AssertionError, NotImplementedError, ValueError):
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        expected, hint = f"a device of this machine: {', '.join(here)}", "leave it out for the first GPU, else the CPU"
        raise refused(f"--device ({VARIABLE})", found=repr(asked), expected=expected, hint=hint) from None
    return device


def device_name(device: torch.device | str | None = None) -> str:
    """How results name a device: a GPU by its model, another one by its type.

    Args:
        device: ``None`` is :func:`best_device`.
    """
    import torch

    device = best_device() if device is None else torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def usable_cores() -> int:
    """Cores of the CPU that this process may use, by its affinity, which ``taskset`` or a scheduler may narrow."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
