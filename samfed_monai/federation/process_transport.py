"""A federation on one machine whose sites work side by side, each in one of a few processes."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from samfed_monai.core.device import best_device, usable_cores
from samfed_monai.core.errors import AGAIN, Problem, Refused, Stopped
from samfed_monai.core.round_folders import round_folders
from samfed_monai.federation.child_process import Child, ChildDied
from samfed_monai.federation.plan import AUTO, Places, Plan
from samfed_monai.federation.progress import Progress
from samfed_monai.federation.round_store import CLIENTS, state_file
from samfed_monai.protocol.message import MAX_BYTES, Message, to_bytes
from samfed_monai.protocol.sent_once import SentWeights
from samfed_monai.protocol.transport import Failure, OnReply, Spooled, Task, Traffic, received

logger = logging.getLogger(__name__)

PROCESS = "samfed_monai.federation.site_process"
_TICK = 0.2  # seconds between two looks at the clock


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


class ProcessTransport:
    """Runs the sites of this machine in processes of their own, side by side.

    Site *i* is always with process *i* modulo ``workers``, so that its client, the optimizer's state included, stays
    where it is; the sites of one process answer one after the other. Every process has their share of the threads that
    this one would use. Messages, answers and the sums made of them are those of :class:`LocalTransport`, to the bit
    where the threads of a process are as many as there; so are the states that :meth:`save_state` leaves.

    Weights that a site was sent last are not sent again (:mod:`samfed_monai.protocol.sent_once`).

    A process that ends (killed, out of memory) is the :class:`Failure` of the site that it worked for. It is started
    again for the next site that it has: what its sites were sent before round 0 is sent to them once more, and each
    goes on from its state in the last round that was stored. A deadline ends the processes that are still at work.

    What sites raise in ``CHECK`` and ``PREPARE`` is raised here. Classes that a script registered in this process are
    not known in the others: name their module in the bundle's ``imports``.

    Args:
        plan: with every site named.
        places: of this machine.
        workers: processes.
        progress: where progress is shown; ``None`` shows it on a terminal only.

    Use it in a ``with`` block, or :meth:`close` it: no process is left behind.
    """

    def __init__(self, plan: Plan, places: Places, *, workers: int, progress: Progress | None = None) -> None:
        self._sites = tuple(sorted({*plan.sites, *plan.unseen}))
        self.progress = progress or Progress()
        count = max(1, min(workers, len(self._sites)))
        settings = {"plan": plan.to_json(), "places": places.to_json(), **_shared_with_workers(count)}
        folder = Path(places.output_dir)
        self._processes = [_SiteProcess(self._sites[number::count], settings, folder) for number in range(count)]
        self._process_of = {site: self._processes[number % count] for number, site in enumerate(self._sites)}
        self._traffic: dict[str, Traffic] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        return self._sites

    def send_and_receive(
        self,
        task: Task,
        messages: Mapping[str, Message],
        *,
        quorum: int = 1,
        timeout: float | None = None,
        on_reply: Callable[[str, Message], None] | None = None,
        max_bytes: Callable[[str], int] | None = None,
    ) -> dict[str, Message | Failure]:
        ends = float("inf") if timeout is None else time.monotonic() + timeout
        work, replies = _Work(Task(task)), dict[str, Message | Failure]()
        asked = {
            site: self._process_of[site].thread.submit(self._process_of[site].answer, work, site, messages[site])
            for site in self._sites
            if site in messages
        }
        with self._ended_on_error(asked.values(), work), self.progress.sites(len(messages)) as bar:
            for site in sorted(messages):
                if site not in asked:
                    replies[site] = Failure(site, "no such site in this federation")
                    continue
                bar.start(site, work.task.value)
                while not wait([asked[site]], timeout=_TICK).done:
                    if time.monotonic() > ends:
                        work.late = f"the deadline of {timeout:g} s had passed"
                        self._kill(busy=True)  # at every look: a process may just have been started again
                replies[site] = self._read(site, asked[site].result(), on_reply, max_bytes)
                bar.advance()
        return replies

    def take_traffic(self) -> dict[str, Traffic]:
        taken, self._traffic = self._traffic, {}
        return taken

    def save_state(self, folder: Path) -> dict[str, str]:
        digests = self._with_states(folder, _SiteProcess.save)
        return {state_file(site): digest for site, digest in digests.items() if digest}

    def load_state(self, folder: Path) -> None:
        self._with_states(folder, _SiteProcess.load)

    def finalize(self) -> None:
        """Ends the sites' clients, then the processes."""
        for process in self._processes:
            process.finalize()
        self.close()

    def close(self) -> None:
        """Ends the processes, whatever they do; safe to call at any time."""
        self._kill()
        for process in self._processes:
            process.child.stop()
            process.thread.shutdown()

    def __enter__(self) -> ProcessTransport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _with_states(self, folder: Path, work: Callable[[_SiteProcess, str, Path], Any]) -> dict[str, Any]:
        """Has every site do something with its file in ``folder``, processes side by side; their answers by site."""
        for process in self._processes:
            process.rounds = Path(folder).parent.parent
        asked = {
            site: process.thread.submit(work, process, site, Path(folder) / state_file(site))
            for site, process in self._process_of.items()
        }
        found = {}
        with self._ended_on_error(asked.values()):
            for site, answer in asked.items():
                try:
                    found[site] = answer.result()
                except ChildDied as error:
                    reason = f"{site}'s state: {error}; the rounds that were stored are kept"
                    raise Stopped(reason, AGAIN) from None
        return found

    def _read(
        self, site: str, answer: _Answer, on_reply: OnReply, max_bytes: Callable[[str], int] | None
    ) -> Message | Failure:
        traffic = self._traffic.setdefault(site, Traffic())
        traffic.down += answer.sent
        if isinstance(answer.content, str):
            logger.warning("%s: %s", site, answer.content)
            return Failure(site, answer.content)
        traffic.up += answer.content.size
        limit = max_bytes(site) if max_bytes else MAX_BYTES
        return received(site, answer.content.read(), on_reply, max_bytes=limit)

    def _kill(self, *, busy: bool = False) -> None:
        for process in self._processes:
            if process.busy or not busy:
                process.child.kill()

    @contextmanager
    def _ended_on_error(self, asked: Iterable[Future[Any]], work: _Work | None = None) -> Iterator[None]:
        """Ends the processes on an error in the block, Ctrl-C or SIGTERM, and waits until no thread asks them."""
        try:
            yield
        except BaseException:
            if work is not None:
                work.late = "the run has ended"
            self._kill()
            while wait(asked, timeout=_TICK).not_done:
                self._kill()
            raise


@dataclass
class _Work:
    """One exchange: the task, and why no site is asked any more, or ``""``."""

    task: Task
    late: str = ""


class _Answer(NamedTuple):
    """The bytes that a site was sent, and its answer, or why there is none."""

    sent: int
    content: Spooled | str


@dataclass
class _SiteProcess:
    """One process, its sites, and what brings a fresh one to where the last one was."""

    sites: Sequence[str]
    settings: Mapping[str, Any]
    folder: Path
    rounds: Path | None = None
    busy: bool = False
    _sent: SentWeights = field(default_factory=SentWeights)
    _before: dict[str, list[tuple[Task, Message]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        environment = {
            # as multiprocessing does it: what can be imported here can be imported there
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "OMP_NUM_THREADS": str(self.settings["threads"]),
            "TQDM_DISABLE": "1",  # bars of several processes would be drawn over each other
        }
        self.child = Child(PROCESS, self.settings, environment=environment)
        self.thread = ThreadPoolExecutor(1)  # asks the sites of this process one after the other

    def answer(self, work: _Work, site: str, message: Message) -> _Answer:
        """A site's answer, which waits on the disk.

        Raises:
            Exception: what went wrong is not this site's alone.
        """
        self.busy = True
        try:
            return self._answer(work, site, message)
        finally:
            self.busy = False  # before the answer is seen: a deadline ends what is at work, and nothing else

    def save(self, site: str, path: Path) -> str | None:
        """Has a site write its state; the file's digest, or ``None`` where it keeps nothing."""
        self._ready()
        digest: str | None = self._ask({"site": site, "what": "save", "path": str(path)})[0]["sha256"]
        return digest

    def load(self, site: str, path: Path) -> None:
        """Has a site go back to the state of a file, where there is one."""
        if path.is_file():
            self._ready()
            self._ask({"site": site, "what": "load", "path": str(path)})

    def finalize(self) -> None:
        """Ends the clients of a process that is there."""
        try:
            if self.child.alive:
                self._ask({"site": "", "what": "finalize"})
        except ChildDied as error:  # all that it had to do was done
            logger.warning("%s: %s", ", ".join(self.sites), error)

    def _answer(self, work: _Work, site: str, message: Message) -> _Answer:
        task, sent = work.task, 0
        try:
            if not work.late:
                self._ready(until=message.round if task == Task.EVALUATE else message.round - 1)
            if work.late:  # maybe while its process was started
                return _Answer(sent, f"not started: {work.late}")
            payload = to_bytes(self._sent.shortened(site, message))
            sent = len(payload)
            head, content = self._ask({"site": site, "what": task.value}, payload)
        except ChildDied as error:
            return _Answer(sent, f"no answer: {work.late}" if work.late else str(error))
        if reason := head.get("refused") or head.get("failed"):
            self._sent.forget(site)
            return _Answer(sent, str(reason))
        if task in (Task.CHECK, Task.PREPARE):
            self._before.setdefault(site, []).append((task, message))
        return _Answer(sent, Spooled(content, self.folder))

    def _ready(self, until: int | None = None) -> None:
        """Starts the process where there is none, and restores the state of its sites.

        Args:
            until: last round whose state may be gone on from; ``None`` is the last one that was stored.
        """
        if self.child.alive:
            return
        again = self.child.pid is not None
        self.child.start()
        self._sent = SentWeights()
        if not again:
            return
        logger.warning("the process of %s is started again", ", ".join(self.sites))
        for site in self.sites:
            for task, message in self._before.get(site, ()):
                self._ask({"site": site, "what": task.value}, to_bytes(message))
            if (state := self._stored_state(site, until)) is not None:
                self._ask({"site": site, "what": "load", "path": str(state)})

    def _stored_state(self, site: str, until: int | None) -> Path | None:
        found = round_folders(self.rounds) if self.rounds is not None else {}
        paths = [found[number] / CLIENTS / state_file(site) for number in found if until is None or number <= until]
        return next((path for path in reversed(paths) if path.is_file()), None)

    def _ask(self, head: Mapping[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """An answer; log records of that process are logged here.

        Raises:
            ChildDied: the process ended.
            Exception: what it was asked for went wrong in a way that this process has to deal with.
        """
        answer, content = self.child.ask(head, payload)
        for name, level, text in answer.pop("log"):
            if logging.getLogger(name).isEnabledFor(level):
                logging.getLogger(name).log(level, "%s", text)
        if "raised" in answer:
            raise _raised(answer["raised"], str(head["site"]))
        return answer, content


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
