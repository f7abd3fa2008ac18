"""Threads of the process: how long those of OpenMP, with which torch computes, spin while they wait for each other."""

from __future__ import annotations

import os

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
