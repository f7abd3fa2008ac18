"""Unwraps this package's errors from MONAI's, and reports what a component refuses with an error of its own."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from samfed_monai.config.parse import join_id, walk
from samfed_monai.core.errors import Refused, SamFedError, machine_failure, refused

# monai.utils.module.instantiate raises this from what the component raised
_WRAPPED = re.compile(r"Failed to instantiate component '([\w.]+)'")

_WORKFLOW = "samfed_monai.config."
"""What runs a bundle's workflow (``run_job``, ``require_checked``): what it raises is not about one component."""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, by explicit ``raise ... from`` alone.

    What merely happened while a refusal was dealt with is a fault of its own and must be seen.
    """
    while error is not None:
        yield error
        error = error.__cause__


def component_refusal(
    error: BaseException, content: Mapping[str, Any] | None = None, *, file: str = ""
) -> Refused | None:
    """A refusal of values that a component named in a bundle does not take; ``None`` where ``error`` is another fault.

    Such is a ``ValueError`` or ``TypeError`` that the component itself raised when MONAI built it, as
    ``torch.optim.AdamW`` does with a negative learning rate. A ``TypeError`` out of this package's own code is a fault
    of ours: a value of the wrong kind is refused before anything is built.

    Args:
        error: what was raised, however deep MONAI wrapped it.
        content: the configuration with the component, for its id; without one, or where that holds no such component,
            the message has the component's name.
        file: the bundle's file that names the component, where that is known.
    """
    for outer, cause in pairwise(_causes(error)):
        wrapped = _WRAPPED.match(str(outer)) if isinstance(outer, RuntimeError) else None
        if wrapped and isinstance(cause, (ValueError, TypeError)) and not _ours(cause, wrapped[1]):
            name = wrapped[1]
            ids = [join_id(parts) for parts, value in walk(content) if _is(value, name)]
            where = " -> ".join(filter(None, (file, " or ".join(ids) or name)))
            found, hint = f"{str(cause).rstrip('.')!r}", "correct them in the bundle, or the override that sets them"
            return refused(where, found=found, expected=f"values that {name} takes", hint=hint)
    return None


def _ours(cause: BaseException, component: str) -> bool:
    if component.startswith(_WORKFLOW):
        return True
    *_, last = [None, *(frame for frame, _ in traceback.walk_tb(cause.__traceback__))]
    module = last.f_globals.get("__name__", "") if last else ""
    return isinstance(cause, TypeError) and module.partition(".")[0] == "samfed_monai"


def _is(value: Any, component: str) -> bool:
    target = value.get("_target_") if isinstance(value, dict) else None
    return isinstance(target, str) and (component == target or component.endswith(f".{target}"))


def unwrap(error: BaseException, content: Mapping[str, Any] | None = None) -> SamFedError | KeyboardInterrupt | None:
    """The error of ours that ``error`` was raised from (MONAI wraps what its ``$`` expressions raise).

    Where there is none, what a component refused in its own words is one (:func:`component_refusal`, which takes
    ``content``), and what the machine could not do (:func:`samfed_monai.core.errors.machine_failure`).
    """
    failures = (failure for each in _causes(error) if (failure := machine_failure(each)))
    return unwrap_own(error) or component_refusal(error, content) or next(failures, None)


def unwrap_own(error: BaseException) -> SamFedError | KeyboardInterrupt | None:
    """As :func:`unwrap`, without what components refused in their own words."""
    own = (each for each in _causes(error) if isinstance(each, (SamFedError, KeyboardInterrupt)))
    return next(own, None)


@contextmanager
def unwrapped(parser: Any = None) -> Iterator[None]:
    """Raises the error of ours in place of the one that MONAI wrapped it in.

    Args:
        parser: MONAI's ``ConfigParser`` that builds the components.
    """
    try:
        yield
    except Exception as error:
        known = unwrap(error, parser.get() if parser is not None else None)
        if known is None:
            raise
        raise known from None
