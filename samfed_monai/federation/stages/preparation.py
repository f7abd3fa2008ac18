"""What the sites do before round 0, over any transport: check, take the teacher, take the weights they start from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from samfed_monai.federation.asking import ask_all
from samfed_monai.federation.envelope import Envelope, Kind
from samfed_monai.federation.failure import Failure
from samfed_monai.federation.inbox import Inbox
from samfed_monai.federation.privacy.small_counts import withheld_reason
from samfed_monai.federation.scoring import site_scores
from samfed_monai.federation.transport import Task, Transport

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """Leads the sites to round 0.

    Args:
        transport: carries messages.
        sites: everybody, those included that take no part.
        rounds, seed: of the run.
        least: sites that are enough where a run goes on; ``None`` needs all (:func:`ask_all`).
    """

    transport: Transport
    sites: Sequence[str]
    rounds: int
    seed: int
    least: int | None = None

    def check(self, papers: Callable[[str], Mapping[str, str]]) -> None:
        """Has every site compare what ``papers`` says of it.

        Raises:
            Refused: with every difference at every site.
        """
        self._ask(Task.CHECK, {site: self._message(site, extra=dict(papers(site))) for site in self.sites})

    def hand_out(self, tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> None:
        """Sends the teacher's adapter; each site fills its own soft-mask store before it answers.

        Args:
            tensors, words: of :func:`samfed_monai.federation.stages.site_teacher.adapter_message`.

        Raises:
            Refused: a site whose SAM is another one, damaged bytes, another teacher.
        """
        fields: dict[str, Any] = {"kind": Kind.ADAPTER, "tensors": dict(tensors), "extra": dict(words)}
        self._ask(Task.PREPARE, {site: self._message(site, **fields) for site in self.sites})

    def start_from(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Has every site build its client; those of ``weights`` get what they keep of their network from then on.

        Raises:
            Refused: a site whose network is another one.
        """
        messages = {}
        for site in self.sites:
            tensors = dict(weights.get(site, {}))
            messages[site] = self._message(site, kind=Kind.WEIGHTS if tensors else Kind.METRICS, tensors=tensors)
        self._ask(Task.PREPARE, messages)

    def teacher_scores(self, splits: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The teacher's own means at each site: site to split to a summary; a site that gives none is left out."""
        found: dict[str, dict[str, Any]] = {site: {} for site in self.sites}
        for split in splits:
            words = {"split": split, "model": "teacher"}
            messages = {site: self._message(site, extra=dict(words)) for site in self.sites}
            inbox = Inbox(round=0, sites=messages, like=None, kind=Kind.METRICS)
            replies = self.transport.exchange(Task.EVALUATE, messages, on_reply=inbox.check)
            for site, reply in replies.items():
                reason = reply.reason if isinstance(reply, Failure) else withheld_reason(reply)
                if isinstance(reply, Failure) or reason:
                    logger.warning("%s has no %s scores of the teacher: %s", site, split, reason)
                else:
                    found[site][split] = site_scores(reply)
        return found

    def traffic(self) -> dict[str, int]:
        """``up_bytes`` and ``down_bytes`` of all this."""
        taken = self.transport.take_traffic().values()
        return {"up_bytes": sum(each.up for each in taken), "down_bytes": sum(each.down for each in taken)}

    def _ask(self, task: Task, messages: Mapping[str, Envelope]) -> None:
        ask_all(self.transport, task, messages, least=self.least)

    def _message(self, site: str, *, kind: Kind = Kind.METRICS, **fields: Any) -> Envelope:
        return Envelope(kind, site, 0, self.rounds, self.seed, **fields)
