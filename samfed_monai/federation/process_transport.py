"""A federation on one machine whose sites work side by side, each in one of a few processes.

Such a process is ``python -m samfed_monai.federation.process_transport PIPE``. What is logged there is sent with the
answers and logged by the process that asked, which runs on the same machine, for the same user; what a site raises
before round 0 is raised there, too.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samfed_monai.config.workflow import unwrap
from samfed_monai.core import tensor_file
from samfed_monai.core.errors import Problem, Refused, Stopped
from samfed_monai.core.io import as_file_name, make_folder
from samfed_monai.core.own_process import best_device, brief_spins, set_up_process, usable_cores
from samfed_monai.core.run_log import is_news
from samfed_monai.federation.child_process import Answer, Child, ChildDied, serve
from samfed_monai.federation.plan import AUTO, Places, Plan
from samfed_monai.federation.progress import Progress
from samfed_monai.federation.run_folder import state_file
from samfed_monai.federation.site_worker import SiteWorker
from samfed_monai.federation.wire_transport import Request, WireTransport
from samfed_monai.protocol.message import MessageRefused
from samfed_monai.protocol.transport import Task, scrub

logger = logging.getLogger(__name__)

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
        import torch

        sites = tuple(sorted({*plan.sites, *plan.unseen}))
        count = max(1, min(workers, len(sites)))
        self._states = Path(places.output_dir) / ".states"
        shutil.rmtree(self._states, ignore_errors=True)
        settings = {
            **{"plan": plan.to_json(), "places": places.to_json(), "states": str(self._states)},
            "threads": max(1, min(torch.get_num_threads(), usable_cores()) // count),
            "level": logging.getLogger("samfed_monai").getEffectiveLevel(),
        }
        self.processes = [_SiteProcess(sites[number::count], settings) for number in range(count)]
        self._error: Exception | None = None
        super().__init__(self, sites, notice=math.inf, progress=progress, spool=Path(places.output_dir))

    def send(self, request: Request) -> _Ticket:
        """Has the thread of the site's process ask it, as a :class:`Post`."""
        process = next(process for process in self.processes if request.site in process.sites)
        ticket = _Ticket(request, process)
        ticket.work = process.thread.submit(self._ask, ticket)
        return ticket

    def cancel(self, ticket: _Ticket) -> bool:
        """Ends the process that works on a request."""
        ticket.cancelled = True
        if not ticket.work.cancel():
            ticket.process.kill_until(ticket.work)
        return True

    def check_stop(self) -> None:
        """Raises what a site raised before round 0."""
        if self._error is not None:
            raise self._error

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
        for process in self.processes:
            try:
                if process.child.alive:
                    process.ask({"task": "finalize"})
            except ChildDied as error:  # all that it had to do was done
                logger.warning("%s: %s", ", ".join(process.sites), error)
        self.close()

    def close(self) -> None:
        """Ends the processes, whatever they do; requests that wait are dropped. Safe to call at any time."""
        opened = [process for process in self.processes if not process.closed]
        for process in opened:
            process.closed = True
            process.child.kill()
        for process in opened:
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
            head = {"site": request.site, "task": request.task, "keep": request.words["keep"]}
            answer, content = process.ask(head, request.payload)
        except ChildDied as error:
            if not ticket.cancelled:
                request.answered(request.site, str(error))
        except Exception as error:
            self._error = error
        else:
            if "raised" in answer:
                self._error = as_raised(answer["raised"], request.site)
            else:
                request.answered(request.site, str(answer.get("failure") or "") or content)

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
            **brief_spins(),
        }
        self.sites, self.child = sites, Child(__name__, settings, environment=environment)
        self.thread = ThreadPoolExecutor(1)  # one site after the other
        self.closed = False

    def start(self, ticket: _Ticket) -> None:
        """Starts the process where there is none and one is still wanted."""
        if not (self.child.alive or ticket.cancelled or self.closed):
            if self.child.pid is not None:
                logger.warning("the process of %s is started again", ", ".join(self.sites))
            self.child.start()

    def kill_until(self, work: Future[None]) -> None:
        """Ends the process until the thread is done."""
        while not work.done():
            self.child.kill()  # at every look: it may just have been started again
            time.sleep(_LOOK)

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


def _start(settings: Mapping[str, Any]) -> Callable[[dict[str, Any], bytes], Answer]:
    """What answers questions in this process, with sites made from the plan, as in a process that has them all."""
    import torch

    from samfed_monai.federation.site import ProcessContext, Site

    set_up_process()
    torch.set_num_threads(int(settings["threads"]))
    log, plan, places = _Log(settings["level"]), Plan.from_json(settings["plan"]), Places(**settings["places"])
    contexts: list[ProcessContext] = []

    def make_site(name: str) -> Site:
        if not contexts:
            contexts.append(ProcessContext.of(plan, places))
        return Site(name, plan, places, context=contexts[0])

    worker = SiteWorker(make_site, lambda name: Path(settings["states"]) / as_file_name(name))

    def answer(head: dict[str, Any], payload: bytes) -> Answer:
        try:
            if head["task"] == "finalize":
                worker.finalize()
                return {"log": log.take()}, b""
            content = worker.answer(head["site"], Task(head["task"]), payload, head["keep"])
            return {"log": log.take()}, content
        except Exception as error:
            if not isinstance(error, MessageRefused):
                if head["task"] in (Task.CHECK, Task.PREPARE):
                    return {"raised": described(error), "log": log.take()}, b""
                logger.exception("%s failed in %s", head["site"], head["task"])
            return {"failure": scrub(error), "log": log.take()}, b""

    return answer


class _Log(logging.Handler):
    """Keeps what is logged until it travels."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.addFilter(is_news)
        self._kept: list[tuple[str, int, str]] = []
        logging.getLogger().addHandler(self)
        logging.getLogger("samfed_monai").setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append((record.name, record.levelno, self.format(record)))

    def take(self) -> list[tuple[str, int, str]]:
        """What was logged since this was last called."""
        kept, self._kept = self._kept, []
        return kept


def described(error: Exception) -> dict[str, Any]:
    """An error that the asking process raises as it would have been raised there (:func:`as_raised`)."""
    known = unwrap(error)
    if isinstance(known, Refused):
        return {"problems": [[each.where, each.found, each.expected, each.hint] for each in known.problems]}
    if isinstance(known, Stopped):
        return {"stopped": [known.reason, known.resume]}
    number = error.errno if isinstance(error, OSError) else None
    return {"error": "".join(traceback.format_exception(error)), "errno": number}


def as_raised(words: Mapping[str, Any], site: str) -> Exception:
    """The error that a process described."""
    if "problems" in words:
        return Refused(Problem(*parts) for parts in words["problems"])
    if "stopped" in words:
        return Stopped(*words["stopped"])
    if words["errno"] is not None:
        return OSError(words["errno"], f"{os.strerror(words['errno'])}, at {site}:\n{words['error']}")
    return RuntimeError(f"in the process of {site}:\n{words['error']}")


def main() -> None:
    """Answers until the process that asks is gone."""
    # Ctrl-C in a terminal, or a signal to the whole group, is for the process that asks; it ends this one
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    serve(_start)


if __name__ == "__main__":
    main()
