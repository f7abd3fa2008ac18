"""How long an answer may take on this machine as it is now: other work on its processor must not look like a fault."""

from __future__ import annotations

import subprocess
import sys
import time

_IMPORTS = "import nvflare, samfed_monai.federation.client"


def patience(least: float) -> float:
    """Seconds that suit as a deadline where a process that trains may have to be started first.

    Args:
        least: what suits an idle machine.

    Returns:
        ``least``, or ten times what such a process needs for its imports now, whichever is more.
    """
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
    return max(least, 10 * (time.perf_counter() - started))
