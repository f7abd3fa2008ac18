"""The server's loop: rounds of training, aggregation and evaluation, stored in a run folder and resumed from there.

Scores that a round's record already has for a model are not computed again at the end, since weights, images and their
order are the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import AGAIN, DISK_FULL, Problem, Problems, Stopped, is_out_of_memory
from samfed_monai.federation.evaluation import Evaluation
from samfed_monai.federation.progress import Clock, Progress
from samfed_monai.federation.round_store import START, RoundRecords
from samfed_monai.federation.run_folder import (
    RunFolder,
    against_start,
    best_round,
    calibration_of,
    round_line,
    round_record,
    site_record,
    total_traffic,
)
from samfed_monai.federation.signals import Interrupted, Terminated, Termination
from samfed_monai.metrics.quality import Calibration
from samfed_monai.privacy.noise import CentralNoise
from samfed_monai.privacy.secure_aggregation import BelowThreshold, OtherMembers, SecureServer
from samfed_monai.protocol.compression import Compression, Sender, Step
from samfed_monai.protocol.guard import Counts
from samfed_monai.protocol.message import Kind, Message, MessageRefused
from samfed_monai.protocol.strategy import Strategy
from samfed_monai.protocol.transport import Failure, Inbox, SentWeights, Task, Transport, scrub

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


def quorum_of(sites: int, quorum: int | None, *, allow_single_site: bool) -> int:
    """Number of answers that a round needs: ``quorum``, else more than half; at least 2 unless one site is allowed."""
    least = 1 if allow_single_site else 2
    return max(least, sites // 2 + 1 if quorum is None else quorum)


def quorum_problems(sites: int, quorum: int | None, *, allow_single_site: bool) -> list[Problem]:
    """What is wrong with ``quorum`` for this many sites: one site without ``allow_single_site``, or out of range."""
    if sites < quorum_of(1, 1, allow_single_site=allow_single_site):
        hint = "`--allow_single_site true` (in Python allow_single_site=True) says that this is meant"
        return [
            Problem("sites", found=str(sites), expected="at least 2, so that no update is averaged alone", hint=hint)
        ]
    if quorum is not None and not 1 <= quorum <= sites:
        expected = f"a number from 1 to {sites}, the number of sites"
        return [Problem("quorum", found=str(quorum), expected=expected)]
    return []


def ask_all(
    transport: Transport, task: Task, messages: Mapping[str, Message], *, least: int | None
) -> dict[str, Message]:
    """Sends each site a task before round 0 and returns the answers of the sites that can take part.

    Args:
        transport: carries messages.
        task: what the sites do.
        messages: site to message.
        least: number of answers that is enough for a resumed run, in which a site may be away for a while; ``None``
            needs all.

    Raises:
        Refused: a site cannot take part, or too few answered; every site's reasons at once.
    """
    if not messages:
        return {}
    rounds = {message.round for message in messages.values()}
    inbox = Inbox(round=min(rounds), sites=messages, like=None, kind=Kind.METRICS)
    replies = transport.send_and_receive(
        task, messages, quorum=least or len(messages), on_reply=inbox.check, max_bytes=inbox.max_bytes
    )
    failures = {site: reply.reason for site, reply in sorted(replies.items()) if isinstance(reply, Failure)}
    agreed = {site: reply for site, reply in replies.items() if isinstance(reply, Message)}
    if least is not None and len(agreed) >= least:
        for site, reason in failures.items():
            logger.warning("%s does not take part for now: %s", site, reason)
        return agreed
    problems = Problems()
    for site, reason in failures.items():
        problems.add(site, found=reason, expected="a site that can take part")
    problems.refuse_if_any()
    return agreed


BELOW_START = 3
"""Rounds in a row that score less than the network that the run began with, after which the log says so."""
_BELOW = (
    "{} rounds in a row score less than the network that the run began with: what the sites learn from may mislead "
    "them. If no round is better, the run's model is that network."
)

ACTIVITIES = ("training", "server", "controller", "evaluation")


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run.

    Args:
        models: ``best`` and ``last``, each ``{"round", "sha256", "sites": {site: {split: scores}}, "unseen": {site:
            {split: scores}}}``.
        records: ``round.json`` of every round, read from disk when asked for.
        traffic: ``up_bytes`` and ``down_bytes`` of all rounds and of the evaluation.
        seconds: ``training``, ``server`` (what a server trains itself), ``controller`` and ``evaluation``, over all
            rounds and the evaluation.
        withheld: (site, split) to the reason why a site did not send its scores of the two models.
        calibration: of the best model's estimates; ``None`` where too few validation images say anything of them.
        against_start: see :func:`samfed_monai.federation.run_folder.against_start`.
    """

    models: dict[str, dict[str, Any]]
    records: RoundRecords
    traffic: dict[str, int]
    seconds: dict[str, float]
    withheld: dict[tuple[str, str], str] = field(default_factory=dict)
    calibration: Calibration | None = None
    against_start: dict[str, Any] | None = None


class RoundController:
    """Runs a federation; the same class on every transport.

    A round: the strategy's messages are sent, answers are checked and aggregated as they arrive, the aggregated model
    (or each site's own network, where sites keep one) is validated at every site, and the round is stored. A site that
    fails, or whose answer is refused, is left out, with the reason in the record, as long as the quorum is met. After
    the last round the best model (mean validation Dice over all images) and the last one are evaluated on test images,
    at every site and at hospitals that took no part. Where both are one model, it is evaluated once, as best. With
    ``score_start`` the network that the run begins with is scored as a round is, and is the best model where no round
    is better: what sites learn from may mislead them.

    Args:
        transport: carries messages.
        strategy: aggregates the answers.
        folder: an open run folder.
        rounds: number of rounds.
        seed: the run's seed, sent to the sites.
        quorum: answers that a round needs; ``None`` needs more than half of the sites.
        timeout: seconds that a round's training may take; ``None`` waits.
        allow_single_site: permits rounds with the update of one site, which the aggregate then equals (fault 61).
        splits: splits on which the best and the last model are evaluated.
        unseen: sites of the transport that take no part; the server's model is evaluated on their test images.
        classes: names of the classes, for the scores by class.
        skip_empty: whether sites leave images with an empty mask out of HD95, so that averages can weigh it.
        progress: where progress is shown; ``None`` shows it on a terminal only.
        on_round: called with the records of all rounds after each that is stored; it must not raise.
        counts: numbers of training images that sites reported before round 0; ``None`` takes those of their first
            updates.
        central: central differential privacy, which gives the strategy the noisy mean in place of the answers.
        secure: secure aggregation, which gives the strategy the mean of masked updates; ``None``: sites send weights.
        score_start: whether the strategy's first weights are a trained model for all sites.
        compression: how weights travel; the model of a round is then what sites make of its compressed step. ``None``
            sends whole weights.

    Raises:
        Refused: no rounds, a quorum that the sites cannot reach, or one site without ``allow_single_site``; in
            :meth:`run`, before round 0, sites that cannot take part (another public set).
    """

    def __init__(
        self,
        *,
        transport: Transport,
        strategy: Strategy,
        folder: RunFolder,
        rounds: int,
        seed: int = 0,
        quorum: int | None = None,
        timeout: float | None = None,
        allow_single_site: bool = False,
        splits: tuple[str, ...] = ("validation", "test"),
        unseen: Iterable[str] = (),
        classes: Sequence[str] = (),
        skip_empty: bool = False,
        progress: Progress | None = None,
        on_round: Callable[[Sequence[Mapping[str, Any]]], None] = lambda _: None,
        counts: Counts | None = None,
        central: CentralNoise | None = None,
        secure: SecureServer | None = None,
        score_start: bool = False,
        compression: Compression | None = None,
    ) -> None:
        self.central, self.secure, self.score_start = central, secure, score_start
        self.sender = None if compression is None else Sender(compression)
        #: Of the transport; one that has none sends whole models to sites.
        self.sent: SentWeights = getattr(transport, "sent", None) or SentWeights()
        self.on_round, self.counts = on_round, counts or Counts({})
        self.transport, self.strategy, self.folder = transport, strategy, folder
        self.rounds, self.seed, self.timeout = rounds, seed, timeout
        self.progress = progress or Progress()
        self.unseen = tuple(sorted(unseen))
        self.sites = tuple(site for site in transport.sites if site not in self.unseen)
        self.evaluation = Evaluation(
            transport=transport,
            strategy=strategy,
            sites=self.sites,
            unseen=self.unseen,
            splits=splits,
            rounds=rounds,
            seed=seed,
            classes=classes,
        )
        self.skip_empty, self._writing = skip_empty, 0.0
        self.quorum = quorum_of(len(self.sites), quorum, allow_single_site=allow_single_site)
        problems = Problems()
        if rounds < 1:
            problems.add("rounds", found=str(rounds), expected="at least 1")
        problems.extend(quorum_problems(len(self.sites), quorum, allow_single_site=allow_single_site))
        problems.refuse_if_any()

    def run(self) -> RunResult:
        """Runs what is left of the rounds, and the evaluation.

        Raises:
            Stopped: below quorum (fault 47), disk full (49), out of memory (50), SIGTERM (53); the rounds that were
                stored stay.
            Interrupted: Ctrl-C; likewise.
        """
        try:
            with Termination() as termination:
                self._check_requirements()
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
            raise Interrupted(f"interrupted; {self._kept()}", AGAIN) from None
        except Terminated:
            raise Stopped(f"asked to end (SIGTERM); {self._kept()}", AGAIN) from None
        except (OSError, MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                resume = f"give it more memory, or a smaller batch_size or image_size, then {AGAIN}"
                raise Stopped(f"memory ran out at the server; {self._kept()}", resume) from error
            if not isinstance(error, OSError) or error.errno not in DISK_FULL:
                raise
            resume = f"make room, then {AGAIN}"
            raise Stopped(f"the disk is full ({self.folder.path}); {self._kept()}", resume) from error

    def _check_requirements(self) -> None:
        requirements = self.strategy.requirements()
        if not requirements:
            return
        messages = {
            site: Message(Kind.METRICS, site, 0, self.rounds, self.seed, extra=requirements) for site in self.sites
        }
        going_on = bool(self.folder.store.rounds())
        ask_all(self.transport, Task.CHECK, messages, least=self.quorum if going_on else None)

    def _resume(self) -> RoundRecords:
        stored = self.folder.store.latest()
        if stored is None:
            return RoundRecords(self.folder.store)
        self._load_round(stored.round)
        logger.info("going on after round %d of %d", stored.round + 1, self.rounds)
        return self.folder.store.records(stored.round)

    def _load_round(self, round: int) -> None:
        store = self.folder.store
        state = store.server_state(round)
        if self.sender is not None:
            state = self.sender.load_state_dict(state)
        self.strategy.load_state_dict(store.weights(round), state)
        if self.central is not None:
            self.central.load_state_dict(state)
        self.transport.load_state(store.clients(round))

    def _score_start(self, termination: Termination) -> None:
        """Scores and stores the network that the first round begins with."""
        clock = self._clock()
        nothing = {site: Message(Kind.METRICS, site, 0, self.rounds, self.seed) for site in self.sites}
        sites = self._scored(0, nothing, clock)
        with termination.deferred():
            record = round_record(START, self.rounds, sites, dict(clock.seconds), skip_empty=self.skip_empty)
            self.folder.store.write(START, self.strategy.global_weights, record, server_state=self._server_state())
            logger.info("%s", round_line(record))

    def _scored(self, round: int, replies: Mapping[str, Message | Failure], clock: Clock) -> dict[str, dict[str, Any]]:
        """Has sites score the model; the part of each in the record of a round, with its answer to TRAIN."""
        with clock("evaluation"):
            scores, unscored = self.evaluation.scores("validation", round=round)
        traffic, expected = self.transport.take_traffic(), self.evaluation.expected
        return {
            site: site_record(
                reply, scores.get(site), unscored.get(site), traffic.get(site), expected=expected.get(site)
            )
            for site, reply in replies.items()
        }

    def _server_state(self) -> dict[str, Tensor]:
        parts = (self.strategy, self.central, self.sender)
        return {name: tensor for part in parts if part is not None for name, tensor in part.state_dict().items()}

    def _round(self, round: int, records: RoundRecords, termination: Termination) -> None:
        """One round, from what sites are sent to its record on disk, which is added to ``records``.

        The strategy writes a message for each site; sites train, and each answer is checked and taken in as it comes;
        the strategy makes the mean and may train at the server; sites score the new model on their validation images.
        """
        clock, aggregate = self._clock(), self.secure or self.central or self.strategy
        with clock("controller"):
            messages, before = self.strategy.configure(round), self._copy()
            masked = self.secure is not None  # the answer to TRAIN then has numbers alone; masked weights follow
            like = None if masked else self._expected
            kind = Kind.METRICS if masked else self.strategy.exchange.answer if self.sender is None else Kind.STEP
            inbox = Inbox(round=round, sites=messages, like=like, kind=kind)

            def take(site: str, reply: Message) -> None:
                with clock("controller"):
                    inbox.check(site, reply)
                    reply = self._restored(reply, messages[site])
                    aggregate.take(round, site, self.counts.counted(site, reply))

            with clock("training"):
                replies = self.transport.send_and_receive(
                    Task.TRAIN,
                    messages,
                    quorum=self.quorum,
                    timeout=self.timeout,
                    on_reply=take,
                    max_bytes=inbox.max_bytes,
                )
            failures = {site: reply.reason for site, reply in replies.items() if isinstance(reply, Failure)}
            self._require_quorum(round, len(replies), failures)
            if self.secure is None:
                aggregate.finish(round)
            else:
                with clock("training"):
                    replies |= self._sum_masked_updates(round, self.secure, replies)
                failures = {site: reply.reason for site, reply in replies.items() if isinstance(reply, Failure)}
                if len(failures) < len(replies):  # else the sum was skipped for all, as _sum_masked_updates says
                    self._require_quorum(round, len(replies), failures)
            with clock("server"):
                self.strategy.refine(round)
            self._step(before)
            sites = self._scored(round, {site: replies[site] for site in messages}, clock)
            if self.sender is not None:
                whole = self.sent.take_whole()
                sites = {site: {**entry, "whole_models": whole.get(site, 0)} for site, entry in sites.items()}
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
                self._writing = time.perf_counter() - started
                logger.info("%s", round_line(stored.record))
            if self.folder.rounds_below_start == BELOW_START:
                logger.warning("%s", _BELOW.format(BELOW_START))

    def _expected(self, site: str) -> Mapping[str, Tensor] | None:
        """Names, shapes and dtypes of a site's answer as it travels."""
        like = self.strategy.expected(site)
        return like if self.sender is None or like is None else self.sender.compression.like(like)

    def _restored(self, reply: Message, request: Message) -> Message:
        """A checked answer with the site's weights in place of their difference to the request's, checked once more."""
        like = self.strategy.expected(reply.site)
        if self.sender is None or like is None:
            return reply
        base = {name: request.tensors[name] for name in like if name in request.tensors}
        tensors = self.sender.compression.restored(reply.tensors, base)
        reply = replace(reply, kind=self.strategy.exchange.answer, tensors=tensors)
        reply.check(up=True, like=like, site=request.site, round=request.round)
        return reply

    def _copy(self) -> dict[str, Tensor]:
        """The model that a round begins with, which sites hold once they have its message; empty where none is kept."""
        return {name: tensor.clone() for name, tensor in self.strategy.global_weights.items()} if self.sender else {}

    def _step(self, before: Mapping[str, Tensor]) -> None:
        """Puts in place of the strategy's model what sites make of its step from the model before."""
        if self.sender is not None:
            self.sent.step, model = Step.of(self.sender, self.strategy.global_weights, before)
            self.strategy.global_weights = model

    def _require_quorum(self, round: int, asked: int, failures: Mapping[str, str]) -> None:
        came = asked - len(failures)
        if came < self.quorum:
            raise self._too_few(f"round {round + 1} of {self.rounds}: {came} of {asked} updates", failures)

    def _sum_masked_updates(self, round: int, secure: SecureServer, sites: Iterable[str]) -> dict[str, Failure]:
        """Runs secure aggregation; failures of sites that trained and are not in the sum: all where it is skipped."""
        where = f"round {round + 1} of {self.rounds}"
        try:
            secure.finish(round)
        except BelowThreshold as few:
            raise self._too_few(f"{where}: {few.left} updates to add", few.failures, needed=few.needed) from None
        except OtherMembers as other:
            why = f"the round is left out: {other}; a sum of the others would show that update"
            logger.warning("%s: %s, and the model stays as it was", where, why)
            return {site: Failure(site, why) for site in sites}
        except MessageRefused as refused:
            whose = "the faulty update cannot be identified"
            raise Stopped(
                f"{where}: the sum of the updates is not a model ({scrub(refused)}); {whose}; {self._kept()}",
                AGAIN,
            ) from None
        return secure.dropped

    def _clock(self) -> Clock:
        # a round's record cannot hold the seconds that it takes to write it: they count in the next one
        clock = Clock()
        clock.seconds["controller"], self._writing = self._writing, 0.0
        return clock

    def _result(self, records: RoundRecords) -> RunResult:
        clock, start = self._clock(), self.folder.store.start()
        best = best_round(records, start)
        record = records[best] if best != START or start is None else start
        with clock("evaluation"):
            models = {"best": self._model("best", best, record)}
            one = best == len(records) - 1  # one model, evaluated once
            models["last"] = deepcopy(models["best"]) if one else self._model("last", len(records) - 1, records[-1])
        failed = self.evaluation.failed
        if len(self.sites) - len(failed) < self.quorum:
            scored = len(self.sites) - len(failed)
            raise self._too_few(f"{scored} of {len(self.sites)} sites scored the models", failed)
        begun = [] if start is None else [start]
        traffic = total_traffic(chain(begun, records), self.transport.take_traffic().values())
        seconds = dict.fromkeys(ACTIVITIES, 0.0)
        for each in chain((one["seconds"] for one in chain(begun, records)), [clock.seconds]):  # each file read once
            seconds = {name: spent + each.get(name, 0.0) for name, spent in seconds.items()}
        withheld, quality = dict(self.evaluation.withheld), calibration_of(record)
        return RunResult(models, records, traffic, seconds, withheld, quality, against_start(records, start))

    def _model(self, name: str, round: int, record: Mapping[str, Any]) -> dict[str, Any]:
        self._load_round(round)
        stored = {"round": round, "sha256": record["files"]["global.safetensors"]}
        entries = record["sites"].items()
        known = {site: entry["validation"] for site, entry in entries if entry["validation"]}
        return {**stored, **self.evaluation.of_model(name, max(round, 0), known)}  # of START by round 0

    def _too_few(self, came: str, failures: Mapping[str, str], needed: int | None = None) -> Stopped:
        reasons = "".join(f"\n  - {site}: {reason}" for site, reason in sorted(failures.items()))
        reason = f"{came}, {needed or self.quorum} needed{reasons}\n  {self._kept()}"
        return Stopped(reason, f"fix it, then {AGAIN}")

    def _kept(self) -> str:
        done = len(self.folder.store.rounds())
        return f"{done} of {self.rounds} rounds are kept in {Path(self.folder.path)}"
