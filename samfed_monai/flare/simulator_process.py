"""FLARE's simulator with a context of its own for every client: ``python -m samfed_monai.flare.simulator_process``.

The simulator starts each client from a thread. In FLARE 2.9 these threads write the client's name into one dict, which
they then send to the client's process (``SimulatorClientRunner.do_one_task``): where a second thread writes between
the two, a client is told another's name, and the server waits for the first without end. Here each thread has a copy.
Arguments are those of FLARE's own ``nvflare.private.fed.app.simulator.simulator``.
"""

from __future__ import annotations

import runpy
import threading
from typing import Any

from nvflare.private.fed.app.simulator.simulator_runner import SimulatorClientRunner

SIMULATOR = "nvflare.private.fed.app.simulator.simulator"


class PerThread:
    """Attribute that holds a dict: each thread reads a copy of what was set last, and always the same one.

    A copy is made when a thread first reads the attribute of an object; nothing that a thread writes into it is seen
    by another.

    Args:
        name: of the attribute.
    """

    def __init__(self, name: str) -> None:
        self._shared, self._copies = f"_{name}_of_all", f"_{name}_of_threads"

    def __set__(self, holder: Any, content: dict[str, Any]) -> None:
        setattr(holder, self._shared, content)
        setattr(holder, self._copies, threading.local())

    def __get__(self, holder: Any, owner: type | None = None) -> Any:
        if holder is None:
            return self
        copies = getattr(holder, self._copies)
        if not hasattr(copies, "content"):
            copies.content = dict(getattr(holder, self._shared))
        return copies.content


def separate_clients(runner: type = SimulatorClientRunner) -> None:
    """Gives each thread of a runner of clients its own ``build_ctx``."""
    runner.build_ctx = PerThread("build_ctx")  # type: ignore[attr-defined]


# Not under __main__: where FLARE spawns a further process (macOS), that one imports this module and needs it, too.
separate_clients()

if __name__ == "__main__":
    runpy.run_module(SIMULATOR, run_name="__main__", alter_sys=True)
