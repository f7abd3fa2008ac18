"""Who may answer in a round, and how often: each refusal has a named reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from samfed_monai.core.errors import Problem
from samfed_monai.federation.envelope import Envelope, Kind, MessageRefused
from samfed_monai.federation.wire import wire_size

if TYPE_CHECKING:
    from torch import Tensor


class Inbox:
    """Checks the answers of one round as they arrive.

    Args:
        round: the round that is running.
        sites: the sites that were asked.
        like: site to names, shapes and dtypes of the tensors that it was asked for; ``None``, for all sites or for
            one, when only numbers were.
        kind: what these tensors must be; ``None`` takes every kind.
    """

    def __init__(
        self,
        *,
        round: int,
        sites: Iterable[str],
        like: Callable[[str], Mapping[str, Tensor] | None] | None,
        kind: Kind | None = None,
    ) -> None:
        self.round, self.like, self.kind = round, like, kind
        self._open = set(sites)
        self._answered: set[str] = set()

    def check(self, sender: str, message: Envelope) -> None:
        """Takes note of ``sender``'s answer.

        Raises:
            MessageRefused: an unknown sender (fault 46), a second answer (43), another kind, another round's (44, 45),
                too many bytes (37), or a message whose content does not pass :meth:`Envelope.check` (32 to 36, 38).
        """
        if sender in self._answered:
            raise _refusal("a second answer", "one answer per site and round")
        if sender not in self._open:
            raise _refusal("an unknown sender", "a site of this federation")
        if self.kind is not None and message.kind != self.kind:
            raise _refusal(Kind(message.kind).value, f"{self.kind.value}, which this round exchanges")
        like = self.like(sender) if self.like else None
        size, limit = wire_size(message), _limit(like)
        if size > limit:
            raise _refusal(f"{size} bytes", f"at most {limit} bytes")
        message.check(up=True, like=like, site=sender, round=self.round)
        self._open.discard(sender)
        self._answered.add(sender)


def _limit(like: Mapping[str, Tensor] | None) -> int:
    """Twice what the site's tensors need, plus 1 MiB for the header."""
    return 2 * sum(tensor.numel() * tensor.element_size() for tensor in (like or {}).values()) + 1024**2


def _refusal(found: str, expected: str) -> MessageRefused:
    return MessageRefused([Problem("message", found=found, expected=expected)])
