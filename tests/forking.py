"""Real processes that can be killed, forked from one with torch and MONAI, which take seconds to import."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.speedups import SMALL_NETWORKS, small_networks

_LOADED = [
    "samfed_monai.federation.client",
    "samfed_monai.federation.run",
    "torch._dynamo",  # torch imports it with the first optimizer
    "tests.speedups",
]


def forking() -> ForkServerContext:
    """Context of these processes, which share no memory with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LOADED)
    return context


def start(
    work: Callable[..., Any], *arguments: Any, errors: Path | None = None, daemon: bool = True
) -> ForkServerProcess:
    """Starts ``work(*arguments)`` in a new process and session, with this process's environment and one thread.

    Args:
        work: a function of a module; the code of a ``SystemExit`` in it is the process's exit code.
        *arguments: its arguments, all picklable.
        errors: file for its standard error; ``None`` drops it.
        daemon: whether it ends with this process, and may not start ``multiprocessing`` processes itself.
    """
    process = forking().Process(
        target=_run, args=(work, arguments, dict(os.environ), str(errors or os.devnull)), daemon=daemon
    )
    process.start()
    return process


def _run(work: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], errors: str) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)  # the environment of this test, not of the first one that forked
    os.setsid()
    with open(errors, "w") as stream:
        os.dup2(stream.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    small_networks(SMALL_NETWORKS in environment)
    work(*arguments)


class _ForkedModule:
    """The part of ``Popen`` that :class:`samfed_monai.federation.child_process.Child` uses.

    It runs ``python -u -m MODULE PIPE``.
    """

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int], **_: Any) -> None:
        self.command = list(command)
        self._process = start(_as_module, self.command[3], *(Passed(number) for number in pass_fds))

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.command, timeout or 0.0)
        return self._process.exitcode


class Passed:
    """A file descriptor to pass to the new process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self.number),)


def _received(passed: Any) -> int:
    number: int = passed.detach()
    return number


def _as_module(module: str, *descriptors: int) -> None:
    sys.argv = [module, *map(str, descriptors)]
    runpy.run_module(module, run_name="__main__")


def fork_workers(patch: pytest.MonkeyPatch) -> None:
    """Forks the sites' processes from now on, for tests that do not depend on how they start."""
    replacement = SimpleNamespace(**{**vars(subprocess), "Popen": _ForkedModule})
    patch.setattr("samfed_monai.federation.child_process.subprocess", replacement)
