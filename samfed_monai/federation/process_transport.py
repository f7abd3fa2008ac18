"""A federation on one machine whose sites run in parallel in a few processes.

Each process is ``python -m samfed_monai.federation.process_transport PIPE``. Its log records are sent with the replies
and logged by the parent process, which runs on the same machine, for the same user; errors that a site raises before
round 0 are raised in the parent, too.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

from samfed_monai.config.workflow import unwrap
from samfed_monai.core import tensor_file
from samfed_monai.core.errors import Problem, Refused, Stopped
from samfed_monai.core.io import as_file_name, make_folder
from samfed_monai.core.process_setup import best_device, limit_of_spins, set_up_process, usable_cores
from samfed_monai.core.run_log import is_first
from samfed_monai.federation.child_process import Child, ChildDied, Reply, serve
from samfed_monai.federation.plan import AUTO, Paths, Plan
from samfed_monai.federation.progress import Progress
from samfed_monai.federation.run_folder import state_file
from samfed_monai.federation.site_worker import SiteWorker, stored_states
from samfed_monai.federation.wire_transport import Request, WireTransport
from samfed_monai.protocol.message import MessageRefused
from samfed_monai.protocol.transport import Task, scrub

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05  # seconds between two checks of a thread


def workers_of(paths: Paths, sites: int) -> int:
    """Number of processes for ``sites`` sites on this machine; 1 is this process.

    ``auto`` takes one process per site, at most one per core that this process may use; on a GPU it takes one, since
    several would share the GPU and its memory.
    """
    if paths.workers != AUTO:
        return min(int(paths.workers), sites)
    if str(paths.train.get("device") or best_device()) != "cpu":
        return 1
    return max(1, min(sites, usable_cores()))


class ProcessTransport(WireTransport, AbstractContextManager["ProcessTransport"]):
    """Runs the sites of this machine in parallel, in processes of their own.

    Site *i* always runs in process *i* modulo ``workers``; the sites of one process run one after the other. The
    threads of this process are divided among the processes. Messages, replies and their sums equal those of
    :class:`LocalTransport`, to the bit if each process has as many threads as there; so do the states that
    :meth:`save_state` stores, from a folder of this run in which each site keeps its own.

    If a process ends (killed, out of memory), the site it worked for gets a :class:`Failure`. The process is restarted
    for its next site, which continues from its last state. A deadline kills the processes that are still working.
    Exceptions of sites in ``CHECK`` and ``PREPARE`` are raised here. Classes that a script registered in this process
    are unknown to the others: name their module in the bundle's ``imports``.

    Args:
        plan: with every site named.
        paths: of this machine.
        workers: number of processes.
        progress: progress bars; ``None`` shows them on a terminal only.

    Use it in a ``with`` block, or :meth:`close` it: no process is left behind.
    """

    def __init__(self, plan: Plan, paths: Paths, *, workers: int, progress: Progress | None = None) -> None:
        import torch

        sites = tuple(sorted({*plan.sites, *plan.unseen}))
        count = max(1, min(workers, len(sites)))
        self._states = Path(paths.output_dir) / ".states"
        settings = {
            **{"plan": plan.to_json(), "paths": paths.to_json(), "states": str(self._states)},
            "threads": max(1, min(torch.get_num_threads(), usable_cores()) // count),
            "level": logging.getLogger("samfed_monai").getEffectiveLevel(),
        }
        self.processes = [_SiteProcess(sites[number::count], settings) for number in range(count)]
        self._error: Exception | None = None
        super().__init__(self, sites, notice=math.inf, progress=progress, spool=Path(paths.output_dir))

    def send(self, request: Request) -> _Ticket:
        """Sends a request from the thread of the site's process, see :class:`Post`."""
        process = next(process for process in self.processes if request.site in process.sites)
        ticket = _Ticket(request, process)
        ticket.work = process.thread.submit(self._ask, ticket)
        return ticket

    def cancel(self, ticket: _Ticket) -> bool:
        """Drops a request that has not started, or kills the process that works on it."""
        ticket.cancelled = True
        if not ticket.work.cancel():
            ticket.process.kill_until(ticket.work)
        return True

    def check_stop(self) -> None:
        """Raises an error that a site raised before round 0."""
        if self._error is not None:
            raise self._error

    def save_state(self, folder: Path) -> dict[str, str]:
        super().save_state(folder)
        digests = {}
        for site in self.sites:
            if states := list(stored_states(self._states / as_file_name(site)).values()):
                _link(states[-1], Path(folder) / state_file(site))
                digests[state_file(site)] = tensor_file.state_digest(states[-1])
        return digests

    def load_state(self, folder: Path) -> None:
        super().load_state(folder)
        shutil.rmtree(self._states, ignore_errors=True)
        for site in self.sites:
            path = Path(folder) / state_file(site)
            if path.is_file():
                _link(path, self._states / as_file_name(site) / f"{int(Path(folder).parent.name):03d}.safetensors")

    def finalize(self) -> None:
        """Finalizes the sites, then ends the processes."""
        for process in self.processes:
            try:
                if process.child.alive:
                    process.ask({"task": "finalize"})
            except ChildDied as error:  # its work was already done
                logger.warning("%s: %s", ", ".join(process.sites), error)
        self.close()

    def close(self) -> None:
        """Kills the processes and drops waiting requests. Safe to call at any time."""
        running = [process for process in self.processes if not process.closed]
        for process in running:
            process.closed = True
            process.child.kill()
        for process in running:
            process.kill_until(process.thread.submit(lambda: None))
            process.thread.shutdown()
            process.child.stop()
        shutil.rmtree(self._states, ignore_errors=True)

    def _ask(self, ticket: _Ticket) -> None:
        """Runs in the thread of the ticket's process."""
        request, process = ticket.request, ticket.process
        try:
            process.start(ticket)
            if ticket.cancelled or process.closed:
                return
            head = {"site": request.site, "task": request.task, "keep": request.metadata["keep"]}
            reply, content = process.ask(head, request.payload)
        except ChildDied as error:
            if not ticket.cancelled:
                request.answered(request.site, str(error))
        except Exception as error:
            self._error = error
        else:
            if "raised" in reply:
                self._error = rebuild_error(reply["raised"], request.site)
            else:
                request.answered(request.site, str(reply.get("failure") or "") or content)

    def __exit__(self, *_: object) -> None:
        self.close()


def _link(source: Path, target: Path) -> None:
    """Hard-links a file that is only ever replaced, never changed; copies it if the disk has no hard links."""
    make_folder(target.parent)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class _SiteProcess:
    """One process, its sites, and the thread that sends it requests."""

    def __init__(self, sites: Sequence[str], settings: Mapping[str, Any]) -> None:
        environment = {
            # as in multiprocessing: the same imports work in both processes
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "OMP_NUM_THREADS": str(settings["threads"]),
            "TQDM_DISABLE": "1",  # bars of several processes would be drawn over each other
            **limit_of_spins(),
        }
        self.sites, self.child = sites, Child(__name__, settings, environment=environment)
        self.thread = ThreadPoolExecutor(1)  # one site after the other
        self.closed = False

    def start(self, ticket: _Ticket) -> None:
        """Starts the process if it is not running and still needed."""
        if not (self.child.alive or ticket.cancelled or self.closed):
            if self.child.pid is not None:
                logger.warning("restarting the process of %s", ", ".join(self.sites))
            self.child.start()

    def kill_until(self, work: Future[None]) -> None:
        """Kills the process, again and again, until the thread is done."""
        while not work.done():
            self.child.kill()  # every time: it may just have been restarted
            time.sleep(_POLL_SECONDS)

    def ask(self, head: Mapping[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Returns the reply to a request; log records of the process are logged here.

        Raises:
            ChildDied: the process ended.
        """
        reply, content = self.child.ask(head, payload)
        for name, level, text in reply.pop("log"):
            if logging.getLogger(name).isEnabledFor(level):
                logging.getLogger(name).log(level, "%s", text)
        return reply, content


@dataclass
class _Ticket:
    """A request, its process, the thread's work on it, and whether it was cancelled."""

    request: Request
    process: _SiteProcess
    work: Future[None] = field(default_factory=Future)
    cancelled: bool = False


def _start(settings: Mapping[str, Any]) -> Callable[[dict[str, Any], bytes], Reply]:
    """Returns the request handler of this process, with sites made from the plan."""
    import torch

    from samfed_monai.federation.site import ProcessContext, Site

    set_up_process()
    torch.set_num_threads(int(settings["threads"]))
    log, plan, paths = _Log(settings["level"]), Plan.from_json(settings["plan"]), Paths(**settings["paths"])
    contexts: list[ProcessContext] = []

    def make_site(name: str) -> Site:
        if not contexts:
            contexts.append(ProcessContext.of(plan, paths))
        return Site(name, plan, paths, context=contexts[0])

    worker = SiteWorker(make_site, lambda name: Path(settings["states"]) / as_file_name(name))

    def handle(head: dict[str, Any], payload: bytes) -> Reply:
        try:
            if head["task"] == "finalize":
                worker.finalize()
                return {"log": log.take()}, b""
            content = worker.answer(head["site"], Task(head["task"]), payload, head["keep"])
            return {"log": log.take()}, content
        except Exception as error:
            if not isinstance(error, MessageRefused):
                if head["task"] in (Task.CHECK, Task.PREPARE):
                    return {"raised": describe_error(error), "log": log.take()}, b""
                logger.exception("%s failed in %s", head["site"], head["task"])
            return {"failure": scrub(error), "log": log.take()}, b""

    return handle


class _Log(BufferingHandler):
    """Keeps log records until they are sent."""

    def __init__(self, level: int) -> None:
        super().__init__(sys.maxsize)
        self.addFilter(is_first)
        logging.getLogger().addHandler(self)
        logging.getLogger("samfed_monai").setLevel(level)

    def take(self) -> list[tuple[str, int, str]]:
        """Returns the records logged since the last call."""
        records, self.buffer = self.buffer, []
        return [(record.name, record.levelno, self.format(record)) for record in records]


def describe_error(error: Exception) -> dict[str, Any]:
    """Describes an error as JSON content, for the parent process to raise it (:func:`rebuild_error`)."""
    known = unwrap(error)
    if isinstance(known, Refused):
        return {"problems": [[each.where, each.found, each.expected, each.hint] for each in known.problems]}
    if isinstance(known, Stopped):
        return {"stopped": [known.reason, known.resume, known.kept]}
    number = error.errno if isinstance(error, OSError) else None
    return {"error": "".join(traceback.format_exception(error)), "errno": number}


def rebuild_error(description: Mapping[str, Any], site: str) -> Exception:
    """Rebuilds an error from its description (:func:`describe_error`)."""
    if "problems" in description:
        return Refused(Problem(*parts) for parts in description["problems"])
    if "stopped" in description:
        return Stopped(*description["stopped"])
    if description["errno"] is not None:
        return OSError(description["errno"], f"{os.strerror(description['errno'])}, at {site}:\n{description['error']}")
    return RuntimeError(f"in the process of {site}:\n{description['error']}")


def main() -> None:
    """Serves requests until the parent process is gone."""
    # Ctrl-C in a terminal, or a signal to the whole group, is handled by the parent process, which ends this one
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    serve(_start)


if __name__ == "__main__":
    main()
