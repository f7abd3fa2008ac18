"""A federation on one machine whose sites work side by side, each in one of a few processes."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samfed_monai.core import tensor_file
from samfed_monai.core.errors import Problem, Refused, Stopped
from samfed_monai.core.io import as_file_name, make_folder
from samfed_monai.core.own_process import best_device, usable_cores
from samfed_monai.federation.child_process import Child, ChildDied
from samfed_monai.federation.plan import AUTO, Places, Plan
from samfed_monai.federation.progress import Progress
from samfed_monai.federation.round_store import state_file
from samfed_monai.federation.wire_transport import Request, WireTransport

logger = logging.getLogger(__name__)

PROCESS = "samfed_monai.federation.site_process"
_LOOK = 0.05  # seconds between two looks at a thread


def workers_of(places: Places, sites: int) -> int:
    """How many processes ``sites`` sites of this machine work in; 1 is this one.

    ``auto`` takes a process for each site, at most one for each core that this process may use, and one where a GPU
    does the work, since several would share it and its memory.
    """
    if places.workers != AUTO:
        return min(int(places.workers), sites)
    if str(places.train.get("device") or best_device()) != "cpu":
        return 1
    return max(1, min(sites, usable_cores()))


class ProcessTransport(WireTransport):
    """Runs the sites of this machine in processes of their own, side by side.

    Site *i* is always with process *i* modulo ``workers``; the sites of one process answer one after the other. Every
    process has its share of the threads that this one would use. Messages, answers and the sums made of them are those
    of :class:`LocalTransport`, to the bit where the threads of a process are as many as there; so are the states that
    :meth:`save_state` leaves, out of a folder of this run in which each site keeps its own.

    A process that ends (killed, out of memory) is the :class:`Failure` of the site that it worked for. It is started
    again for the next site that it has, which goes on from its last state. A deadline ends the processes that are still
    at work. What sites raise in ``CHECK`` and ``PREPARE`` is raised here. Classes that a script registered in this
    process are not known in the others: name their module in the bundle's ``imports``.

    Args:
        plan: with every site named.
        places: of this machine.
        workers: processes.
        progress: where progress is shown; ``None`` shows it on a terminal only.

    Use it in a ``with`` block, or :meth:`close` it: no process is left behind.
    """

    def __init__(self, plan: Plan, places: Places, *, workers: int, progress: Progress | None = None) -> None:
        sites = tuple(sorted({*plan.sites, *plan.unseen}))
        count = max(1, min(workers, len(sites)))
        self._states = Path(places.output_dir) / ".states"
        shutil.rmtree(self._states, ignore_errors=True)
        settings = {"plan": plan.to_json(), "places": places.to_json(), "states": str(self._states)}
        settings |= _shared_with_workers(count)
        self._pipes = Pipes([_SiteProcess(sites[number::count], settings) for number in range(count)])
        super().__init__(self._pipes, sites, notice=math.inf, progress=progress, spool=Path(places.output_dir))

    def save_state(self, folder: Path) -> dict[str, str]:
        super().save_state(folder)
        digests = {}
        for site in self.sites:
            states = (self._states / as_file_name(site)).glob("*.safetensors")
            newest = max(states, key=lambda path: int(path.stem), default=None)
            if newest is not None:
                _link(newest, Path(folder) / state_file(site))
                digests[state_file(site)] = tensor_file.state_digest(newest)
        return digests

    def load_state(self, folder: Path) -> None:
        super().load_state(folder)
        shutil.rmtree(self._states, ignore_errors=True)
        for site in self.sites:
            path = Path(folder) / state_file(site)
            if path.is_file():
                _link(path, self._states / as_file_name(site) / f"{int(Path(folder).parent.name):03d}.safetensors")

    def finalize(self) -> None:
        """Ends the sites, then the processes."""
        self._pipes.finalize()
        self.close()

    def close(self) -> None:
        """Ends the processes, whatever they do; safe to call at any time."""
        self._pipes.close()
        shutil.rmtree(self._states, ignore_errors=True)

    def __enter__(self) -> ProcessTransport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _link(source: Path, target: Path) -> None:
    """A second name of a file that is only ever replaced; a copy where the disk has no such names."""
    make_folder(target.parent)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class _SiteProcess:
    """One process, its sites, and the thread that asks it."""

    def __init__(self, sites: Sequence[str], settings: Mapping[str, Any]) -> None:
        environment = {
            # as multiprocessing does it: what can be imported here can be imported there
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "OMP_NUM_THREADS": str(settings["threads"]),
            "TQDM_DISABLE": "1",  # bars of several processes would be drawn over each other
        }
        self.sites, self.child = sites, Child(PROCESS, settings, environment=environment)
        self.thread = ThreadPoolExecutor(1)  # one site after the other
        self.closed = False

    def start(self) -> None:
        """Starts the process where there is none."""
        if not self.child.alive:
            if self.child.pid is not None:
                logger.warning("the process of %s is started again", ", ".join(self.sites))
            self.child.start()

    def ask(self, head: Mapping[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """An answer; log records of that process are logged here.

        Raises:
            ChildDied: the process ended.
        """
        answer, content = self.child.ask(head, payload)
        for name, level, text in answer.pop("log"):
            if logging.getLogger(name).isEnabledFor(level):
                logging.getLogger(name).log(level, "%s", text)
        return answer, content


@dataclass
class _Ticket:
    """A request, the process that it is for, its thread's work on it, and whether an answer is still wanted."""

    request: Request
    process: _SiteProcess
    work: Future[None] = field(default_factory=Future)
    cancelled: bool = False


class Pipes:
    """Carries requests to the processes of this machine's sites: the :class:`Post` of a :class:`ProcessTransport`."""

    def __init__(self, processes: Sequence[_SiteProcess]) -> None:
        self.processes = tuple(processes)
        self._error: Exception | None = None

    def send(self, request: Request) -> _Ticket:
        process = next(process for process in self.processes if request.site in process.sites)
        ticket = _Ticket(request, process)
        ticket.work = process.thread.submit(self._ask, ticket)
        return ticket

    def cancel(self, ticket: _Ticket) -> bool:
        ticket.cancelled = True
        if not ticket.work.cancel():
            _kill_until_done(ticket.process.child, ticket.work)
        return True

    def check_stop(self) -> None:
        if self._error is not None:
            raise self._error

    def finalize(self) -> None:
        """Ends the sites of the processes that are there."""
        for process in self.processes:
            try:
                if process.child.alive:
                    process.ask({"task": "finalize"})
            except ChildDied as error:  # all that it had to do was done
                logger.warning("%s: %s", ", ".join(process.sites), error)

    def close(self) -> None:
        """Ends the processes; requests that wait are dropped."""
        opened = [process for process in self.processes if not process.closed]
        for process in opened:
            process.closed = True
            process.child.kill()
        for process in opened:
            _kill_until_done(process.child, process.thread.submit(lambda: None))
            process.thread.shutdown()
            process.child.stop()

    def _ask(self, ticket: _Ticket) -> None:
        """Runs in the thread of the ticket's process."""
        request, process = ticket.request, ticket.process
        try:
            if ticket.cancelled or process.closed:
                return
            process.start()
            if ticket.cancelled or process.closed:
                return
            head = {"site": request.site, "task": request.task, "keep": request.words["keep"]}
            answer, content = process.ask(head, request.payload)
        except ChildDied as error:
            if not ticket.cancelled:
                request.answered(request.site, str(error))
        except Exception as error:
            self._error = error
        else:
            if "raised" in answer:
                self._error = _raised(answer["raised"], request.site)
            else:
                request.answered(request.site, str(answer.get("failure") or "") or content)


def _kill_until_done(child: Child, work: Future[None]) -> None:
    while not work.done():
        child.kill()  # at every look: it may just have been started again
        time.sleep(_LOOK)


def _raised(described: Mapping[str, Any], site: str) -> Exception:
    """The error that a process described."""
    if "problems" in described:
        return Refused(Problem(*parts) for parts in described["problems"])
    if "stopped" in described:
        return Stopped(*described["stopped"])
    if described["errno"] is not None:
        return OSError(described["errno"], f"{os.strerror(described['errno'])}, at {site}:\n{described['error']}")
    return RuntimeError(f"in the process of {site}:\n{described['error']}")


def _shared_with_workers(workers: int) -> dict[str, Any]:
    """What the processes have of this one: their share of its threads, and its level of logging."""
    import torch

    level = logging.getLogger("samfed_monai").getEffectiveLevel()
    threads = max(1, min(torch.get_num_threads(), usable_cores()) // workers)
    return {"threads": threads, "level": level}
