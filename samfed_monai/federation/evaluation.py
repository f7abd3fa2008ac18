"""Evaluation of the federation's models: sites compute scores on their own images and send means and counts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from samfed_monai.federation.exchange_object import parts_in
from samfed_monai.metrics.quality import groups_in
from samfed_monai.metrics.scores import BESIDE, EMPTY, NAMES
from samfed_monai.privacy.allowed import EXPECTED, NO_IMAGES, WITHHELD, withheld_reason
from samfed_monai.protocol.message import Kind, Message
from samfed_monai.protocol.strategy import Strategy
from samfed_monai.protocol.transport import Failure, Inbox, Task, Transport

logger = logging.getLogger(__name__)


def site_scores(reply: Message, classes: Sequence[str] = ()) -> dict[str, Any]:
    """``{"dice", "iou", "hd95", "n", "empty": {"both", "prediction", "label"}}`` of one site's answer.

    A score or a count that the site did not send is ``None``, and sensitivity, precision and area are left out; HD95 is
    in pixels at the evaluation size.

    Args:
        reply: the answer.
        classes: names of the classes; of several, their scores are under ``classes``.
            Those of whole volumes are under ``volumes``.
    """
    scores: dict[str, Any] = {name: reply.metrics.get(name) for name in NAMES}
    unknown = None if reply.n else 0  # of no image none has an empty mask
    counts = {side: reply.metrics.get(f"empty_{side}", unknown) for side in EMPTY}
    empty = {side: None if count is None else int(count) for side, count in counts.items()}
    beside = {name: reply.metrics[name] for name in BESIDE if name in reply.metrics}
    named = parts_in(reply.metrics, classes)
    return {**scores, "n": reply.n, "empty": empty, **beside, **named}


def expected_scores(metrics: Mapping[str, float]) -> dict[str, Any] | None:
    """``{"dice", "images", "groups"}`` of one site's answer: what its masks promise, with or without labels.

    ``groups`` are of images with labels (:class:`samfed_monai.metrics.quality.Group`); ``None`` where nothing was sent.
    """
    if not metrics.keys() >= EXPECTED:
        return None
    groups = [asdict(group) for group in groups_in(metrics)]
    return {"dice": metrics["expected_dice"], "images": int(metrics["expected_images"]), "groups": groups}


def log_unscored(reasons: Mapping[str, str], what: str) -> None:
    """Logs which sites sent no scores; those without masks in one line of level INFO, since that is expected."""
    without = [site for site, reason in reasons.items() if reason == NO_IMAGES]
    if without:
        logger.info("no %s: no masks at %s", what, ", ".join(without))
    for site, reason in reasons.items():
        if reason != NO_IMAGES:
            logger.warning("%s has no %s: %s", site, what, reason)


class Collected(NamedTuple):
    """What :func:`collect_scores` returns, by site."""

    scores: dict[str, dict[str, Any]]
    reasons: dict[str, str]
    failed: set[str]
    expected: dict[str, dict[str, Any]]


def collect_scores(transport: Transport, messages: Mapping[str, Message], classes: Sequence[str]) -> Collected:
    """Has sites score what ``messages`` ask for; one that fails does not end the run.

    Returns:
        Scores by site, reasons of sites that sent none, and those of them that failed; and what masks promise, of sites
        without labels, too.
    """
    inbox = Inbox(
        round=next(iter(messages.values())).round if messages else 0, sites=messages, like=None, kind=Kind.METRICS
    )
    replies = transport.send_and_receive(
        Task.EVALUATE, messages, quorum=0, on_reply=inbox.check, max_bytes=inbox.max_bytes
    )
    scores, reasons, expected = dict[str, dict[str, Any]](), dict[str, str](), dict[str, dict[str, Any]]()
    for site, reply in replies.items():
        reason = reply.reason if isinstance(reply, Failure) else withheld_reason(reply)
        if isinstance(reply, Failure) or reason is not None:
            reasons[site] = str(reason)
        else:
            scores[site] = site_scores(reply, classes)
        if not isinstance(reply, Failure) and (promised := expected_scores(reply.metrics)):
            expected[site] = promised
    return Collected(scores, reasons, {site for site, reply in replies.items() if isinstance(reply, Failure)}, expected)


class Evaluation:
    """Has sites evaluate the strategy's current model, or their own networks, where sites keep one.

    Args:
        transport: carries messages.
        strategy: says what a site evaluates; the caller loads the round that is meant.
        sites: those that train.
        unseen: those that take no part; the server's model is evaluated on their test images.
        splits: splits on which models are compared at the end.
        rounds, seed: of the run.
        classes: names of the classes.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        strategy: Strategy,
        sites: Sequence[str],
        unseen: Sequence[str],
        splits: Sequence[str],
        rounds: int,
        seed: int,
        classes: Sequence[str] = (),
    ) -> None:
        self.classes = classes
        self.transport, self.strategy = transport, strategy
        self.sites, self.unseen, self.splits = sites, unseen, splits
        self.rounds, self.seed = rounds, seed
        #: Of the last call of :meth:`scores`, by site, as :func:`expected_scores` has it.
        self.expected: dict[str, dict[str, Any]] = {}
        #: (site, split) to the reason why a site did not send its scores of the best or the last model.
        self.withheld: dict[tuple[str, str], str] = {}
        #: Sites that failed in the evaluation of the best or the last model, with the last reason.
        self.failed: dict[str, str] = {}

    def scores(
        self, split: str, *, round: int, model: str = "current", sites: Iterable[str] | None = None
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Scores by site, and the reasons of sites that sent none.

        Args:
            split: ``validation`` or ``test``.
            round: the round that the model is of.
            model: what it is called: ``current``, ``best`` or ``last``; sites keep tables of the last two.
            sites: those to ask; ``None`` asks all that train.
        """
        messages = {}
        for site in self.sites if sites is None else sites:
            weights = self.strategy.evaluation(site)
            purpose = {"purpose": "keep"} if weights is None else {}
            message = Message(Kind.METRICS if weights is None else Kind.WEIGHTS, site, round, self.rounds, self.seed)
            messages[site] = replace(
                message, tensors=dict(weights or {}), extra={"split": split, "model": model, **purpose}
            )
        scores, reasons, failed, self.expected = collect_scores(self.transport, messages, self.classes)
        if model != "current":
            self.failed |= {site: reasons[site] for site in failed if site in self.sites}
        return scores, reasons

    def of_model(self, name: str, round: int, known: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """``{"sites", "unseen"}``, scores by split, of the model called ``name``, which is that of ``round``.

        Args:
            name: ``best`` or ``last``.
            round: whose model it is.
            known: validation scores by site in the round's record; these sites are not asked for them again.
        """
        sites, unseen = self._tables(name, round, self.sites, self.splits, known or {}), {}
        if self.strategy.global_weights:
            unseen = self._tables(name, round, self.unseen, ("test",), {})
        return {"sites": sites, "unseen": {site: scores for site, scores in unseen.items() if scores["test"]}}

    def _tables(
        self,
        name: str,
        round: int,
        sites: Sequence[str],
        splits: Sequence[str],
        known: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, dict[str, Any]]:
        tables: dict[str, dict[str, Any]] = {site: {} for site in sites}
        for split in splits:
            have = {site: dict(known[site]) for site in sites if site in known} if split == "validation" else {}
            asked = [site for site in sites if site not in have]
            scores, reasons = self.scores(split, round=round, model=name, sites=asked) if asked else ({}, {})
            scores = {**have, **scores}
            log_unscored(reasons, f"{split} scores of the {name} model")
            for site, reason in reasons.items():
                if reason.startswith(WITHHELD):
                    self.withheld[site, split] = reason
            for site in sites:
                tables[site][split] = scores.get(site)
        return tables
