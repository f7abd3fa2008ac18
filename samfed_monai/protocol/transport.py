"""Transports: messages out and back, failures without private text (``scrub``)."""

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
from typing import TYPE_CHECKING, Protocol

from samfed_monai.core.errors import Problem, is_out_of_memory
from samfed_monai.core.tensor_file import checksum
from samfed_monai.protocol.compression import Step, stepped
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

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


#: Packages whose module names and line numbers say nothing about a site's data.
PUBLIC_PACKAGES = frozenset({"samfed_monai", "monai", "ignite", "torch", "torchvision", "numpy", "PIL", "safetensors"})

#: Problems of one message that are named; a check before the first round may find five different ones.
_SHOWN = 5


@dataclass(frozen=True)
class Failure:
    """A site's missing or refused answer.

    Args:
        site: the site.
        reason: one line without paths, file names or values from the site (see :func:`scrub`).
    """

    site: str
    reason: str


def scrub(error: BaseException) -> str:
    """What may leave a site about an exception: its type, the operating system's text, and its line in public code.

    The exception's own message never does, because it may hold a path, a file name or a patient's name, and no
    pattern finds all of those. Only :class:`MessageRefused` keeps its text: it is made of the server's tensor names and
    of numbers.

    Example::

        scrub(FileNotFoundError(2, "...", "/data/Jane Doe.png"))  # "FileNotFoundError (No such file or directory)"
    """
    if isinstance(error, MessageRefused):
        more = len(error.problems) - _SHOWN
        return "; ".join(map(str, error.problems[:_SHOWN])) + (f"; and {more} more" if more > 0 else "")
    known = type(error).__module__.partition(".")[0] in PUBLIC_PACKAGES | {"builtins"}
    text = type(error).__name__ if known else "an error of the site's own code"
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
    """What a site is asked to do.

    ``CHECK`` comes before anything else: the site compares its own hashes and versions with those that the message
    names. ``PREPARE`` comes before round 0, once with the teacher's adapter and once with what the site starts from.
    ``KEYS``, ``SHARES``, ``MASKED`` and ``UNMASK`` follow ``TRAIN`` where updates are added under masks
    (:mod:`samfed_monai.privacy.secure_aggregation`).
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
        on_reply: Callable[[str, Message], None] | None = None,
        max_bytes: Callable[[str], int] | None = None,
    ) -> dict[str, Message | Failure]:
        """Sends each site its message and waits for the answers.

        Args:
            task: what the sites are to do.
            messages: site to message.
            quorum: a transport may stop waiting once so many have answered and ``timeout`` has passed.
            timeout: seconds; ``None`` waits for everybody.
            on_reply: called with each answer as it comes. Its tensors are then let go, so that one answer at a time is
                in memory; a :class:`MessageRefused` that it raises becomes that site's :class:`Failure`.
            max_bytes: size of the largest answer that is decoded of a site, packed or inflated; ``None`` is
                :data:`~samfed_monai.protocol.message.MAX_BYTES`. Where nothing is decoded it is not asked.

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


# Weights travel once: a round ends with the validation of its model, and the next one trains from it. Where a run is
# compressed, the model of a round is a step from the one before. Both ends are here, for transports that carry bytes.
# A site that was started again holds nothing and says so; it is then sent the weights themselves. Statistics beside
# weights are small and always sent.
_MISSING = Problem("message -> tensors", found="none", expected="weights, for those that it names are not held here")
#: What a site answers that does not hold the weights that a message names.
NOT_HELD = str(_MISSING)


class SentWeights:
    """The server's end: which weights each site was sent last."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}
        #: What leads to the newest model from the one before; ``None`` sends whole models.
        self.step: Step | None = None
        self._whole: Counter[str] = Counter()

    def shortened(self, site: str, message: Message) -> Message:
        """``message`` as it travels to ``site``: without its weights, where the last ones sent there were the same, or
        with the :attr:`step` from these.

        Weights that it does carry count as sent; call :meth:`forget` where they may not have arrived.
        """
        if message.kind != Kind.WEIGHTS or not message.tensors:
            return message
        weights, statistics = split_statistics(message.tensors)
        own, last, step = checksum(weights), self._last.get(site), self.step
        if last == own:
            return replace(message, tensors=with_statistics({}, statistics), extra={**message.extra, HELD: own})
        self._last[site] = own
        if step is None or own != step.after:
            return message
        if last == step.before:
            tensors, words = with_statistics(step.tensors, statistics), {HELD: own, COMPRESSION: step.form}
            return replace(message, kind=Kind.STEP, tensors=tensors, extra={**message.extra, **words})
        self._whole[site] += 1
        logger.info("%s is sent the whole model of round %d: it has none to step from", site, message.round + 1)
        return message

    def forget(self, site: str) -> None:
        """The next weights for ``site`` are sent, whatever it may hold."""
        self._last.pop(site, None)

    def take_whole(self) -> dict[str, int]:
        """How many models each site was sent whole in place of a :attr:`step`, since this was last called."""
        taken, self._whole = dict(self._whole), Counter()
        return taken


class HeldWeights:
    """A site's end: the weights that arrived last, by reference; they are not to be written to."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def complete(self, message: Message) -> Message:
        """``message`` with the weights that it names, or that it leads to.

        Raises:
            MessageRefused: others are held here, or none; its text is :data:`NOT_HELD`.
        """
        named, form = message.extra.get(HELD), message.extra.get(COMPRESSION)
        weights, statistics = split_statistics(message.tensors)
        if named is None:
            if message.kind == Kind.WEIGHTS and weights:
                self._tensors = weights
            return message
        held: dict[str, Tensor] | None = self._tensors
        if message.kind == Kind.STEP and form is not None and EXTRA_WORDS[COMPRESSION].fullmatch(form):
            held = stepped(self._tensors, weights, form)
        elif weights or message.kind == Kind.STEP:
            held = None
        if not held or checksum(held) != named:
            self._tensors = {}
            raise MessageRefused([_MISSING])
        self._tensors = held
        words = {name: word for name, word in message.extra.items() if name not in (HELD, COMPRESSION)}
        return replace(message, kind=Kind.WEIGHTS, tensors=with_statistics(held, statistics), extra=words)


class Spooled:
    """An answer that waits for its turn on the disk: in memory they would be as many models as there are sites.

    It is in a file without a name, which the system removes with this object or with its process, however that ends.

    Args:
        content: of the answer.
        folder: whose disk it waits on; it is created. ``None`` is the system's folder for temporary files.

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
        """The answer."""
        self._file.seek(0)
        return self._file.read()


def refused_failure(site: str, error: MessageRefused) -> Failure:
    """The failure of a site whose message is refused, with a line in the log."""
    logger.warning("%s: its message was refused: %s", site, scrub(error))
    return Failure(site, scrub(error))


def received(site: str, payload: bytes, on_reply: OnReply, *, max_bytes: int = MAX_BYTES) -> Message | Failure:
    """A reply out of its bytes, handed to ``on_reply`` (:func:`taken_in`); its site's failure where it is refused."""
    try:
        reply = from_bytes(payload, max_bytes=max_bytes)
    except MessageRefused as error:
        return refused_failure(site, error)
    return taken_in(site, reply, on_reply)


def taken_in(site: str, reply: Message, on_reply: OnReply) -> Message | Failure:
    """A reply that was handed to ``on_reply`` and then let go of its tensors (:meth:`Transport.send_and_receive`).

    One that is refused, or that raises what no code foresaw, is that site's failure.

    Raises:
        OSError, MemoryError, RuntimeError: the server's own disk or memory is at its end.
    """
    if on_reply is None:
        return reply
    try:
        on_reply(site, reply)
    except MessageRefused as error:
        return refused_failure(site, error)
    except Exception as error:
        if isinstance(error, OSError) or is_out_of_memory(error):
            raise
        logger.exception("%s: its message could not be taken in", site)
        return Failure(site, scrub(error))
    return replace(reply, tensors={})
