"""A process of our own, as it begins: ``samfed``, what trains at a site, FLARE's process of a job at the server."""

from __future__ import annotations

import gc
import importlib.util
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from samfed_monai.core.allocator import keep_freed_memory
from samfed_monai.core.words import printable


def set_up_process() -> None:
    """Allocator, threads and imports as training wants them; to be called before torch is imported.

    A library's caller has a process of theirs, and none of it is changed.
    """
    print_safely()
    keep_freed_memory()
    spin_briefly()
    collect_after_import("torch", "monai")


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


_SPINS = "1000"
_CHOSEN_BY_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly() -> bool:
    """Has threads that wait for each other sleep after a thousand spins instead of some hundred thousand.

    GNU's OpenMP expects a machine that does nothing else: beside other work a thread spins on the processor that the
    thread which it waits for needs, and training takes a multiple of its time. Alone it costs little
    (``benchmarks/spinning.py``); numbers do not change. For processes of our own and those that they start, before they
    import torch: the library reads the variable when it is loaded. Other OpenMPs (macOS, Windows) do not know it.

    Returns:
        whether it was set; not where the user chose with ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY``.
    """
    if any(name in os.environ for name in _CHOSEN_BY_USER):
        return False
    os.environ["GOMP_SPINCOUNT"] = _SPINS
    return True


def collect_after_import(*names: str) -> None:
    """Has Python's collector pause while one of these packages is imported, and look at what that made no more.

    MONAI makes some half a million objects that live as long as the process. Looking through them again and again for
    garbage takes more than a third of its import (``benchmarks/imports.py``), and a part of every full collection
    afterwards. Nothing is imported here, only when it is asked for. For processes of our own, not for a library's
    caller.

    Args:
        *names: top-level packages. One that is imported already is left out.
    """
    sys.meta_path = [*(_Finder(name) for name in names if name not in sys.modules), *sys.meta_path]


class _Finder:
    """Asked first for the package, it has the others find it, and goes."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.package:
            return None
        # a new list: another thread may be going through the old one
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            with suppress(AttributeError):  # of a loader that takes no other function: imported as ever
                _pause_collector(spec.loader)
        return spec


def _pause_collector(loader: Any) -> None:
    """While this loader, of one module, runs it."""
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module  # the class's own again
        enabled = gc.isenabled()
        gc.disable()
        try:
            execute(module)
        finally:
            gc.freeze()
            if enabled:
                gc.enable()

    loader.exec_module = exec_module
