"""The server: requests to sites before round 0, the rounds, and the scores of the models at the end.

Scores that a round's record already has for a model are not computed again at the end, since weights, images and their
order are the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

from torch import Tensor

from samfed_monai.core.errors import AGAIN, Problem, Problems, Stopped, machine_failure
from samfed_monai.core.validators import require
from samfed_monai.federation.exchange_object import parts_in
from samfed_monai.federation.progress import Clock, Progress
from samfed_monai.federation.run_folder import (
    START,
    WEIGHTS,
    RoundRecords,
    RunFolder,
    against_start,
    best_round,
    calibration_of,
    round_line,
    round_record,
    site_record,
    total_traffic,
)
from samfed_monai.federation.signals import Interrupted, Terminated, Termination, stopped_by_sigterm
from samfed_monai.metrics.quality import Calibration, groups_in
from samfed_monai.metrics.scores import EMPTY, EXTRAS, NAMES
from samfed_monai.privacy.allowed import EXPECTED, NO_IMAGES, withheld_reason
from samfed_monai.privacy.noise import CentralNoise
from samfed_monai.privacy.secure_aggregation import BelowThreshold, OtherMembers, SecureServer
from samfed_monai.protocol.compression import Compression, Sender, Step
from samfed_monai.protocol.guard import ImageCounts, Inbox
from samfed_monai.protocol.message import Kind, Message, MessageRefused
from samfed_monai.protocol.strategy import Strategy
from samfed_monai.protocol.transport import Failure, SentWeights, Task, Transport, scrub

logger = logging.getLogger(__name__)


def quorum_of(sites: int, quorum: int | None, *, allow_single_site: bool) -> int:
    """Number of replies that a round needs: ``quorum``, else more than half; at least 2 unless one site is allowed."""
    return max(1 if allow_single_site else 2, sites // 2 + 1 if quorum is None else quorum)


def quorum_problems(sites: int, quorum: int | None, *, allow_single_site: bool) -> list[Problem]:
    """Problems of ``quorum`` for this many sites: one site without ``allow_single_site``, or out of range."""
    if sites < quorum_of(1, 1, allow_single_site=allow_single_site):
        hint = "`--allow_single_site true` (in Python allow_single_site=True) allows one site"
        return [Problem("sites", str(sites), "at least 2, so that no update is averaged alone", hint)]
    if quorum is not None and not 1 <= quorum <= sites:
        return [Problem("quorum", found=str(quorum), expected=f"a number from 1 to {sites}, the number of sites")]
    return []


def site_scores(reply: Message, classes: Sequence[str] = ()) -> dict[str, Any]:
    """``{"dice", "iou", "hd95", "n", "empty": {"both", "prediction", "label"}}`` of one site's reply.

    A score or a count that the site did not send is ``None``; sensitivity, precision and area are left out instead.
    HD95 is in pixels at the evaluation size.

    Args:
        reply: the reply.
        classes: names of the classes. With several classes, ``classes`` holds the scores of each. ``volumes`` holds the
            scores of whole volumes.
    """
    scores: dict[str, Any] = {name: reply.metrics.get(name) for name in NAMES}
    # without images no mask is empty
    counts = {side: reply.metrics.get(f"empty_{side}", None if reply.n else 0) for side in EMPTY}
    empty = {side: None if count is None else int(count) for side, count in counts.items()}
    other_scores = {name: reply.metrics[name] for name in EXTRAS if name in reply.metrics}
    return {**scores, "n": reply.n, "empty": empty, **other_scores, **parts_in(reply.metrics, classes)}


def expected_scores(metrics: Mapping[str, float]) -> dict[str, Any] | None:
    """``{"dice", "images", "groups"}`` of one site's reply: the expected Dice of its masks, with or without labels.

    ``groups`` are of labelled images (:class:`samfed_monai.metrics.quality.Group`); ``None`` if nothing was sent.
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


BELOW_START = 3
"""Number of rounds in a row that score less than the initial network before a warning is logged."""
_BELOW = (
    "{} rounds in a row score lower than the initial network: the sites' training targets may be wrong. "
    "If no round is better, the run's model is the initial network."
)

Reasons = dict[str, str]
"""Site to the reason why it sent no reply, or no scores."""

ACTIVITIES = ("training", "server", "controller", "evaluation")


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run.

    Args:
        models: ``best`` and ``last``, each
            ``{"round", "sha256", "sites": {site: {split: scores}}, "unseen": {site: {split: scores}}}``.
        records: ``round.json`` of every round, read from disk on access.
        traffic: ``up_bytes`` and ``down_bytes`` of all rounds and of the evaluation.
        seconds: ``training``, ``server`` (training at the server itself), ``controller`` and ``evaluation``, over all
            rounds and the evaluation.
        withheld: (site, split) to the reason why a site did not send its scores of the two models.
        calibration: of the best model's estimates; ``None`` if there are too few validation images with labels.
        against_start: see :func:`samfed_monai.federation.run_folder.against_start`.
        failed: site to the reason why some or all of its scores of the two models are missing.
    """

    models: dict[str, dict[str, Any]]
    records: RoundRecords
    traffic: dict[str, int]
    seconds: dict[str, float]
    withheld: dict[tuple[str, str], str] = field(default_factory=dict)
    calibration: Calibration | None = None
    against_start: dict[str, Any] | None = None
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class RoundController:
    """Runs a federation; the same class on every transport.

    In a round, the strategy's messages are sent, replies are checked and aggregated as they arrive, the aggregated
    model (or each site's own network, if sites keep one) is validated at every site, and the round is stored. A site
    that fails, or whose reply is refused, is left out, with the reason in the record, as long as the quorum is met.
    After the last round the best model (mean validation Dice over all images) and the last one are evaluated on test
    images, at every site and at unseen hospitals. If both are the same model, it is evaluated once, as best. With
    ``score_start`` the initial network is scored like a round, and is the best model if no round is better, since the
    sites' training targets may mislead them.

    Args:
        transport: carries messages.
        strategy: aggregates the replies.
        folder: an open run folder.
        rounds: number of rounds.
        seed: the run's seed, sent to the sites.
        quorum: number of replies that a round needs; ``None`` needs more than half of the sites.
        timeout: seconds that a round's training may take; ``None`` sets no limit.
        allow_single_site: permits rounds with the update of one site, which the aggregate then equals (fault 61).
        splits: splits on which the best and the last model are evaluated.
        unseen: sites of the transport that do not train; the server's model is evaluated on their test images.
        classes: names of the classes, for the scores by class.
        skip_empty: whether sites leave images with an empty mask out of HD95, so that averages can weigh it.
        progress: progress bars; by default on a terminal only.
        on_round: called with the records of all rounds after each that is stored; it must not raise.
        counts: numbers of training images that sites reported before round 0; by default those of their first updates.
        central: central differential privacy, which gives the strategy the noisy mean in place of the replies.
        secure: secure aggregation, which gives the strategy the mean of masked updates; ``None``: sites send weights.
        compression: encoding of sent weights; the model of a round is then the one that sites compute from its
            compressed step. ``None`` sends whole weights.

    Raises:
        Refused: a quorum that the sites cannot reach, or one site without ``allow_single_site``; in :meth:`run`, before
            round 0, sites that cannot take part (another public set).
    """

    transport: Transport
    strategy: Strategy
    folder: RunFolder
    rounds: int
    seed: int = 0
    quorum: int | None = None
    timeout: float | None = None
    allow_single_site: bool = False
    splits: tuple[str, ...] = ("validation", "test")
    unseen: Sequence[str] = ()
    classes: Sequence[str] = ()
    skip_empty: bool = False
    progress: Progress = field(default_factory=Progress)
    on_round: Callable[[Sequence[Mapping[str, Any]]], None] = lambda _: None
    counts: ImageCounts = field(default_factory=lambda: ImageCounts({}))
    central: CentralNoise | None = None
    secure: SecureServer | None = None
    compression: Compression | None = None
    #: Whether the strategy's first weights are a trained model for all sites.
    score_start: bool = False
    #: Site to :func:`expected_scores` of its last reply to :meth:`scores`.
    expected: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    #: (site, split) to the reason why a site did not send its scores of the best or the last model.
    withheld: dict[tuple[str, str], str] = field(default_factory=dict, init=False)
    #: Sites that failed in the evaluation of the best or the last model, with the last reason.
    failed: dict[str, str] = field(default_factory=dict, init=False)
    _write_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.sites = tuple(site for site in self.transport.sites if site not in self.unseen)
        self.sender = None if self.compression is None else Sender(self.compression)
        #: Of the transport; one without it sends whole models to sites.
        self.sent: SentWeights = getattr(self.transport, "sent", None) or SentWeights()
        #: Number of replies that a round needs.
        self.least = quorum_of(len(self.sites), self.quorum, allow_single_site=self.allow_single_site)
        require(quorum_problems(len(self.sites), self.quorum, allow_single_site=self.allow_single_site))

    def check(self, fingerprints: Callable[[str], Mapping[str, str]]) -> None:
        """Sends each site its ``fingerprints``, to compare with its own.

        Raises:
            Refused: with every difference at every site.
        """
        self.ask(Task.CHECK, {site: self._message(site, extra=dict(fingerprints(site))) for site in self._all_sites})

    def send_teacher(self, tensors: Mapping[str, Tensor], extra: Mapping[str, str]) -> None:
        """Sends the teacher's adapter; each site fills its own soft-mask store before it replies.

        Args:
            tensors, extra: of :func:`samfed_monai.federation.site_teacher.adapter_message`.

        Raises:
            Refused: a site has another SAM, received damaged bytes, or got another teacher.
        """
        fields: dict[str, Any] = {"kind": Kind.ADAPTER, "tensors": dict(tensors), "extra": dict(extra)}
        self.ask(Task.PREPARE, {site: self._message(site, **fields) for site in self._all_sites})

    def send_initial_weights(self, weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, int]:
        """Lets every site build its client; sites in ``weights`` get the part of their network that they keep.

        Returns:
            Site to the number of images that it reports to train on.

        Raises:
            Refused: a site has another network.
        """
        messages = {}
        for site in self._all_sites:
            tensors = dict(weights.get(site, {}))
            messages[site] = self._message(site, kind=Kind.WEIGHTS if tensors else Kind.METRICS, tensors=tensors)
        return {site: reply.n for site, reply in self.ask(Task.PREPARE, messages).items()}

    def teacher_scores(self, splits: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Mean scores of the teacher itself: site to split to a summary, without splits that a site did not score."""
        scores_by_site: dict[str, dict[str, Any]] = {site: {} for site in self._all_sites}
        for split in splits:
            extra = {"split": split, "model": "teacher"}
            messages = {site: self._message(site, extra=extra) for site in self._all_sites}
            scores, failed, withheld = self._collect_scores(messages)
            for site, summary in scores.items():
                scores_by_site[site][split] = summary
            log_unscored(failed | withheld, f"{split} scores of the teacher")
        return scores_by_site

    def ask(self, task: Task, messages: Mapping[str, Message]) -> dict[str, Message]:
        """Sends each site a task before the rounds and returns the replies of the sites that can take part.

        Args:
            task: the task of the sites.
            messages: site to message.

        Raises:
            Refused: a site cannot take part, or, when a run is resumed and sites may be away for a while, fewer than
                the quorum can. All sites' reasons at once.
        """
        resumed = bool(self.folder.store.rounds())
        required = self.least if resumed else len(messages)
        replies, failures = self._replies(task, messages, quorum=required)
        able = [site for site in replies if not (resumed and site in self.unseen)]  # these train nothing
        problems = Problems()
        for site, reason in failures.items():
            if len(able) >= required:
                logger.warning("%s does not take part for now: %s", site, reason)
            else:
                problems.add(site, found=reason, expected="a site that can take part")
        problems.refuse_if_any()
        return replies

    def run(self) -> RunResult:
        """Runs the remaining rounds and the evaluation.

        Raises:
            Stopped: below quorum (fault 47), disk full (49), out of memory (50), SIGTERM (53); stored rounds are kept.
            Interrupted: Ctrl-C; stored rounds are kept.
        """
        try:
            with Termination() as termination:
                if requirements := self.strategy.requirements():
                    self.ask(Task.CHECK, {site: self._message(site, extra=requirements) for site in self.sites})
                records = self._resume()
                if self.score_start and not records and self.folder.store.start() is None:
                    self._score_start(termination)
                self.counts.remember(records)
                self.counts.log_shares()
                with self.progress.rounds(self.rounds, len(records)) as bar:
                    for round in range(len(records), self.rounds):
                        self._round(round, records, termination)
                        self.on_round(records)
                        bar.update()
                return self._result(records)
        except KeyboardInterrupt:
            raise Interrupted("interrupted", AGAIN, self._kept_rounds()) from None
        except Terminated:
            raise stopped_by_sigterm(self._kept_rounds()) from None
        except (OSError, MemoryError, RuntimeError) as error:
            if not isinstance(failure := machine_failure(error), Stopped):
                raise
            raise Stopped(failure.reason, failure.resume, self._kept_rounds()) from error

    def _resume(self) -> RoundRecords:
        stored = self.folder.store.latest()
        if stored is None:
            return RoundRecords(self.folder.store)
        self._load_round(stored["round"])
        logger.info("resuming after round %d of %d", stored["round"] + 1, self.rounds)
        records = self.folder.store.records(stored["round"])
        self.folder.write_table(records)  # it may lack the last round, or end within its row
        return records

    def _load_round(self, round: int) -> None:
        store = self.folder.store
        state = store.server_state(round)
        for part in (self.sender, self.central):  # each removes its own names
            state = state if part is None else part.load_state_dict(state)
        self.strategy.load_state_dict(store.weights(round), state)
        self.transport.load_state(store.clients(round))

    def _score_start(self, termination: Termination) -> None:
        """Scores and stores the network that the first round starts from."""
        clock = self._clock()
        sites = self._entries(0, {site: self._message(site) for site in self.sites}, clock)
        with termination.deferred():
            record = round_record(START, self.rounds, sites, dict(clock.seconds), skip_empty=self.skip_empty)
            self.folder.store.write(START, self.strategy.global_weights, record, server_state=self._server_state())
            logger.info("%s", round_line(record))

    def _entries(self, round: int, replies: Mapping[str, Message | Failure], clock: Clock) -> dict[str, dict[str, Any]]:
        """Lets sites score the model; returns each site's part of a round's record, with its reply to TRAIN."""
        with clock("evaluation"):
            scores, unscored = self.scores("validation", round=round)
        traffic, expected = self.transport.take_traffic(), self.expected
        return {
            site: site_record(reply, scores.get(site), unscored.get(site), traffic.get(site), expected.get(site))
            for site, reply in replies.items()
        }

    def _server_state(self) -> dict[str, Tensor]:
        parts = (self.strategy, self.central, self.sender)
        return {name: tensor for part in parts if part is not None for name, tensor in part.state_dict().items()}

    def _round(self, round: int, records: RoundRecords, termination: Termination) -> None:
        """Runs one round, from messages to sites to its record on disk, which is added to ``records``.

        The strategy writes a message for each site; sites train, and each reply is checked and aggregated as it comes;
        the strategy makes the mean and may train at the server; sites score the new model on their validation images.
        """
        clock, aggregate = self._clock(), self.secure or self.central or self.strategy
        with clock("controller"):
            messages, weights = self.strategy.configure(round), self.strategy.global_weights
            before = {name: tensor.clone() for name, tensor in weights.items()} if self.sender else {}
            masked = self.secure is not None  # the reply to TRAIN then has only numbers; masked weights follow
            kind = self.strategy.exchange.answer if self.sender is None else Kind.STEP
            inbox = Inbox(round=round, sites=messages, like=self._expected_tensors, kind=kind)
            if masked:
                inbox = Inbox(round=round, sites=messages, like=None, kind=Kind.METRICS)

            def take(site: str, reply: Message) -> None:
                with clock("controller"):
                    inbox.check(site, reply)
                    reply = self._decompressed(reply, messages[site])
                    aggregate.take(round, site, self.counts.counted(site, reply))

            with clock("training"):
                replies = self.transport.send_and_receive(
                    Task.TRAIN,
                    messages,
                    quorum=self.least,
                    timeout=self.timeout,
                    on_reply=take,
                    max_bytes=inbox.max_bytes,
                )
            self._require_quorum(round, replies)
            if self.secure is None:
                aggregate.finish(round)
            else:
                trained = [site for site, reply in replies.items() if isinstance(reply, Message)]
                with clock("training"):
                    replies |= self._sum_masked_updates(round, self.secure, trained)
                if any(isinstance(replies[site], Message) for site in trained):  # else it was skipped for all
                    self._require_quorum(round, replies)
            with clock("server"):
                self.strategy.refine(round)
            self._apply_step(before)
            sites = self._entries(round, {site: replies[site] for site in messages}, clock)
            if self.sender is not None:
                whole_models = self.sent.take_whole()
                sites = {site: {**entry, "whole_models": whole_models.get(site, 0)} for site, entry in sites.items()}
            with termination.deferred():
                record = round_record(round, self.rounds, sites, dict(clock.seconds), skip_empty=self.skip_empty)
                started = time.perf_counter()
                stored = self.folder.write_round(
                    self.strategy.global_weights,
                    records,
                    record,
                    self.transport.save_state,
                    server_state=self._server_state(),
                    keep_best_states=self.strategy.keeps_states,
                )
                self._write_seconds = time.perf_counter() - started
                logger.info("%s", round_line(stored))
            if self.folder.bests.below == BELOW_START:
                logger.warning("%s", _BELOW.format(BELOW_START))

    def _expected_tensors(self, site: str) -> Mapping[str, Tensor] | None:
        """Names, shapes and dtypes of a site's reply as it is sent."""
        like = self.strategy.expected(site)
        return like if self.sender is None or like is None else self.sender.compression.like(like)

    def _decompressed(self, reply: Message, request: Message) -> Message:
        """Returns a checked reply with the site's weights in place of their compressed difference, checked again."""
        like = self.strategy.expected(reply.site)
        if self.sender is None or like is None:
            return reply
        base = {name: request.tensors[name] for name in like if name in request.tensors}
        tensors = self.sender.compression.decode(reply.tensors, base)
        reply = replace(reply, kind=self.strategy.exchange.answer, tensors=tensors)
        reply.check(up=True, like=like, site=request.site, round=request.round)
        return reply

    def _apply_step(self, before: Mapping[str, Tensor]) -> None:
        """Replaces the strategy's model by the one that sites compute from its step from the model before."""
        if self.sender is not None:
            self.sent.step, model = Step.of(self.sender, self.strategy.global_weights, before)
            self.strategy.global_weights = model

    def _require_quorum(self, round: int, replies: Mapping[str, Message | Failure]) -> None:
        failures = {site: reply.reason for site, reply in replies.items() if isinstance(reply, Failure)}
        if (count := len(replies) - len(failures)) < self.least:
            raise self._too_few(f"round {round + 1} of {self.rounds}: {count} of {len(replies)} updates", failures)

    def _sum_masked_updates(self, round: int, secure: SecureServer, sites: Iterable[str]) -> dict[str, Failure]:
        """Runs secure aggregation; returns failures of trained ``sites`` not in the sum: all if it is skipped."""
        where = f"round {round + 1} of {self.rounds}"
        try:
            secure.finish(round)
        except BelowThreshold as few:
            raise self._too_few(f"{where}: {few.left} updates to add", few.failures, needed=few.needed) from None
        except OtherMembers as error:
            reason = f"the round is skipped: {error}; a sum of the others would reveal that update"
            logger.warning("%s: %s; the model is unchanged", where, reason)
            return {site: Failure(site, reason) for site in sites}
        except MessageRefused as error:
            reason = f"the sum of the updates is not a model ({scrub(error)}); the faulty update cannot be identified"
            raise Stopped(f"{where}: {reason}", AGAIN, self._kept_rounds()) from None
        return secure.dropped

    def _clock(self) -> Clock:
        # a round's record cannot include the seconds of writing it: they count in the next one
        clock = Clock()
        clock.seconds["controller"], self._write_seconds = self._write_seconds, 0.0
        return clock

    def _result(self, records: RoundRecords) -> RunResult:
        clock, start = self._clock(), self.folder.store.start()
        best = best_round(records, start)
        record = records[best] if best != START or start is None else start
        with clock("evaluation"):
            models = {"best": self._model_results("best", best, record)}
            last = len(records) - 1
            same = best == last  # one model, evaluated once
            models["last"] = deepcopy(models["best"]) if same else self._model_results("last", last, records[-1])
        failed = {site: reason for site, reason in self.failed.items() if site in self.sites}
        if (scored := len(self.sites) - len(failed)) < self.least:
            raise self._too_few(f"{scored} of {len(self.sites)} sites scored the models", failed)
        start_records = [] if start is None else [start]
        traffic = total_traffic(chain(start_records, records), self.transport.take_traffic().values())
        seconds = dict.fromkeys(ACTIVITIES, 0.0)
        seconds_of_rounds = (stored["seconds"] for stored in chain(start_records, records))  # each file is read once
        for spent in chain(seconds_of_rounds, [clock.seconds]):
            seconds = {name: total + spent.get(name, 0.0) for name, total in seconds.items()}
        calibration, start_comparison = calibration_of(record), against_start(records, start)
        return RunResult(models, records, traffic, seconds, self.withheld, calibration, start_comparison, self.failed)

    def _model_results(self, name: str, round: int, record: Mapping[str, Any]) -> dict[str, Any]:
        self._load_round(round)
        known = {site: entry["validation"] for site, entry in record["sites"].items() if entry["validation"]}
        # START is scored as round 0
        return {"round": round, "sha256": record["files"][WEIGHTS], **self.scores_of(name, max(round, 0), known)}

    def scores_of(self, name: str, round: int, known: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """``{"sites", "unseen"}``, scores by split, of the model called ``name``, which is that of ``round``.

        Args:
            name: ``best`` or ``last``.
            round: of the model, which is loaded.
            known: validation scores by site in the round's record; these sites are not asked for them again.
        """
        tables: dict[str, dict[str, Any]] = {site: {} for site in (*self.sites, *self.unseen)}
        for split in self.splits:
            known_scores = dict(known or {}) if split == "validation" else {}
            tested_only = self.unseen if split == "test" and self.strategy.global_weights else ()
            requested = [site for site in (*self.sites, *tested_only) if site not in known_scores]
            scores, reasons = self.scores(split, round=round, model=name, sites=requested)
            log_unscored(reasons, f"{split} scores of the {name} model")
            for site in (*self.sites, *tested_only):
                tables[site][split] = {**known_scores, **scores}.get(site)
        unseen = {site: tables[site] for site in self.unseen if tables[site].get("test")}
        return {"sites": {site: tables[site] for site in self.sites}, "unseen": unseen}

    def scores(
        self, split: str, *, round: int, model: str = "current", sites: Iterable[str] | None = None
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Scores by site of the strategy's model or of sites' own networks, and the reasons of sites that sent none.

        Args:
            split: ``validation`` or ``test``.
            round: of the model.
            model: its name: ``current``, ``best`` or ``last``; sites keep tables of the last two.
            sites: names of sites; ``None`` is all that train.
        """
        messages = {}
        for site in self.sites if sites is None else sites:
            weights, extra = self.strategy.evaluation(site), {"split": split, "model": model}
            if weights is None:
                messages[site] = self._message(site, round=round, extra={**extra, "purpose": "keep"})
            else:
                messages[site] = self._message(site, Kind.WEIGHTS, round, tensors=dict(weights), extra=extra)
        scores, failed, withheld = self._collect_scores(messages)
        if model != "current":
            self.failed |= failed
            self.withheld |= {(site, split): reason for site, reason in withheld.items() if reason != NO_IMAGES}
        return scores, failed | withheld

    def _collect_scores(self, messages: Mapping[str, Message]) -> tuple[dict[str, dict[str, Any]], Reasons, Reasons]:
        """Scores by site, reasons of sites that failed (which does not end the run), and of sites that sent none."""
        if not messages:
            return {}, {}, {}
        replies, failures = self._replies(Task.EVALUATE, messages, quorum=0)
        withheld = {site: reason for site, reply in replies.items() if (reason := withheld_reason(reply)) is not None}
        expected = {site: expected_scores(reply.metrics) for site, reply in replies.items()}
        self.expected = {site: summary for site, summary in expected.items() if summary}
        scores = {site: site_scores(reply, self.classes) for site, reply in replies.items() if site not in withheld}
        return scores, failures, withheld

    def _replies(self, task: Task, messages: Mapping[str, Message], quorum: int) -> tuple[dict[str, Message], Reasons]:
        """Replies that hold only numbers, and reasons why other sites sent none, in the order of sites."""
        inbox = Inbox(round=next(iter(messages.values())).round, sites=messages, like=None, kind=Kind.METRICS)
        options: dict[str, Any] = {"on_reply": inbox.check, "max_bytes": inbox.max_bytes}
        replies = sorted(self.transport.send_and_receive(task, messages, quorum=quorum, **options).items())
        failures = {site: reply.reason for site, reply in replies if isinstance(reply, Failure)}
        return {site: reply for site, reply in replies if isinstance(reply, Message)}, failures

    @property
    def _all_sites(self) -> tuple[str, ...]:
        return tuple(sorted((*self.sites, *self.unseen)))

    def _message(self, site: str, kind: Kind = Kind.METRICS, round: int = 0, **fields: Any) -> Message:
        return Message(kind, site, round, self.rounds, self.seed, **fields)

    def _too_few(self, received: str, failures: Mapping[str, str], needed: int | None = None) -> Stopped:
        reasons = "".join(f"\n  - {site}: {reason}" for site, reason in sorted(failures.items()))
        reason = f"{received}, {needed or self.least} needed{reasons}\n  {self._kept_rounds()}"
        return Stopped(reason, f"fix the problem, then {AGAIN}")

    def _kept_rounds(self) -> str:
        return f"{len(self.folder.store.rounds())} of {self.rounds} rounds are kept in {self.folder.path}"
