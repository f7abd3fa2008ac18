"""What a transport needs of whatever carries letters: NVIDIA FLARE, or a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Letter:
    """One message on its way to a site.

    Args:
        site: where it goes.
        task: what the site is asked.
        round: the round it belongs to.
        payload: the envelope's bytes.
        words: plain words beside it, for the site's client: ``run``, and ``keep``, the rounds whose states are wanted.
        answered: called once with the sender's name and its answer: bytes, or a failure's reason.
    """

    site: str
    task: str
    round: int
    payload: bytes = field(repr=False)
    words: Mapping[str, Any]
    answered: Callable[[str, bytes | str], None]


class Post(Protocol):
    """What a :class:`FlareTransport` needs of NVIDIA FLARE."""

    def send(self, letter: Letter) -> Any:
        """Sends without waiting; returns what :meth:`cancel` takes."""

    def cancel(self, ticket: Any) -> None:
        """No answer to this letter is wanted any more."""

    def check_stop(self) -> None:
        """Raises where FLARE has been told to end the run."""
