"""What a component refuses in its own words while MONAI builds it, told as a refusal of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import FrameType

from samfed_monai.errors import Problem, Refused

# monai.utils.module.instantiate raises this from what the component raised
_WRAPPED = re.compile(r"Failed to instantiate component '([\w.]+)'")

_WORKFLOW = "samfed_monai.config."
"""What runs a bundle's workflow (``run_job``, ``require_checked``): what it raises is not about one component."""


def component_refusal(error: BaseException, *, file: str = "") -> Refused | None:
    """A refusal of values that a component named in a bundle does not take; ``None`` where ``error`` is another fault.

    Such is a ``ValueError`` or ``TypeError`` that the component itself raised when MONAI built it, as
    ``torch.optim.AdamW`` does with a negative learning rate. A ``TypeError`` out of this package's own code is a fault
    of ours: a value of the wrong kind is refused before anything is built.

    Args:
        error: what was raised, however deep MONAI wrapped it.
        file: the bundle's file that names the component, where that is known.
    """
    seen: BaseException | None = error
    while seen is not None and seen.__cause__ is not None:
        cause, wrapped = seen.__cause__, _WRAPPED.match(str(seen)) if isinstance(seen, RuntimeError) else None
        if wrapped and isinstance(cause, (ValueError, TypeError)) and not _ours(cause, wrapped[1]):
            where = " -> ".join(filter(None, (file, _id_of(seen)))) or wrapped[1]
            expected = f"values that {wrapped[1]} takes"
            found, mend = f"{str(cause).rstrip('.')!r}", "correct them in the bundle, or the override that sets them"
            return Refused([Problem(where, found=found, expected=expected, mend=mend)])
        seen = cause
    return None


def _ours(cause: BaseException, component: str) -> bool:
    if component.startswith(_WORKFLOW):
        return True
    *_, last = [None, *_frames(cause)]
    module = last.f_globals.get("__name__", "") if last else ""
    return isinstance(cause, TypeError) and module.partition(".")[0] == "samfed_monai"


def _id_of(wrapped: BaseException) -> str:
    """The id that MONAI's resolver was at when it built the component; empty where something else built it."""
    ids = [frame.f_locals.get("id") for frame in _frames(wrapped) if frame.f_code.co_name == "_resolve_one_item"]
    return str(ids[-1]).replace("::", "#") if ids else ""


def _frames(error: BaseException) -> Iterator[FrameType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next
