"""Weights travel once: those that a site was sent last are named by their checksum instead of being sent again.

A round ends with the validation of its model, and the next one trains from it: without this a model would go down
twice. Both ends are here, for transports that carry bytes: :class:`SentWeights` at the server, one for all sites, and
:class:`HeldWeights` at each site. A site that was started again holds nothing and says so (:data:`NOT_HELD`); it is
then sent the weights themselves. Statistics beside weights are small and always sent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from samfed_monai.core.errors import Problem
from samfed_monai.core.tensor_file import checksum
from samfed_monai.protocol.message import HELD, Kind, Message, MessageRefused
from samfed_monai.protocol.statistics import split_statistics, with_statistics

if TYPE_CHECKING:
    from torch import Tensor

_MISSING = Problem("message -> tensors", found="none", expected="weights, for those that it names are not held here")
#: What a site answers that does not hold the weights that a message names.
NOT_HELD = str(_MISSING)


class SentWeights:
    """The server's end: which weights each site was sent last."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def shortened(self, site: str, message: Message) -> Message:
        """``message`` as it travels to ``site``: without its weights, where the last ones sent there were the same.

        Weights that it does carry count as sent; call :meth:`forget` where they may not have arrived.
        """
        if message.kind != Kind.WEIGHTS or not message.tensors:
            return message
        weights, statistics = split_statistics(message.tensors)
        own = checksum(weights)
        if self._last.get(site) == own:
            return replace(message, tensors=with_statistics({}, statistics), extra={**message.extra, HELD: own})
        self._last[site] = own
        return message

    def forget(self, site: str) -> None:
        """The next weights for ``site`` are sent, whatever it may hold."""
        self._last.pop(site, None)


class HeldWeights:
    """A site's end: the weights that arrived last, by reference; they are not to be written to."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def complete(self, message: Message) -> Message:
        """``message`` with the weights that it names.

        Raises:
            MessageRefused: others are held here, or none; its text is :data:`NOT_HELD`.
        """
        named = message.extra.get(HELD)
        weights, statistics = split_statistics(message.tensors)
        if named is None:
            if message.kind == Kind.WEIGHTS and weights:
                self._tensors = weights
            return message
        if weights or not self._tensors or checksum(self._tensors) != named:
            self._tensors = {}
            raise MessageRefused([_MISSING])
        words = {name: word for name, word in message.extra.items() if name != HELD}
        return replace(message, tensors=with_statistics(self._tensors, statistics), extra=words)
