"""The federation's transport over NVIDIA FLARE: own deadline, own quorum, one refusal reason per dropped answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from samfed_monai.federation.envelope import Envelope
from samfed_monai.federation.failure import Failure
from samfed_monai.federation.progress import Progress
from samfed_monai.federation.transport import Task, Traffic, received, take_in_order
from samfed_monai.federation.wire import MAX_BYTES, to_bytes
from samfed_monai.flare.arrivals import Answer, Arrivals, waiting
from samfed_monai.flare.post import Letter, Post

logger = logging.getLogger(__name__)

_TICK = 0.2  # seconds between two looks at the clock and at FLARE's wish to stop


class FlareTransport:
    """Implements :class:`~samfed_monai.federation.transport.Transport` over messages that FLARE delivers.

    Payloads are :func:`~samfed_monai.federation.wire.to_bytes` of the same envelopes as in one process; an answer is
    decoded by :func:`~samfed_monai.federation.wire.from_bytes` alone, which reads safetensors and nothing else, and
    refuses more than ``max_bytes`` before it looks at them.

    A site that missed a deadline is asked again in every later exchange, but nobody waits for it once the others have
    answered and the quorum is reached, until something has come from it again (a late answer counts). A late, second or
    unasked answer is dropped with its reason in the log.

    Sites keep their state at home, by round: nothing is written by :meth:`save_state`. Which rounds' states are still
    wanted is read from the run's folder, where a round's ``clients`` folder exists as long as they are.

    Args:
        post: sends and cancels.
        sites: names of the federation's clients.
        run: identifier of the run, so that a site never goes on from another run's state.
        patience: seconds that an evaluation may take; ``None`` waits. What comes before round 0 always waits.
        notice: seconds between two lines about who is waited for.
        max_bytes: largest answer that is decoded.
        progress: where progress is shown; ``None`` shows it on a terminal only.
    """

    def __init__(
        self,
        post: Post,
        sites: tuple[str, ...],
        *,
        run: str,
        patience: float | None = None,
        notice: float = 30.0,
        max_bytes: int = MAX_BYTES,
        progress: Progress | None = None,
    ) -> None:
        self.post, self._sites, self.run = post, tuple(sorted(sites)), run
        self.patience, self.notice, self.max_bytes = patience, notice, max_bytes
        self.progress = progress or Progress()
        self._traffic: dict[str, Traffic] = {}
        self._missing: set[str] = set()
        self._exchanges = 0
        self._arrivals = Arrivals(self._missing)
        self._rounds: Path | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        return self._sites

    def exchange(
        self,
        task: Task,
        messages: Mapping[str, Envelope],
        *,
        quorum: int = 1,
        timeout: float | None = None,
        on_reply: Callable[[str, Envelope], None] | None = None,
    ) -> dict[str, Envelope | Failure]:
        self._exchanges += 1
        wait = self.patience if timeout is None and task == Task.EVALUATE else timeout
        deadline = None if wait is None else time.monotonic() + wait
        started = noticed = time.monotonic()
        tickets, replies = self._send(task, messages)
        arrived: dict[str, Answer] = {}
        with self.progress.sites(len(messages)) as bar:
            while len(replies) + len(arrived) < len(messages):
                self.post.check_stop()
                missing = messages.keys() - replies.keys() - arrived.keys()
                taken, size = self._arrivals.collect(self._exchanges, messages, {**replies, **arrived})
                arrived |= taken
                for _ in taken:
                    bar.advance()
                for site, count in size.items():
                    self._traffic.setdefault(site, Traffic()).up += count
                take_in_order(messages, replies, arrived, lambda site, answer: self._read(site, answer, on_reply))
                now = time.monotonic()
                if (deadline is not None and now > deadline) or self._enough(messages, replies, arrived, quorum):
                    break
                if now - noticed > self.notice and missing:
                    noticed = now
                    logger.info("%s", waiting(Task(task).value, missing, None if deadline is None else deadline - now))
                self._arrivals.wait(_TICK)
        for site in sorted(messages.keys() - replies.keys() - arrived.keys()):
            self.post.cancel(tickets[site])
            again = "" if site not in self._missing else ", nor in time before; nobody waited for it"
            failure = Failure(site, f"no answer within {time.monotonic() - started:.0f} s{again}")
            replies[site] = failure
            self._missing.add(site)
            logger.warning("%s: %s", site, failure.reason)
        take_in_order(messages, replies, arrived, lambda site, answer: self._read(site, answer, on_reply))
        return {site: replies[site] for site in sorted(replies)}

    def came_late(self, site: str) -> None:
        """FLARE got something from ``site`` to a letter that was cancelled."""
        self._arrivals.late(site)

    def take_traffic(self) -> dict[str, Traffic]:
        taken, self._traffic = self._traffic, {}
        return taken

    def save_state(self, folder: Path) -> dict[str, str]:
        self._rounds = Path(folder).parent.parent
        return {}

    def load_state(self, folder: Path) -> None:
        self._rounds = Path(folder).parent.parent

    def _send(
        self, task: Task, messages: Mapping[str, Envelope]
    ) -> tuple[dict[str, Any], dict[str, Envelope | Failure]]:
        tickets: dict[str, Any] = {}
        replies: dict[str, Envelope | Failure] = {}
        words = {"run": self.run, "keep": self._keep()}
        for site in sorted(messages):
            if site not in self._sites:
                replies[site] = Failure(site, "no such site in this federation")
                continue
            payload = to_bytes(messages[site])
            self._traffic.setdefault(site, Traffic()).down += len(payload)
            answered = partial(self._arrivals.put, self._exchanges)
            letter = Letter(site, Task(task).value, messages[site].round, payload, words, answered)
            tickets[site] = self.post.send(letter)
        return tickets, replies

    def _enough(
        self,
        messages: Mapping[str, Envelope],
        replies: Mapping[str, Envelope | Failure],
        arrived: Mapping[str, Answer],
        quorum: int,
    ) -> bool:
        """Whether only sites are left for which nobody waits, and the others suffice."""
        if messages.keys() - replies.keys() - arrived.keys() - self._missing:
            return False
        answers = [isinstance(answer, bytes) for answer in arrived.values()]
        return sum(not isinstance(reply, Failure) for reply in replies.values()) + sum(answers) >= quorum

    def _read(self, site: str, answer: Answer, on_reply: Callable[[str, Envelope], None] | None) -> Envelope | Failure:
        if isinstance(answer, str):
            logger.warning("%s failed: %s", site, answer)
            return Failure(site, answer)
        return received(site, answer, on_reply, max_bytes=self.max_bytes)

    def _keep(self) -> list[int]:
        if self._rounds is None or not self._rounds.is_dir():
            return []
        return sorted(int(path.parent.name) for path in self._rounds.glob("[0-9]*/clients"))
