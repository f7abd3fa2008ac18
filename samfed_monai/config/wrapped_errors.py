"""Unwraps this package's errors from MONAI's, and reports what a component refuses with an error of its own."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from samfed_monai.config.parse import join_id, walk
from samfed_monai.core.errors import Refused, SamFedError, machine_failure, refused

GetParser = Callable[[], Any]
"""Gives a MONAI ``ConfigParser``, or ``None``; asked only when something failed."""

# monai.utils.module.instantiate raises this from what the component raised
_WRAPPED = re.compile(r"Failed to instantiate component '([\w.]+)'")

_WORKFLOW = "samfed_monai.config."
"""What runs a bundle's workflow (``run_job``, ``require_checked``): what it raises is not about one component."""


def component_refusal(error: BaseException, parser: GetParser | None = None, *, file: str = "") -> Refused | None:
    """A refusal of values that a component named in a bundle does not take; ``None`` where ``error`` is another fault.

    Such is a ``ValueError`` or ``TypeError`` that the component itself raised when MONAI built it, as
    ``torch.optim.AdamW`` does with a negative learning rate. A ``TypeError`` out of this package's own code is a fault
    of ours: a value of the wrong kind is refused before anything is built.

    Args:
        error: what was raised, however deep MONAI wrapped it.
        parser: gives the ``ConfigParser`` that built the component, for its id; without one, or where that holds no
            such component, the message has the component's name.
        file: the bundle's file that names the component, where that is known.
    """
    seen: BaseException | None = error
    while seen is not None and seen.__cause__ is not None:
        cause, wrapped = seen.__cause__, _WRAPPED.match(str(seen)) if isinstance(seen, RuntimeError) else None
        if wrapped and isinstance(cause, (ValueError, TypeError)) and not _ours(cause, wrapped[1]):
            where = " -> ".join(filter(None, (file, _id_of(wrapped[1], parser) or wrapped[1])))
            expected = f"values that {wrapped[1]} takes"
            found, hint = f"{str(cause).rstrip('.')!r}", "correct them in the bundle, or the override that sets them"
            return refused(where, found=found, expected=expected, hint=hint)
        seen = cause
    return None


def _ours(cause: BaseException, component: str) -> bool:
    if component.startswith(_WORKFLOW):
        return True
    *_, last = [None, *(frame for frame, _ in traceback.walk_tb(cause.__traceback__))]
    module = last.f_globals.get("__name__", "") if last else ""
    return isinstance(cause, TypeError) and module.partition(".")[0] == "samfed_monai"


def _id_of(component: str, get: GetParser | None) -> str:
    """The id of the component of that name, or those of several; empty where the configuration has none."""
    parser = get() if get is not None else None
    ids = [join_id(parts) for parts, value in walk(parser.get()) if _is(value, component)] if parser else []
    return " or ".join(ids)


def _is(value: Any, component: str) -> bool:
    target = value.get("_target_") if isinstance(value, dict) else None
    return isinstance(target, str) and (component == target or component.endswith(f".{target}"))


def unwrap(error: BaseException, parser: GetParser | None = None) -> SamFedError | KeyboardInterrupt | None:
    """The error of ours that ``error`` was raised from (MONAI wraps what its ``$`` expressions raise).

    Only an explicit ``raise ... from`` counts: what merely happened while a refusal was dealt with is a fault of its
    own and must be seen. Where there is none, what a component refused in its own words is one
    (:func:`component_refusal`, which takes ``parser``), and what the machine could not do
    (:func:`samfed_monai.core.errors.machine_failure`).
    """
    return unwrap_own(error) or component_refusal(error, parser) or _by_the_machine(error)


def _by_the_machine(error: BaseException | None) -> SamFedError | None:
    while error is not None:
        if failure := machine_failure(error):
            return failure
        error = error.__cause__
    return None


def unwrap_own(error: BaseException) -> SamFedError | KeyboardInterrupt | None:
    """As :func:`unwrap`, without what components refused in their own words."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (SamFedError, KeyboardInterrupt)):
            return seen
        seen = seen.__cause__
    return None


@contextmanager
def unwrapped(parser: GetParser | None = None) -> Iterator[None]:
    """Raises the error of ours in place of the one that MONAI wrapped it in; ``parser`` as :func:`unwrap` takes it."""
    try:
        yield
    except Exception as error:
        known = unwrap(error, parser)
        if known is None:
            raise
        raise known from None
