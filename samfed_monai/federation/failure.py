"""A client that did not answer, and what may be said about why."""

from __future__ import annotations

import errno
import os
import re
import sys
from dataclasses import dataclass
from types import TracebackType

from samfed_monai.core.errors import SamFedError
from samfed_monai.federation.envelope import MessageRefused

#: Packages whose module names and line numbers say nothing about a site's data.
PUBLIC_PACKAGES = frozenset({"samfed_monai", "monai", "ignite", "torch", "torchvision", "numpy", "PIL", "safetensors"})

# torch has no class of its own for this on the CPU ("DefaultCPUAllocator: can't allocate memory: ... Error code 12
# (Cannot allocate memory)"); on a GPU it says "out of memory"
_NO_MEMORY = re.compile("cannot allocate memory|can't allocate memory|out of memory|bad_alloc", re.IGNORECASE)

#: Problems of one message that are named; a check before the first round may find five different ones.
_SHOWN = 5


@dataclass(frozen=True)
class Failure:
    """A site's missing or refused answer.

    Args:
        site: the site.
        reason: one line without paths, file names or values from the site (see :func:`scrub`).
    """

    site: str
    reason: str


def scrub(error: BaseException) -> str:
    """What may leave a site about an exception: its type, the system's own words, and where in public code it arose.

    The message itself never does, because it may hold a path, a file name or a patient's name, and no pattern finds
    all of those. Only :class:`MessageRefused` keeps its text: it is made of the server's tensor names and of numbers.

    Example::

        scrub(FileNotFoundError(2, "...", "/data/Jane Doe.png"))  # "FileNotFoundError (No such file or directory)"
    """
    if isinstance(error, MessageRefused):
        return "; ".join(str(problem) for problem in error.problems[:_SHOWN]) + _more(len(error.problems) - _SHOWN)
    known = type(error).__module__.partition(".")[0] in PUBLIC_PACKAGES | {"builtins"}
    text = type(error).__name__ if known else "an error of the site's own code"
    if is_out_of_memory(error):
        text = "out of memory"
    elif isinstance(error, OSError) and isinstance(error.errno, int):
        text += f" ({os.strerror(error.errno)})"
    return text + _place(error.__traceback__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine, or the limit that it runs under, had no more memory to give (fault 50)."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, SamFedError):
        return False
    said = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    return said or isinstance(error, MemoryError)


def _more(count: int) -> str:
    return f"; and {count} more" if count > 0 else ""


def _place(traceback: TracebackType | None) -> str:
    place = ""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] in PUBLIC_PACKAGES and module in sys.modules:
            place = f" in {module}, line {traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place
