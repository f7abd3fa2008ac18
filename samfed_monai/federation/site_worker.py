"""One MONAI FL client behind messages: an envelope comes in, an envelope goes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from samfed_monai.federation.envelope import Envelope, Kind
from samfed_monai.federation.exchange import call_extra, from_exchange, to_exchange
from samfed_monai.federation.transport import Task

if TYPE_CHECKING:
    from torch import Tensor

Release = Callable[[Task, Envelope, Envelope], Envelope]
"""Last look at an answer before it leaves the site: ``release(task, request, reply)`` returns what may leave, or raises
:class:`MessageRefused`."""


class SiteWorker:
    """Has a client (``ClientAlgo``) do what a message asks.

    Args:
        site: its name.
        client: initialized.
        release: what every answer passes last; ``None`` lets it go as it is.
    """

    def __init__(self, site: str, client: Any, release: Release | None = None) -> None:
        self.site, self.client, self.release = site, client, release

    def answer(self, task: Task, message: Envelope) -> Envelope:
        """Does ``task`` and returns the answer.

        Raises:
            MessageRefused: the message, or what would leave, is not in order; its text may travel.
            Exception: whatever the client raises; it must be scrubbed before it leaves the site.
        """
        reply = self._work(Task(task), message)
        return reply if self.release is None else self.release(Task(task), message, reply)

    def engine(self, task: Task) -> Any:
        """The Ignite engine that ``task`` runs, for a progress bar; ``None`` where there is none."""
        return getattr(self.client, {Task.TRAIN: "trainer", Task.EVALUATE: "evaluator"}.get(task, ""), None)

    def state_dict(self) -> dict[str, Tensor]:
        """What the client needs to go on in another process; empty for a client that keeps nothing."""
        return dict(self.client.state_dict()) if hasattr(self.client, "state_dict") else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`state_dict` returned."""
        if hasattr(self.client, "load_state_dict"):
            self.client.load_state_dict(state)

    def finalize(self) -> None:
        """Ends the client."""
        if hasattr(self.client, "finalize"):
            self.client.finalize()

    def _work(self, task: Task, message: Envelope) -> Envelope:
        data, extra = to_exchange(message), call_extra(message)
        if task == Task.CHECK:
            answer = self.client.check(extra) if hasattr(self.client, "check") else {}
            return said(message, metrics=answer)
        if task == Task.PREPARE:
            if message.kind == Kind.WEIGHTS and hasattr(self.client, "load_network"):
                self.client.load_network(message.tensors)
            return said(message)
        if task == Task.EVALUATE:
            return from_exchange(self.client.evaluate(data, extra), request=message)
        self.client.train(data, extra)
        return from_exchange(self.client.get_weights(extra), request=message)


def said(request: Envelope, *, n: int = 0, metrics: Mapping[str, float] | None = None) -> Envelope:
    """An answer of numbers alone."""
    return replace(request, kind=Kind.METRICS, n=n, tensors={}, extra={}, metrics=dict(metrics or {}))
