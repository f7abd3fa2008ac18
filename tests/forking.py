"""Real processes that can be killed, forked from one that has torch and MONAI: their imports cost seconds each."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

_LOADED = ["samfed_monai.federation.client", "samfed_monai.federation.job_run"]


def forking() -> ForkServerContext:
    """Where such processes come from: each is one of its own, and nothing of this one's memory is in it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LOADED)
    return context


def start(work: Callable[..., Any], *arguments: Any, errors: Path | None = None) -> ForkServerProcess:
    """Starts ``work(*arguments)`` in a process and a session of its own, with one thread of torch.

    Args:
        work: a function of a module; the code of a ``SystemExit`` in it is the process's exit code.
        *arguments: for it, all picklable.
        errors: file of its standard error; ``None`` drops it.
    """
    process = forking().Process(target=_run, args=(work, arguments, str(errors or os.devnull)), daemon=True)
    process.start()
    return process


def _run(work: Callable[..., Any], arguments: tuple[Any, ...], errors: str) -> None:
    import torch

    os.setsid()
    with open(errors, "w") as stream:
        os.dup2(stream.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    work(*arguments)
