"""Transports: messages to sites and back, failures without private text (``scrub``)."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from traceback import walk_tb
from typing import Protocol

from torch import Tensor

from samfed_monai.core.errors import Problem, is_out_of_memory
from samfed_monai.core.tensor_file import checksum
from samfed_monai.protocol.compression import Step, apply_step
from samfed_monai.protocol.message import (
    COMPRESSION,
    EXTRA_WORDS,
    HELD,
    MAX_BYTES,
    Kind,
    Message,
    MessageRefused,
    from_bytes,
)
from samfed_monai.protocol.statistics import split_statistics, with_statistics

logger = logging.getLogger(__name__)


#: Packages whose module names and line numbers reveal nothing about a site's data.
PUBLIC_PACKAGES = frozenset({"samfed_monai", "monai", "ignite", "torch", "torchvision", "numpy", "PIL", "safetensors"})

#: Number of problems of one message that are named; a check before round 0 may find five different ones.
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Failure:
    """A site's missing or refused reply.

    Args:
        site: the site.
        reason: one line without paths, file names or values from the site (see :func:`scrub`).
    """

    site: str
    reason: str


def scrub(error: BaseException) -> str:
    """Describes an exception for others: its type, the operating system's text, and its line in public code.

    The exception's own message is left out, because it may hold a path, a file name or a patient's name, and no pattern
    finds all of those. Only :class:`MessageRefused` keeps its text, which has only the server's tensor names and
    numbers.

    Example::

        scrub(FileNotFoundError(2, "...", "/data/Jane Doe.png"))  # "FileNotFoundError (No such file or directory)"
    """
    if isinstance(error, MessageRefused):
        more = len(error.problems) - _MOST_SHOWN
        return "; ".join(map(str, error.problems[:_MOST_SHOWN])) + (f"; and {more} more" if more > 0 else "")
    is_public = type(error).__module__.partition(".")[0] in PUBLIC_PACKAGES | {"builtins"}
    text = type(error).__name__ if is_public else "an error in the site's own code"
    if is_out_of_memory(error):
        text = "out of memory"
    elif isinstance(error, OSError) and isinstance(error.errno, int):
        text += f" ({os.strerror(error.errno)})"
    place = ""
    for frame, line in walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] in PUBLIC_PACKAGES and module in sys.modules:
            place = f" in {module}, line {line}"
    return text + place


OnReply = Callable[[str, Message], None] | None


class Task(str, Enum):
    """Task of a site.

    ``CHECK`` comes first: the site compares its own hashes and versions with those in the message. ``PREPARE`` comes
    before round 0, once with the teacher's adapter and once with the site's initial weights. ``KEYS``, ``SHARES``,
    ``MASKED`` and ``UNMASK`` follow ``TRAIN`` with secure aggregation (:mod:`samfed_monai.privacy.secure_aggregation`).
    """

    CHECK = "check"
    PREPARE = "prepare"
    TRAIN = "train"
    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked"
    UNMASK = "unmask"
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
        """Sends each site its message and waits for the replies.

        Args:
            task: task of the sites.
            messages: site to message.
            quorum: a transport may stop waiting once this many sites have replied and ``timeout`` has passed.
            timeout: seconds; ``None`` waits for all sites.
            on_reply: called with each reply as it arrives. Its tensors are then released, so that only one reply at a
                time is in memory; a :class:`MessageRefused` that it raises becomes that site's :class:`Failure`.
            max_bytes: maximum size of a site's reply to decode, packed or inflated; ``None`` is
                :data:`~samfed_monai.protocol.message.MAX_BYTES`. Not called if nothing is decoded.

        Returns:
            Every site of ``messages`` with its reply or its failure. A failure of one site does not affect the others.
        """

    def take_traffic(self) -> dict[str, Traffic]:
        """Bytes since the last call, by site."""

    def save_state(self, folder: Path) -> dict[str, str]:
        """Writes the clients' states into ``folder``; returns file names and their SHA-256.

        A transport whose clients keep their own states writes nothing and returns an empty dict.
        """

    def load_state(self, folder: Path) -> None:
        """Restores the clients' states that :meth:`save_state` wrote."""


# Weights are sent once: a round ends with the validation of its model, and the next one trains from it. With
# compression, the model of a round is a step from the one before. Both ends are here, for transports that send bytes.
# A restarted site has no weights and reports this; it is then sent the weights themselves. Statistics beside weights
# are small and always sent.
_MISSING = Problem("message -> tensors", found="none", expected="weights (this site does not have the named ones)")
#: Reply of a site that does not have the weights that a message refers to.
NOT_HELD = str(_MISSING)


class SentWeights:
    """The server's end: the weights that each site was sent last."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}
        #: Step to the newest model from the one before; ``None`` sends whole models.
        self.step: Step | None = None
        self._whole: Counter[str] = Counter()

    def shortened(self, site: str, message: Message) -> Message:
        """Returns ``message`` without weights that ``site`` was sent last, or with the :attr:`step` from these.

        Weights in the result count as sent; call :meth:`forget` if they may not have arrived.
        """
        if message.kind != Kind.WEIGHTS or not message.tensors:
            return message
        weights, statistics = split_statistics(message.tensors)
        digest, last, step = checksum(weights), self._last.get(site), self.step
        if last == digest:
            return replace(message, tensors=with_statistics({}, statistics), extra={**message.extra, HELD: digest})
        self._last[site] = digest
        if step is None or digest != step.after:
            return message
        if last == step.before:
            tensors, extra = with_statistics(step.tensors, statistics), {HELD: digest, COMPRESSION: step.form}
            return replace(message, kind=Kind.STEP, tensors=tensors, extra={**message.extra, **extra})
        self._whole[site] += 1
        logger.info("sending %s the full model of round %d: the site lacks the previous one", site, message.round + 1)
        return message

    def forget(self, site: str) -> None:
        """Sends the next weights for ``site`` even if it may have them."""
        self._last.pop(site, None)

    def take_whole(self) -> dict[str, int]:
        """Number of models that each site was sent whole in place of a :attr:`step`, since the last call."""
        counts, self._whole = dict(self._whole), Counter()
        return counts


class HeldWeights:
    """A site's end: the weights that arrived last, by reference; do not write to them."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def complete(self, message: Message) -> Message:
        """Returns ``message`` with the weights that it refers to, or that its step leads to.

        Raises:
            MessageRefused: the site has other weights, or none; its text is :data:`NOT_HELD`.
        """
        digest, form = message.extra.get(HELD), message.extra.get(COMPRESSION)
        weights, statistics = split_statistics(message.tensors)
        if digest is None:
            if message.kind == Kind.WEIGHTS and weights:
                self._tensors = weights
            return message
        held: dict[str, Tensor] | None = self._tensors
        if message.kind == Kind.STEP and form is not None and EXTRA_WORDS[COMPRESSION].fullmatch(form):
            held = apply_step(self._tensors, weights, form)
        elif weights or message.kind == Kind.STEP:
            held = None
        if not held or checksum(held) != digest:
            self._tensors = {}
            raise MessageRefused([_MISSING])
        self._tensors = held
        extra = {name: word for name, word in message.extra.items() if name not in (HELD, COMPRESSION)}
        return replace(message, kind=Kind.WEIGHTS, tensors=with_statistics(held, statistics), extra=extra)


class Spooled:
    """A reply that waits for its turn on disk: in memory there would be as many models as sites.

    It is in a file without a name, which the system removes with this object or when its process ends in any way.

    Args:
        content: of the reply.
        folder: folder of the file, which is created. ``None`` is the system's folder for temporary files.

    Raises:
        OSError: the disk is full or fails.
    """

    def __init__(self, content: bytes, folder: Path | None = None) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.size, self._file = len(content), tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by the next line
        weakref.finalize(self, self._file.close)
        self._file.write(content)
        self._file.flush()

    def read(self) -> bytes:
        """Returns the reply."""
        self._file.seek(0)
        return self._file.read()


def log_refusal(site: str, error: MessageRefused) -> Failure:
    """Logs and returns the failure of a site whose message was refused."""
    logger.warning("%s: message refused: %s", site, scrub(error))
    return Failure(site, scrub(error))


def received(site: str, payload: bytes, on_reply: OnReply, *, max_bytes: int = MAX_BYTES) -> Message | Failure:
    """Decodes a reply and passes it to ``on_reply`` (:func:`deliver`); a refused one becomes the site's failure."""
    try:
        reply = from_bytes(payload, max_bytes=max_bytes)
    except MessageRefused as error:
        return log_refusal(site, error)
    return deliver(site, reply, on_reply)


def deliver(site: str, reply: Message, on_reply: OnReply) -> Message | Failure:
    """Passes a reply to ``on_reply`` and returns it without its tensors (:meth:`Transport.send_and_receive`).

    A reply that is refused, or that raises an unexpected error, becomes that site's failure.

    Raises:
        OSError, MemoryError, RuntimeError: the server's own disk or memory is full or fails.
    """
    if on_reply is None:
        return reply
    try:
        on_reply(site, reply)
    except MessageRefused as error:
        return log_refusal(site, error)
    except Exception as error:
        if isinstance(error, OSError) or is_out_of_memory(error):
            raise
        logger.exception("%s: the reply could not be processed", site)
        return Failure(site, scrub(error))
    return replace(reply, tensors={})
