"""How long an answer may take on this machine as it is now: other work on its processor must not look like a fault."""

from __future__ import annotations

import subprocess
import sys
import time

_IMPORTS = "import nvflare, samfed_monai.flare.site, samfed_monai.flare.worker"


def patience(least: float, *, imports: float = 10.0) -> float:
    """Seconds that suit as a deadline on this machine now.

    Args:
        least: what suits an idle machine.
        imports: so many times what the process of ``tests.flare.toy_worker`` needs for its imports now.
            Where one may have to be started before it answers, it takes little more than once that; where all of them
            run, a small part of it.

    Returns:
        Whichever is more.
    """
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
    return max(least, imports * (time.perf_counter() - started))
