"""From an error to an exit code: 0 done, 2 refused, 3 stopped, 130 interrupted; the message alone, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

from samfed_monai.allocator import keep_freed_memory
from samfed_monai.config.component_refusal import component_refusal
from samfed_monai.config.overrides import started_by_monai
from samfed_monai.errors import ExitCode, Problem, Refused, SamFedError

T = TypeVar("T")
_Method = Literal["run", "write"]

OUR_MISTAKE = "this is a mistake in samfed rather than in your input; the lines above say where"
"""The last line below the traceback of what is no refusal."""

_INTERRUPTED = "interrupted: what was complete is kept\n  to go on: type the same command again"


def told_by(error: BaseException) -> SamFedError | KeyboardInterrupt | None:
    """The error of ours that ``error`` was raised from (MONAI wraps what its ``$`` expressions raise).

    Only an explicit ``raise ... from`` counts: what merely happened while a refusal was dealt with is a fault of its
    own and must be seen. Where there is none, what a component refused in its own words is one
    (:func:`component_refusal`).
    """
    return raised_by_us(error) or component_refusal(error)


def raised_by_us(error: BaseException) -> SamFedError | KeyboardInterrupt | None:
    """As :func:`told_by`, without what components refused in their own words."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (SamFedError, KeyboardInterrupt)):
            return seen
        seen = seen.__cause__
    return None


@contextmanager
def as_told() -> Iterator[None]:
    """Raises the error of ours in place of the one that MONAI wrapped it in."""
    try:
        yield
    except Exception as error:
        told = told_by(error)
        if told is None:
            raise
        raise told from None


def message_and_code(error: SamFedError | KeyboardInterrupt) -> tuple[str, ExitCode]:
    """What to write to standard error, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED, ExitCode.INTERRUPTED
    return str(error), ExitCode(error.exit_code)


@contextmanager
def exit_on_refusal() -> Iterator[None]:
    """Inside ``python -m monai.bundle run``, ends the process with our message and exit code instead of a traceback.

    Anywhere else (``samfed``, tests, a notebook) the error passes through unchanged.

    Raises:
        SystemExit: the process was started by MONAI and the block refused, stopped or was interrupted.
    """
    try:
        yield
    except (SamFedError, KeyboardInterrupt, RuntimeError) as error:
        told = told_by(error)
        if told is None or not started_by_monai():
            raise
        _leave(told)


def run_or_exit(job: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Calls ``job`` inside :func:`exit_on_refusal`."""
    with exit_on_refusal():
        return job(*args, **kwargs)


def run_job(*, job: Any, method: _Method = "run") -> Any:
    """Calls ``job.run()``, or ``job.write()``, inside :func:`exit_on_refusal`; what a bundle's ``run`` consists of.

    Example::

        "run": [{"_target_": "samfed_monai.config.run_job", "job": "@job"}]

    Raises:
        Refused: another method.
    """
    if method not in get_args(_Method):
        raise Refused([Problem("run_job -> method", found=repr(method), expected="'run' or 'write'")])
    if started_by_monai():
        keep_freed_memory()
    return run_or_exit(getattr(job, method))


def install_exit_hook() -> None:
    """Lets errors of ours that components raise while MONAI builds them end the process in the same way."""
    if started_by_monai() and sys.excepthook is not _exit_hook:
        sys.excepthook = _exit_hook


def _exit_hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    told = told_by(error)
    if told is None:
        sys.__excepthook__(kind, error, traceback)
        return
    _leave(told)


def _leave(error: SamFedError | KeyboardInterrupt) -> None:
    message, code = message_and_code(error)
    sys.stderr.write(f"{message}\n")
    raise SystemExit(int(code)) from None
