"""Memory of the process: what glibc does with blocks that training frees and asks for again in the next step."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30
_CHOSEN_BY_USER = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Lets the process keep freed blocks of up to 1 GiB for its next tensors.

    By default glibc hands large blocks back to the system, which has to clear every page of them again in the next
    optimiser step. Keeping them makes training on a CPU faster for a little more memory (``benchmarks/allocator.py``);
    numbers do not change. For processes of our own, not for a library's caller: ``samfed`` and bundles' jobs call it.

    Returns:
        whether anything was changed. Not without glibc (macOS, musl), and not where the user chose an allocator or its
        thresholds with ``GLIBC_TUNABLES``, ``LD_PRELOAD``, ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TRIM_THRESHOLD_``.
    """
    if any(name in os.environ for name in _CHOSEN_BY_USER):
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
