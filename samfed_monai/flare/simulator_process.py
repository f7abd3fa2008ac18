"""FLARE's simulator with a context of its own for every client: ``python -m samfed_monai.flare.simulator_process``.

The simulator starts each client from a thread. In FLARE 2.9 these threads write the client's name into one dict, which
they then send to the client's process (``SimulatorClientRunner.do_one_task``): if a second thread writes between the
two, a client gets another's name, and the server waits for the first forever. Here each thread has a copy.
Arguments are those of FLARE's own ``nvflare.private.fed.app.simulator.simulator``.
"""

from __future__ import annotations

import runpy
import threading
from typing import Any

from nvflare.private.fed.app.simulator import simulator_runner


class PerThread(threading.local):
    """A dict with a separate copy for each thread, which that thread writes and pickles."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = dict(content)

    def __setitem__(self, name: str, value: Any) -> None:
        self._content[name] = value

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return dict, (self._content,)


class ClientRunner(simulator_runner.SimulatorClientRunner):
    """FLARE's client runner, with a context per thread."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.build_ctx: Any = PerThread(vars(self)["build_ctx"])


# Not under __main__: a process that FLARE spawns (macOS) imports this module and needs it, too.
simulator_runner.SimulatorClientRunner = ClientRunner

if __name__ == "__main__":
    runpy.run_module("nvflare.private.fed.app.simulator.simulator", run_name="__main__", alter_sys=True)
