"""The transport to sites in other processes: messages as bytes, with its own deadline, quorum and failure reasons."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from samfed_monai.core.run_log import round_folders
from samfed_monai.core.text import printable
from samfed_monai.federation.progress import Progress
from samfed_monai.federation.run_folder import CLIENTS
from samfed_monai.protocol.message import MAX_BYTES, Message, to_bytes, wire_size
from samfed_monai.protocol.transport import NOT_HELD, Failure, OnReply, SentWeights, Spooled, Task, Traffic, received

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A message to a site.

    Args:
        site: name of the site.
        task: task of the site.
        round: the round it belongs to.
        message: to the site.
        metadata: values sent beside it to the site's process: ``run``, and ``keep``, rounds whose states are needed.
        answered: called once with the sender's name and its reply: bytes, or the reason of a failure.
    """

    site: str
    task: str
    round: int
    message: Message = field(repr=False)
    metadata: Mapping[str, Any]
    answered: Callable[[str, bytes | str], None]

    @property
    def payload(self) -> bytes:
        """The message's bytes."""
        return to_bytes(self.message)


class Post(Protocol):
    """Sends the requests of a :class:`WireTransport`: over NVIDIA FLARE, or pipes to processes of this machine."""

    def send(self, request: Request) -> Any:
        """Sends without waiting; returns a ticket for :meth:`cancel`."""

    def cancel(self, ticket: Any) -> bool:
        """Cancels a request; returns whether the site has stopped its work on it."""

    def check_stop(self) -> None:
        """Raises an error that ends the run, for instance because FLARE ends its job."""


Reply = Spooled | str
"""A reply's bytes, spooled on disk, or the reason of a failure."""
_TICK = 0.2  # seconds between two checks of the clock and of `check_stop`


def waiting(task: str, sites: Iterable[str], seconds: float | None) -> str:
    """One line about the missing sites: ``train: waiting for site-2, site-3 (4 min left)``."""
    line = f"{task}: waiting for {', '.join(sorted(sites))}"
    if seconds is None:
        return line
    return f"{line} ({seconds / 60:.0f} min left)" if seconds >= 90 else f"{line} ({seconds:.0f} s left)"


class WireTransport:
    """A :class:`~samfed_monai.protocol.transport.Transport` whose messages are sent as bytes by a :class:`Post`.

    Payloads are :func:`~samfed_monai.protocol.message.to_bytes` of the same messages as in one process; a reply is only
    decoded by :func:`~samfed_monai.protocol.message.from_bytes`, which reads safetensors and nothing else, and refuses
    too many bytes before it reads them. Replies are processed in the order of names, so that sums have the same bits as
    in one process.

    A site that missed a deadline, and may still be at work, gets every later request, too. Once the others have replied
    and the quorum is reached, the transport does not wait for it until something has arrived from it (a late reply
    counts). A late, second or unrequested reply is dropped, with its reason in the log.

    Weights that a site was sent last are not sent again (:class:`.SentWeights`).

    Sites keep their state themselves, by round (:class:`.site_worker.SiteState`): :meth:`save_state` writes nothing.
    The rounds whose states are still needed are read from the run's folder, where a round's ``clients`` folder exists
    as long as they are.

    Args:
        post: sends and cancels.
        sites: names of the federation's clients.
        run: identifier of the run, so that a site never continues from another run's state.
        patience: seconds that an evaluation may take; ``None`` sets no limit. Other tasks before round 0 have none.
        notice: seconds between two log lines about missing sites.
        progress: progress bars; ``None`` shows them on a terminal only.
        spool: folder in which replies wait for those of sites before them by name, in files without a name; ``None`` is
            the system's folder for temporary files.
    """

    def __init__(
        self,
        post: Post,
        sites: tuple[str, ...],
        *,
        run: str = "",
        patience: float | None = None,
        notice: float = 30.0,
        progress: Progress | None = None,
        spool: Path | None = None,
    ) -> None:
        self.post, self.sites, self.run = post, tuple(sorted(sites)), run
        self.patience, self.notice, self.spool = patience, notice, spool
        self.progress = progress or Progress()
        self.sent = SentWeights()
        self._traffic: dict[str, Traffic] = {}
        self._missing: set[str] = set()  # sites that missed a deadline and have sent nothing since
        self._exchange = 0
        self._arrived: queue.Queue[tuple[int, str, Reply | OSError]] = queue.Queue()
        self._rounds: Path | None = None
        self._keep: list[int] = []

    def send_and_receive(
        self,
        task: Task,
        messages: Mapping[str, Message],
        *,
        quorum: int = 1,
        timeout: float | None = None,
        on_reply: OnReply = None,
        max_bytes: Callable[[str], int] | None = None,
    ) -> dict[str, Message | Failure]:
        self._exchange += 1
        stored = round_folders(self._rounds) if self._rounds is not None else {}
        self._keep = [number for number, folder in stored.items() if (folder / CLIENTS).is_dir()]
        wait = self.patience if timeout is None and task == Task.EVALUATE else timeout
        replies: dict[str, Message | Failure] = {
            site: Failure(site, "no such site in this federation") for site in messages if site not in self.sites
        }
        tickets = {site: self._send(task, site, messages[site]) for site in sorted(messages.keys() - replies.keys())}
        started = noticed = time.monotonic()  # the time to write a model to hundreds of sites does not count
        deadline = None if wait is None else started + wait
        arrived: dict[str, Reply] = {}
        sent_again: set[str] = set()

        def take() -> None:
            for site in sorted(messages.keys() - replies.keys()):
                if site not in arrived:
                    return
                replies[site] = self._read(site, arrived.pop(site), on_reply, max_bytes)

        with self.progress.sites(len(messages)) as bar:
            while missing := messages.keys() - replies.keys() - arrived.keys():
                self.post.check_stop()
                new = self._collect_replies(messages, missing)
                for site in [site for site, answer in new.items() if answer == NOT_HELD and site not in sent_again]:
                    del new[site]  # the site was restarted and lacks the weights
                    sent_again.add(site)
                    self.sent.forget(site)
                    tickets[site] = self._send(task, site, messages[site])
                arrived |= new
                bar.update(len(new))
                take()
                now, missing = time.monotonic(), missing - new.keys()
                valid = [isinstance(answer, Spooled) for answer in arrived.values()]
                valid += [not isinstance(reply, Failure) for reply in replies.values()]
                # replies that arrived while others were processed count, even after the deadline
                if (deadline is not None and now > deadline and not new) or (
                    missing <= self._missing and sum(valid) >= quorum
                ):
                    break
                if now - noticed > self.notice and missing:
                    noticed = now
                    logger.info("%s", waiting(Task(task).value, missing, None if deadline is None else deadline - now))
        for site in sorted(messages.keys() - replies.keys() - arrived.keys()):
            again = "; not waited for after an earlier time-out" if site in self._missing else ""
            failure = Failure(site, f"no answer within {time.monotonic() - started:.0f} s{again}")
            replies[site] = failure
            if not self.post.cancel(tickets[site]):
                self._missing.add(site)
            logger.warning("%s: %s", site, failure.reason)
        take()
        for site, reply in replies.items():
            if isinstance(reply, Failure):
                self.sent.forget(site)
        return {site: replies[site] for site in sorted(replies)}

    def note_late_reply(self, site: str) -> None:
        """Notes that something came from ``site`` after its deadline, or to a cancelled request: the site is there."""
        logger.warning("%s: dropped a late answer (its deadline had passed)", site)
        self._missing.discard(site)

    def take_traffic(self) -> dict[str, Traffic]:
        traffic, self._traffic = self._traffic, {}
        return traffic

    def save_state(self, folder: Path) -> dict[str, str]:
        self._rounds = Path(folder).parent.parent
        return {}

    def load_state(self, folder: Path) -> None:
        self._rounds = Path(folder).parent.parent

    def _send(self, task: Task, site: str, message: Message) -> Any:
        """Sends a request; returns its ticket."""
        message = self.sent.shortened(site, message)
        self._traffic.setdefault(site, Traffic()).down += wire_size(message)
        metadata, answered = {"run": self.run, "keep": self._keep}, partial(self._queue_reply, self._exchange)
        return self.post.send(Request(site, Task(task).value, message.round, message, metadata, answered))

    def _queue_reply(self, exchange: int, sender: str, content: bytes | str) -> None:
        """Queues a reply, from any thread; disk errors are raised by :meth:`_collect_replies`."""
        try:
            reply = Spooled(content, self.spool) if isinstance(content, bytes) else content
            self._arrived.put((exchange, sender, reply))
        except OSError as error:
            self._arrived.put((exchange, sender, error))

    def _collect_replies(self, requested: Container[str], missing: Container[str]) -> dict[str, Reply]:
        """Returns all valid replies that have arrived; waits a moment for the first one.

        Args:
            requested: sites that got a request in this exchange.
            missing: those that have not replied yet.

        Raises:
            OSError: a reply could not be written.
        """
        collected: dict[str, Reply] = {}
        wait = _TICK
        while True:
            try:
                exchange, sender, reply = self._arrived.get(timeout=wait)
            except queue.Empty:
                return collected
            wait = 0
            if isinstance(reply, OSError):
                raise reply
            if isinstance(reply, Spooled) and sender in requested:
                self._traffic.setdefault(sender, Traffic()).up += reply.size
            if exchange != self._exchange:  # from an earlier exchange; this one may not include the site
                self.note_late_reply(sender)
            elif sender not in requested:
                logger.warning("dropped an answer from %r, which received no request", sender)
            elif sender not in missing or sender in collected:
                logger.warning("%s: dropped a second answer (one per site and message)", sender)
            else:
                self._missing.discard(sender)
                collected[sender] = reply

    def _read(
        self, site: str, reply: Reply, on_reply: OnReply, max_bytes: Callable[[str], int] | None
    ) -> Message | Failure:
        if isinstance(reply, str):  # a site's own words, which could forge lines of the log
            reason = printable(reply, keep="")[:2000]
            logger.warning("%s failed: %s", site, reason)
            return Failure(site, reason)
        limit = min(MAX_BYTES, max_bytes(site)) if max_bytes else MAX_BYTES
        return received(site, reply.read(), on_reply, max_bytes=limit)
