"""Set-up of this package's own processes (``samfed``, a site's training, a job on FLARE): device, memory, output."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.core.errors import DISK_FULL, refused
from samfed_monai.core.text import printable

if TYPE_CHECKING:
    import torch


def set_up_process() -> None:
    """Sets up output, allocator, threads and garbage collection for training; call it before torch is imported.

    Only for processes that this package starts: for users of the library nothing changes.
    """
    print_safely()
    end_with_parent()
    keep_freed_memory()
    os.environ.update(limit_of_spins())
    gc.set_threshold(50_000)  # MONAI makes half a million objects that live as long as the process


ENDS_WITH_PARENT = "SAMFED_ENDS_WITH_PARENT"
"""Environment variable of a process that sends itself SIGTERM when its standard input, a pipe, is closed."""


def end_with_parent() -> None:
    """With :data:`ENDS_WITH_PARENT`, ends the process as soon as its parent has ended, even if that was killed."""

    def wait() -> None:
        while os.read(0, 1024):  # not sys.stdin, whose lock Python needs when it exits
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if os.environ.pop(ENDS_WITH_PARENT, ""):
        threading.Thread(target=wait, daemon=True).start()


def print_safely() -> None:
    """Makes standard output and error print any text in any encoding; closed streams print nothing.

    Characters outside the encoding and control characters are escaped, as ``\\u2026``, so that a file name cannot move
    the cursor or set the terminal's title. Standard error on a full disk prints nothing, and work goes on.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the rest of the process
        elif isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _Printable(stream))


class _Printable(io.TextIOWrapper):
    """A second stream on the same buffer; it keeps the first alive, which logging handlers may still write to."""

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
        with self._unless_full():
            super().write(text if _CURSOR.fullmatch(text) else printable(text, keep="\n\t\r"))
        return len(text)

    def flush(self) -> None:
        with self._unless_full():
            super().flush()

    @contextmanager
    def _unless_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_FULL or self.first is not sys.__stderr__:
                raise


_CURSOR = re.compile(r"\r?(\x1b\[A)+")  # tqdm's movement between bars


# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30
_ALLOCATOR_VARIABLES = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Lets the process keep freed blocks of up to 1 GiB for its next tensors.

    By default glibc returns large blocks to the system, which has to clear all their pages again in the next optimiser
    step. Keeping them makes training on a CPU faster for a little more memory (``benchmarks/allocator.py``); numbers do
    not change. Only ``samfed`` and bundles' jobs call it, for their own processes.

    Returns:
        whether anything was changed: ``False`` without glibc (macOS, musl), or if the user chose an allocator or its
        thresholds with ``GLIBC_TUNABLES``, ``LD_PRELOAD``, ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TRIM_THRESHOLD_``.
    """
    if any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        return False
    try:
        library = ctypes.CDLL(None)
        set_option = library.mallopt
        library.gnu_get_libc_version  # noqa: B018  other C libraries have a mallopt that does nothing
    except (OSError, TypeError, AttributeError):
        return False
    return bool(set_option(_M_MMAP_THRESHOLD, _KEPT_BYTES)) and bool(set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES))


def peak_memory() -> int | None:
    """Returns the peak resident memory of this process in bytes; ``None`` without Linux's ``/proc``.

    Libraries are included; child processes and GPU memory are not.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    peaks = [line.split()[1:] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peaks[0][0]) * 1024 if peaks else None


def limit_of_spins() -> dict[str, str]:
    """Returns environment variables that let waiting threads sleep after a thousand spins, not some hundred thousand.

    GNU's OpenMP expects an otherwise idle machine. Beside other work, a waiting thread spins on the core that the
    thread it waits for needs, and training takes several times as long. On an idle machine the setting costs little
    (``benchmarks/spinning.py``); numbers do not change. Set it before torch is imported, in our own processes and their
    children: the library reads the variable when it is loaded. Other OpenMPs (macOS, Windows) ignore it.

    Returns:
        an empty dictionary if the user set ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY``.
    """
    return {} if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys() else {"GOMP_SPINCOUNT": "1000"}


DEVICE = "SAMFED_DEVICE"
"""Environment variable that ``--device`` sets for the command and its child processes."""


def best_device() -> torch.device:
    """Returns the device of ``--device``, else the first GPU if there is one, else the CPU.

    Raises:
        Refused: PyTorch does not know the device, or this machine does not have it.

    Example::

        "device": {"_target_": "samfed_monai.bundle.best_device"}
    """
    import torch

    if name := os.environ.get(DEVICE, ""):
        return usable_device(name, f"--device ({DEVICE})")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usable_device(name: str, where: str) -> torch.device:
    """Returns a device of this machine by name; ``where`` is the place for the error message."""
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails for a device without memory, such as meta
    except (RuntimeError, AssertionError, NotImplementedError, ValueError):
        devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        devices += ["mps"] if torch.backends.mps.is_available() else []
        expected, hint = f"a device of this machine: {', '.join(devices)}", "omit it for the first GPU, or else the CPU"
        raise refused(where, found=repr(name), expected=expected, hint=hint) from None
    return device


def device_name(device: torch.device | str | None = None) -> str:
    """Returns the name of a device for results: the model of a GPU, else the type.

    Args:
        device: the device; ``None`` means :func:`best_device`.
    """
    import torch

    device = best_device() if device is None else torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def usable_cores() -> int:
    """Number of CPU cores that this process may use, by its affinity (``taskset``, schedulers)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
