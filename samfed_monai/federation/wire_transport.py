"""The transport to sites in other processes: messages as bytes, own deadline, own quorum, failures with reasons."""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from samfed_monai.core.run_log import round_folders
from samfed_monai.federation.progress import Progress
from samfed_monai.federation.run_folder import CLIENTS
from samfed_monai.protocol.message import MAX_BYTES, Message, to_bytes, wire_size
from samfed_monai.protocol.transport import (
    NOT_HELD,
    Failure,
    OnReply,
    SentWeights,
    Spooled,
    Task,
    Traffic,
    received,
    take_in_order,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One message on its way to a site.

    Args:
        site: where it goes.
        task: what the site is asked.
        round: the round it belongs to.
        message: to the site.
        words: plain words beside it, for the site's process: ``run``, and ``keep``, the rounds whose states are wanted.
        answered: called once with the sender's name and its answer: bytes, or a failure's reason.
    """

    site: str
    task: str
    round: int
    message: Message = field(repr=False)
    words: Mapping[str, Any]
    answered: Callable[[str, bytes | str], None]

    @property
    def payload(self) -> bytes:
        """The message's bytes."""
        return to_bytes(self.message)


class Post(Protocol):
    """What carries the requests of a :class:`WireTransport`: NVIDIA FLARE, or pipes to processes of this machine."""

    def send(self, request: Request) -> Any:
        """Sends without waiting; returns what :meth:`cancel` takes."""

    def cancel(self, ticket: Any) -> bool:
        """No answer to this request is wanted any more; whether the site has stopped its work on it."""

    def check_stop(self) -> None:
        """Raises what ends the run, for instance that FLARE ends its job."""


Answer = Spooled | str
"""A message's bytes, which wait on the disk, or why there is none."""


class Arrivals:
    """Collects the answers of one exchange after the other.

    Args:
        missing: sites that missed a deadline and have sent nothing since; whoever sends something is taken out.
        spool: folder in which answers wait; ``None`` is the system's for temporary files.
    """

    def __init__(self, missing: set[str], spool: Path | None) -> None:
        self.missing, self.spool = missing, spool
        self._queue: queue.Queue[tuple[int, str, Answer | OSError]] = queue.Queue()
        self._first: tuple[int, str, Answer | OSError] | None = None

    def put(self, exchange: int, sender: str, answer: bytes | str) -> None:
        """Called from any thread; what goes wrong with the disk is raised by :meth:`collect`."""
        try:
            self._queue.put((exchange, sender, Spooled(answer, self.spool) if isinstance(answer, bytes) else answer))
        except OSError as error:
            self._queue.put((exchange, sender, error))

    def wait(self, seconds: float) -> None:
        """Until something has come, or for so long."""
        with contextlib.suppress(queue.Empty):
            self._first = self._queue.get(timeout=seconds)

    def collect(
        self, exchange: int, asked: Container[str], answered: Container[str]
    ) -> tuple[dict[str, Answer], dict[str, int]]:
        """Everything that has come and counts, and the bytes of everything that came from who was asked.

        Args:
            exchange: the number of the one that runs.
            asked: sites that it asked.
            answered: those that have answered already.

        Raises:
            OSError: an answer could not be written.
        """
        taken: dict[str, Answer] = {}
        size: dict[str, int] = {}
        while True:
            try:
                number, sender, answer = self._first or self._queue.get_nowait()
            except queue.Empty:
                return taken, size
            self._first = None
            if isinstance(answer, OSError):
                raise answer
            if isinstance(answer, Spooled) and sender in asked:
                size[sender] = size.get(sender, 0) + answer.size
            if number != exchange:  # of one that it was asked in, as this one may not ask it
                self.late(sender)
            elif sender not in asked:
                logger.warning("dropped an answer of %r, which is no site that was asked", sender)
            elif sender in answered or sender in taken:
                logger.warning("%s: dropped a second answer (one per site and message)", sender)
            else:
                self.missing.discard(sender)
                taken[sender] = answer

    def late(self, site: str) -> None:
        """Something came from ``site`` after its deadline; it is dropped, but the site is there again."""
        logger.warning("%s: dropped a late answer (its deadline had passed)", site)
        self.missing.discard(site)


def waiting(task: str, sites: Iterable[str], left: float | None) -> str:
    """One line about who is waited for: ``train: waiting for site-2, site-3 (4 min left)``."""
    line = f"{task}: waiting for {', '.join(sorted(sites))}"
    if left is None:
        return line
    return f"{line} ({left / 60:.0f} min left)" if left >= 90 else f"{line} ({left:.0f} s left)"


_TICK = 0.2  # seconds between two looks at the clock and at what ends the run


class WireTransport:
    """A :class:`~samfed_monai.protocol.transport.Transport` whose messages a :class:`Post` carries as bytes.

    Payloads are :func:`~samfed_monai.protocol.message.to_bytes` of the same messages as in one process; an answer is
    decoded by :func:`~samfed_monai.protocol.message.from_bytes` alone, which reads safetensors and nothing else, and
    refuses more than ``max_bytes`` before it looks at them.

    A site that missed a deadline, and may still be at work, is asked again in every later exchange, but not waited for
    once the others have answered and the quorum is reached, until something has come from it (a late answer counts). A
    late, second or unasked answer is dropped with its reason in the log.

    Weights that a site was sent last are not sent again (:class:`.SentWeights`).

    Sites keep their state themselves, by round (:class:`.site_worker.SiteState`): nothing is written by
    :meth:`save_state`. Which rounds' states are still wanted is read from the run's folder, where a round's ``clients``
    folder exists as long as they are.

    Args:
        post: sends and cancels.
        sites: names of the federation's clients.
        run: identifier of the run, so that a site never goes on from another run's state.
        patience: seconds that an evaluation may take; ``None`` waits. What comes before round 0 always waits.
        notice: seconds between two lines about who is waited for.
        max_bytes: largest answer that is decoded.
        progress: where progress is shown; ``None`` shows it on a terminal only.
        spool: folder in which answers wait for those of sites before them by name, as a file without a name.
    """

    def __init__(
        self,
        post: Post,
        sites: tuple[str, ...],
        *,
        run: str = "",
        patience: float | None = None,
        notice: float = 30.0,
        max_bytes: int = MAX_BYTES,
        progress: Progress | None = None,
        spool: Path | None = None,
    ) -> None:
        self.post, self._sites, self.run = post, tuple(sorted(sites)), run
        self.patience, self.notice, self.max_bytes = patience, notice, max_bytes
        self.progress = progress or Progress()
        self._traffic: dict[str, Traffic] = {}
        self.sent = SentWeights()
        self._missing: set[str] = set()
        self._exchanges = 0
        self._arrivals = Arrivals(self._missing, spool)
        self._rounds: Path | None = None
        self._keep: list[int] = []

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
        self._exchanges += 1
        self._keep = self._wanted()
        wait = self.patience if timeout is None and task == Task.EVALUATE else timeout
        replies: dict[str, Message | Failure] = {
            site: Failure(site, "no such site in this federation") for site in messages if site not in self._sites
        }
        tickets = {site: self._send(task, site, messages[site]) for site in sorted(messages.keys() - replies.keys())}
        started = noticed = time.monotonic()  # writing a model to hundreds of sites is none of their time
        deadline = None if wait is None else started + wait
        read = partial(self._read, on_reply=on_reply, max_bytes=max_bytes)
        arrived: dict[str, Answer] = {}
        whole: set[str] = set()
        with self.progress.sites(len(messages)) as bar:
            while len(replies) + len(arrived) < len(messages):
                self.post.check_stop()
                missing = messages.keys() - replies.keys() - arrived.keys()
                taken, size = self._arrivals.collect(self._exchanges, messages, replies.keys() | arrived.keys())
                came = bool(taken)
                for site in [site for site, answer in taken.items() if answer == NOT_HELD and site not in whole]:
                    del taken[site]  # it was started again
                    whole.add(site)
                    self.sent.forget(site)
                    tickets[site] = self._send(task, site, messages[site])
                arrived |= taken
                bar.update(len(taken))
                for site, count in size.items():
                    self._traffic.setdefault(site, Traffic()).up += count
                take_in_order(messages, replies, arrived, read)
                now = time.monotonic()
                # what came while answers were added is there, whatever the clock says now
                late = deadline is not None and now > deadline and not came
                if late or self._enough(messages, replies, arrived, quorum):
                    break
                if now - noticed > self.notice and missing:
                    noticed = now
                    logger.info("%s", waiting(Task(task).value, missing, None if deadline is None else deadline - now))
                self._arrivals.wait(_TICK)
        for site in sorted(messages.keys() - replies.keys() - arrived.keys()):
            again = ", nor in time before; it was not waited for" if site in self._missing else ""
            failure = Failure(site, f"no answer within {time.monotonic() - started:.0f} s{again}")
            replies[site] = failure
            if not self.post.cancel(tickets[site]):
                self._missing.add(site)
            logger.warning("%s: %s", site, failure.reason)
        take_in_order(messages, replies, arrived, read)
        for site in [site for site, reply in replies.items() if isinstance(reply, Failure)]:
            self.sent.forget(site)
        return {site: replies[site] for site in sorted(replies)}

    def came_late(self, site: str) -> None:
        """Something came from ``site`` to a request that was cancelled."""
        self._arrivals.late(site)

    def take_traffic(self) -> dict[str, Traffic]:
        taken, self._traffic = self._traffic, {}
        return taken

    def save_state(self, folder: Path) -> dict[str, str]:
        self._rounds = Path(folder).parent.parent
        return {}

    def load_state(self, folder: Path) -> None:
        self._rounds = Path(folder).parent.parent

    def _send(self, task: Task, site: str, message: Message) -> Any:
        """The ticket of a request."""
        message = self.sent.shortened(site, message)
        self._traffic.setdefault(site, Traffic()).down += wire_size(message)
        words, answered = {"run": self.run, "keep": self._keep}, partial(self._arrivals.put, self._exchanges)
        return self.post.send(Request(site, Task(task).value, message.round, message, words, answered))

    def _enough(
        self,
        messages: Mapping[str, Message],
        replies: Mapping[str, Message | Failure],
        arrived: Mapping[str, Answer],
        quorum: int,
    ) -> bool:
        """Whether only sites are left that are not waited for, and the others suffice."""
        if messages.keys() - replies.keys() - arrived.keys() - self._missing:
            return False
        answers = [isinstance(answer, Spooled) for answer in arrived.values()]
        return sum(not isinstance(reply, Failure) for reply in replies.values()) + sum(answers) >= quorum

    def _read(
        self, site: str, answer: Answer, *, on_reply: OnReply, max_bytes: Callable[[str], int] | None
    ) -> Message | Failure:
        if isinstance(answer, str):
            logger.warning("%s failed: %s", site, answer)
            return Failure(site, answer)
        limit = min(self.max_bytes, max_bytes(site)) if max_bytes else self.max_bytes
        return received(site, answer.read(), on_reply, max_bytes=limit)

    def _wanted(self) -> list[int]:
        if self._rounds is None:
            return []
        return [number for number, folder in round_folders(self._rounds).items() if (folder / CLIENTS).is_dir()]
