"""A process of our own (``samfed``, a site's training, a job on FLARE): its device, memory, threads and output."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.core.errors import refused
from samfed_monai.core.words import printable

if TYPE_CHECKING:
    import torch


def set_up_process() -> None:
    """Allocator, threads and imports as training wants them; to be called before torch is imported.

    A library's caller has a process of theirs, and none of it is changed.
    """
    print_safely()
    keep_freed_memory()
    os.environ.update(brief_spins())
    gc.set_threshold(50_000)  # MONAI makes half a million objects that live as long as the process


def print_safely() -> None:
    """Has standard output and error print any text on any terminal, in any encoding, or nothing where they are closed.

    What the encoding lacks is printed as ``\\u2026``, and so are control characters: a file's name moves no cursor and
    writes no title.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the rest of the process
        elif isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _Printable(stream))


class _Printable(io.TextIOWrapper):
    """Another stream on the same bytes, which it keeps: who has the first one, a logging handler, can still write."""

    def __init__(self, first: io.TextIOWrapper) -> None:
        super().__init__(
            first.buffer,
            first.encoding,
            "backslashreplace",
            line_buffering=first.line_buffering,
            write_through=first.write_through,
        )
        self.first = first

    def write(self, text: str) -> int:
        return super().write(text if _CURSOR.fullmatch(text) else printable(text, keep="\n\t\r"))


_CURSOR = re.compile(r"\r?(\x1b\[A)+")  # tqdm's, between one bar and another


# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30
_ALLOCATOR_CHOSEN = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Lets the process keep freed blocks of up to 1 GiB for its next tensors.

    By default glibc hands large blocks back to the system, which has to clear every page of them again in the next
    optimiser step. Keeping them makes training on a CPU faster for a little more memory (``benchmarks/allocator.py``);
    numbers do not change. For processes of our own, not for a library's caller: ``samfed`` and bundles' jobs call it.

    Returns:
        whether anything was changed. Not without glibc (macOS, musl), and not where the user chose an allocator or its
        thresholds with ``GLIBC_TUNABLES``, ``LD_PRELOAD``, ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TRIM_THRESHOLD_``.
    """
    if any(name in os.environ for name in _ALLOCATOR_CHOSEN):
        return False
    try:
        library = ctypes.CDLL(None)
        set_option = library.mallopt
        library.gnu_get_libc_version  # noqa: B018  other C libraries have a mallopt that does nothing
    except (OSError, TypeError, AttributeError):
        return False
    return bool(set_option(_M_MMAP_THRESHOLD, _KEPT)) and bool(set_option(_M_TRIM_THRESHOLD, _KEPT))


def peak_memory() -> int | None:
    """The most bytes that this process had in memory at one time; ``None`` where Linux's ``/proc`` does not say.

    Of the process as it was started, libraries included, and not of the processes that it started itself. Memory of
    a GPU is not in it.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    peaks = [line.split()[1:] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peaks[0][0]) * 1024 if peaks else None


def brief_spins() -> dict[str, str]:
    """Environment in which threads that wait for each other sleep after a thousand spins, not some hundred thousand.

    GNU's OpenMP expects a machine that does nothing else: beside other work a thread spins on the processor that the
    thread which it waits for needs, and training takes a multiple of its time. Alone it costs little
    (``benchmarks/spinning.py``); numbers do not change. For processes of our own and those that they start, before they
    import torch: the library reads the variable when it is loaded. Other OpenMPs (macOS, Windows) do not know it.

    Returns:
        nothing where the user chose with ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY``.
    """
    return {} if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys() else {"GOMP_SPINCOUNT": "1000"}


DEVICE = "SAMFED_DEVICE"
"""Set by ``--device`` for the whole command, processes that it starts included."""


def best_device() -> torch.device:
    """The device that was asked for, else the first GPU where there is one, else the CPU.

    Raises:
        Refused: a device that PyTorch does not know, or that is not here.

    Example::

        "device": {"_target_": "samfed_monai.bundle.best_device"}
    """
    import torch

    if asked := os.environ.get(DEVICE, ""):
        return usable_device(asked, f"--device ({DEVICE})")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usable_device(asked: str, where: str) -> torch.device:
    """A device of this machine by its name; ``where`` is what a refusal names."""
    import torch

    try:
        device = torch.device(asked)
        torch.zeros(1, device=device).item()  # a device without memory, as meta, cannot say what it holds
    except (RuntimeError, AssertionError, NotImplementedError, ValueError):
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        expected, hint = f"a device of this machine: {', '.join(here)}", "leave it out for the first GPU, else the CPU"
        raise refused(where, found=repr(asked), expected=expected, hint=hint) from None
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
