"""How messages travel: a transport knows nothing of what the server does with the answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeVar

from samfed_monai.federation.envelope import Envelope, MessageRefused
from samfed_monai.federation.failure import Failure, scrub
from samfed_monai.federation.wire import MAX_BYTES, from_bytes

logger = logging.getLogger(__name__)

OnReply = Callable[[str, Envelope], None] | None
_Answer = TypeVar("_Answer")


class Task(str, Enum):
    """What a site is asked to do.

    ``CHECK`` comes before anything else: the site compares its own hashes and versions with those that the message
    names. ``PREPARE`` comes before round 0, once with the teacher's adapter and once with what the site starts from.
    """

    CHECK = "check"
    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"


@dataclass
class Traffic:
    """Bytes to (``down``) and from (``up``) one site."""

    up: int = 0
    down: int = 0


class Transport(Protocol):
    """Carries messages to sites and back."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, sorted."""

    def exchange(
        self,
        task: Task,
        messages: Mapping[str, Envelope],
        *,
        quorum: int = 1,
        timeout: float | None = None,
        on_reply: Callable[[str, Envelope], None] | None = None,
    ) -> dict[str, Envelope | Failure]:
        """Sends each site its message and waits for the answers.

        Args:
            task: what the sites are to do.
            messages: site to message.
            quorum: a transport may stop waiting once so many have answered and ``timeout`` has passed.
            timeout: seconds; ``None`` waits for everybody.
            on_reply: called with each answer as it comes. Its tensors are then let go, so that one answer at a time is
                in memory; a :class:`MessageRefused` that it raises becomes that site's :class:`Failure`.

        Returns:
            Every site of ``messages`` with its answer or its failure. One site's failure is never another's.
        """

    def take_traffic(self) -> dict[str, Traffic]:
        """Bytes since this was last called, by site."""

    def save_state(self, folder: Path) -> dict[str, str]:
        """Has clients write what they need to go on into ``folder``; returns file names and their SHA-256.

        A transport whose clients keep their state at home writes nothing and returns an empty dict.
        """

    def load_state(self, folder: Path) -> None:
        """Has clients go back to what :meth:`save_state` wrote."""


def take_in_order(
    messages: Mapping[str, Envelope],
    replies: dict[str, Envelope | Failure],
    arrived: dict[str, _Answer],
    read: Callable[[str, _Answer], Envelope | Failure],
) -> None:
    """Takes in what has come, in the order of names: sums then have the same bits as in one process.

    Args:
        messages: those that were sent, by site.
        replies: what was taken in so far; it grows.
        arrived: answers that have come and wait for their turn; it shrinks.
        read: makes a reply of a site's answer.
    """
    for site in sorted(messages):
        if site in replies:
            continue
        if site not in arrived:
            return
        replies[site] = read(site, arrived.pop(site))


def received(site: str, payload: bytes, on_reply: OnReply, *, max_bytes: int = MAX_BYTES) -> Envelope | Failure:
    """A reply out of its bytes, handed to ``on_reply`` and then let go of its tensors, as :meth:`Transport.exchange`
    says; one that is refused, or cannot be taken in, is that site's failure."""
    try:
        reply = from_bytes(payload, max_bytes=max_bytes)
        if on_reply is not None:
            on_reply(site, reply)
            reply = replace(reply, tensors={})
        return reply
    except MessageRefused as error:
        logger.warning("%s: its message was refused: %s", site, scrub(error))
        return Failure(site, scrub(error))
    except Exception as error:
        logger.exception("%s: its message could not be taken in", site)
        return Failure(site, scrub(error))
