"""The filter that every outgoing message of a site passes, on every transport."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problem, Problems
from samfed_monai.core.validators import require
from samfed_monai.networks.key_patterns import KeySplit
from samfed_monai.privacy.accounting import PrivacyLedger, count_releases, epsilon_of
from samfed_monai.privacy.allowed import (
    EFFORT,
    OWN_NETWORK,
    WITHHELD,
    Allowed,
    seen_problems,
    statistic_problems,
    statistics_problems,
    tensor_problems,
    undeclared_parts,
    withhold_small,
    without_scores,
)
from samfed_monai.privacy.audit import AuditLog
from samfed_monai.privacy.noise import Noise, SystemNoise, noisy_masks, noisy_update
from samfed_monai.privacy.rules import DifferentialPrivacy, Privacy, forbidden_problems, too_few_problem
from samfed_monai.privacy.secure_aggregation import STEPS
from samfed_monai.protocol.compression import Sender
from samfed_monai.protocol.message import METRIC_NAMES, STATISTICS, VERSION, Kind, Message, MessageRefused, wire_size
from samfed_monai.protocol.statistics import StatisticKind, StatisticRule, limited, split_statistics, with_statistics
from samfed_monai.protocol.transport import Task, scrub

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.config.method import Method


#: Maximum bytes of a message beside its tensors: names, shapes and the header.
_HEADER_BYTES = 1024**2
#: Maximum number of metrics, more than any bundle's terms need.
_MOST_METRICS = 160
#: Maximum number of evaluations of one round that leave a site: its own and those of the best and the last model are
#: at most seven, including the teacher's; the rest is for runs that were restarted in between.
MOST_EVALUATIONS = 32
#: Maximum number of trainings of one round whose update leaves a site: one, and more for a server that was restarted in
#: between. Each is an update from weights that the server chose.
MOST_TRAININGS = 32
_ECHOED = ("site", "round", "rounds", "seed")
_KINDS = {
    Task.CHECK: frozenset({Kind.METRICS}),
    Task.PREPARE: frozenset({Kind.ADAPTER, Kind.WEIGHTS, Kind.METRICS}),
    Task.TRAIN: frozenset({Kind.WEIGHTS, Kind.SOFT_MASKS, Kind.PROTOTYPES, Kind.METRICS}),
    Task.EVALUATE: frozenset({Kind.WEIGHTS, Kind.METRICS}),
    **dict.fromkeys(STEPS, frozenset({Kind.SECURE})),
}
"""Kinds of messages that a request of each task may have."""


@dataclass(eq=False)
class ReleaseFilter:
    """``release(task, request, reply)`` returns what of ``reply`` may leave, or raises :class:`MessageRefused`.

    In this order: the reply is compared with the allow-list (kind, names, shapes, dtypes, size; site, round and seed
    must be those of the request) and with the method's declaration (:func:`undeclared_parts`), small counts are
    withheld, noise is added if the run has it, weights are compressed if the plan says so, and a line is written to the
    audit file. Anything that is not on the list is refused, and its name or value is not repeated. A message whose line
    cannot be written does not leave. :meth:`require_answerable` checks the request, before the site works on it.

    Args:
        site: the site's name.
        allowed: returns the current allow-list; called for each reply to a training, since a client's network is built
            late.
        privacy: the run's settings.
        folder: the site's own folder, for ``audit.jsonl``; ``None`` writes to the logger only.
        ledger: the site's own budget over all of its runs; ``None`` if it has none.
        method: the declaration of the method in use; ``None`` checks ``allowed`` only.
        rounds: number of rounds of the plan; requests of other rounds, or of a run of another length, are refused.
            ``None`` accepts any.
        least_seen: number of different images that a site must have trained on in a round for its results to leave; its
            own setting, since short rounds of small batches are common where nothing is private. With fewer, a reply
            with tensors is refused, and one without is sent without the means of its terms.
        noise: draws from the standard normal distribution; a seed is for tests, and no JSON can set one.
        sender: compresses weights, as the last step; ``None`` sends them uncompressed.
    """

    site: str
    _: KW_ONLY
    allowed: Callable[[], Allowed]
    privacy: Privacy = field(default_factory=Privacy)
    folder: str | Path | None = None
    ledger: PrivacyLedger | None = None
    method: Method | None = None
    rounds: int | None = None
    least_seen: int = 1
    noise: Noise = field(default_factory=SystemNoise)
    sender: Sender | None = None

    def __post_init__(self) -> None:
        self.audit = AuditLog(self.folder)
        #: Messages sent by this site in this run by noise multiplier, including those before a restart.
        self.releases = count_releases(self.audit.path, _noise_of)
        #: Evaluations and trainings sent by round, including those before a restart.
        self.evaluations = self.audit.count_sent(Task.EVALUATE.value)
        self.trainings = self.audit.count_sent(Task.TRAIN.value)

    def __call__(self, task: Task, request: Message, reply: Message) -> Message:
        """Returns the message that may leave in reply to ``request``.

        Raises:
            MessageRefused: nothing of it may leave; the text of the error may be sent.
            OSError: the audit file could not be written.
        """
        record: dict[str, Any] = {}
        try:
            scored = self.privacy.differential_privacy is not None and task == Task.EVALUATE
            trained = task == Task.TRAIN or getattr(reply, "tensors", None)
            allowed = self.allowed() if trained or scored else Allowed()
            self._check(task, request, reply, allowed)
            message = withhold_small(reply, self.privacy.least_images)
            has_means = task == Task.TRAIN and not message.tensors and message.metrics.keys() - EFFORT
            if has_means and self._seen_problems(message, allowed):
                message = replace(without_scores(message, str(self.privacy.least_images)), n=message.n)
            message = self._noisy(task, request, message, allowed, record)
            message = self._with_rule(message, allowed, record)
            if self.sender is not None and message.kind == Kind.WEIGHTS and message.tensors:
                step, _ = self.sender.encode(message.tensors, request.tensors)
                message = replace(message, kind=Kind.STEP, tensors=step)
            content = _content(message)
        except MessageRefused as refused:
            self._write(task, request, outcome="refused", problems=[str(each) for each in refused.problems])
            raise
        except Exception as error:  # of the ledger's disk, for instance
            self.write_failure(task, request, error)
            raise
        masked = self.privacy.secure_aggregation is not None and bool(message.tensors)
        self._write(task, request, outcome="masked" if masked else "sent", **{**content, "noise": None, **record})
        self.evaluations[request.round] += task == Task.EVALUATE
        self.trainings[request.round] += task == Task.TRAIN
        return message

    def write_secure_step(self, task: Task, request: Message, reply: Message) -> Message:
        """Writes a line for a step of secure aggregation; the filter passed its content after the training."""
        self._write(task, request, outcome="sent", **_content(reply), noise=None)
        return reply

    def require_statistics(self) -> None:
        """Refuses before round 0 running statistics of too few images, which every round would refuse.

        Raises:
            MessageRefused: see :func:`statistics_problems`.
        """
        require(self._statistics_problems(self.allowed()), error=MessageRefused)

    def require_answerable(self, task: Task, request: Message) -> None:
        """Refuses, before any computation, an invalid request by its header, and one to which no reply may leave.

        Raises:
            MessageRefused: another version, kind, site or round; numbers, words or a count that no request has; a round
                with too many replies.
        """
        problems = Problems()
        with problems.collected():
            replace(request, tensors={}).check(up=False, site=self.site)
        kinds, round, rounds = ", ".join(sorted(kind.value for kind in _KINDS[task])), request.round, self.rounds
        planned = rounds is None or (request.rounds == rounds and type(round) is int and 0 <= round < rounds)
        for wrong, part, found, expected in (
            (request.kind not in _KINDS[task], "kind", Kind(request.kind).value, f"one of {kinds} for {task.value}"),
            (not planned, "round", "a round outside the plan", f"one of {rounds} rounds"),
            (request.metrics, "metrics", "numbers", "no metrics in a request"),
            (request.n, "n", "another number", "0 in a request"),
            (WITHHELD in request.extra, "extra", WITHHELD, "words that a server may send"),
        ):
            if wrong:
                problems.add(f"message -> {part}", found=found, expected=expected)
        for limited_task, what, counts, most in (
            (Task.EVALUATE, "evaluations", self.evaluations, MOST_EVALUATIONS),
            (Task.TRAIN, "trainings", self.trainings, MOST_TRAININGS),
        ):
            if task == limited_task and planned and counts[round] >= most:
                problems.add(what, "one more", f"at most {most} in a round", "start a new run with another name")
        require(problems, error=MessageRefused)

    def _statistics_problems(self, allowed: Allowed) -> list[Problem]:
        has_noise = self.privacy.differential_privacy is not None  # statistics are then sent back as received
        return [] if has_noise else statistics_problems(allowed, self.privacy.least_images)

    def _seen_problems(self, reply: Message, allowed: Allowed) -> list[Problem]:
        return seen_problems(allowed, self.least_seen, self.privacy.least_images, reply.metrics.get("iterations", 0))

    def write_split(self, split: KeySplit) -> None:
        """Writes a line about the parts of this site's network that may leave, unless it may leave as a whole."""
        if split.personal or split.frozen:
            parts = {"shared": len(split.shared), "personal": len(split.personal), "frozen": len(split.frozen)}
            names = _names_hash(split.shared)
            line = {"site": self.site, "round": None, "task": None, "outcome": "declared", "kind": Kind.WEIGHTS.value}
            self.audit.write({**line, "tensors": len(split.shared), "names_sha256": names, **parts})

    def write_failure(self, task: Task, request: Message, error: Exception) -> None:
        """Writes a line about a failed request, with the error text that may leave."""
        self._write(task, request, outcome="failed", problems=[scrub(error)])

    def _write(self, task: Task, request: Message, **record: Any) -> None:
        self.audit.write({"site": self.site, "round": request.round, "task": Task(task).value, **record})

    def _check(self, task: Task, request: Message, reply: Message, allowed: Allowed) -> None:
        if not isinstance(reply, Message):
            raise MessageRefused([Problem("message", "another type", "a Message")])
        self.require_answerable(task, request)  # again: requests that were answered meanwhile count
        problems = _header_problems(request, reply)
        if reply.tensors and task != Task.TRAIN:
            problems.add("message -> tensors", "tensors without training", "metrics only")
        weights, statistics = _split(reply)
        problems.extend(tensor_problems(replace(reply, tensors=weights) if statistics else reply, allowed))
        requested_statistic = request.extra.get(STATISTICS)
        problems.extend(statistic_problems(statistics, requested_statistic, allowed, self.privacy, self.method))
        if reply.tensors and reply.kind == Kind.PROTOTYPES and not len(problems):
            problems.extend(self._prototype_problems(reply))
        if reply.tensors:
            problems.extend(self._statistics_problems(allowed) if reply.kind == Kind.WEIGHTS else ())
            problems.extend(self._seen_problems(reply, allowed))
        require(problems or undeclared_parts(reply, self.method), error=MessageRefused)

    def _noisy(self, task: Task, request: Message, reply: Message, allowed: Allowed, record: dict[str, Any]) -> Message:
        settings = self.privacy.differential_privacy
        if settings is not None and task == Task.EVALUATE and allowed.keeps_part:
            return without_scores(reply, OWN_NETWORK)  # scores of a network without noise
        if settings is None or task != Task.TRAIN:
            return reply
        # means of loss terms are statistics of the training images, without noise
        reply = replace(reply, metrics={name: value for name, value in reply.metrics.items() if name in EFFORT})
        if not reply.tensors:
            return reply
        self._require_budget(settings)
        clip, multiplier = settings.clip, settings.noise_multiplier
        arguments: dict[str, Any] = {"clip": clip, "noise_multiplier": multiplier, "noise": self.noise}
        deviation = 2.0 * clip * multiplier
        if reply.kind == Kind.WEIGHTS:
            tensors = noisy_update(reply.tensors, request.tensors, learned=sorted(allowed.learned), **arguments)
        elif reply.kind == Kind.SOFT_MASKS and len(reply.tensors) == 1:
            ((name, masks),) = reply.tensors.items()
            tensors = {name: noisy_masks(masks, request.tensors.get(name), **arguments)}
            deviation *= len(masks) ** 0.5
        else:
            expected = "weights or soft masks, to which noise can be added"
            raise MessageRefused([Problem("differential privacy", Kind(reply.kind).value, expected)])
        if self.ledger is not None:
            self.ledger.enter(settings.noise_multiplier, settings.delta)
        return self._release(replace(reply, tensors=tensors), deviation, settings, record)

    def _release(self, reply: Message, deviation: float, used: DifferentialPrivacy, record: dict[str, Any]) -> Message:
        """Counts a reply whose tensors have noise as one more release."""
        self.releases[used.noise_multiplier] += 1
        count = self.releases.total()
        record["noise"] = {"deviation": deviation, **asdict(used), "release": count}
        return replace(reply, metrics={**reply.metrics, "releases": count})

    def _prototype_problems(self, reply: Message) -> list[Problem]:
        rule = self.privacy.rule(StatisticKind.PROTOTYPES)
        if rule is None:
            return forbidden_problems(StatisticKind.PROTOTYPES, self.privacy, None)
        if reply.n >= max(rule.least_images, 1) or reply.n < self.privacy.least_images:  # the latter: withhold_small
            return []
        return [too_few_problem("message -> n", f"prototypes from at least {rule.least_images} images")]

    def _with_rule(self, reply: Message, allowed: Allowed, record: dict[str, Any]) -> Message:
        """Applies the rule of its statistic to a reply."""
        weights, statistics = _split(reply)
        if reply.kind == Kind.PROTOTYPES and reply.tensors:
            kind, statistic, statistics = StatisticKind.PROTOTYPES, None, reply.tensors
        elif statistics and allowed.statistic is not None:
            kind, statistic = allowed.statistic.kind, allowed.statistic
        else:
            return reply
        rule = self.privacy.rule(kind) or StatisticRule()
        images = reply.n if statistic is None else statistic.images(rule.least_images)
        limits = {"clip": rule.clip, "noise_multiplier": rule.noise_multiplier}
        record["statistics"] = {"kind": kind.value, "images": images, **limits}
        tensors, deviation = limited(statistics, rule, noise=self.noise)  # also checks that they are finite
        if rule.clip is None:
            return reply
        reply = replace(reply, tensors=tensors if statistic is None else with_statistics(weights, tensors))
        if not deviation:
            return reply
        return self._release(reply, deviation, DifferentialPrivacy(rule.clip, rule.noise_multiplier), record)

    def _require_budget(self, settings: DifferentialPrivacy) -> None:
        if settings.epsilon is None:
            return
        after = epsilon_of(self.releases + Counter([settings.noise_multiplier]), settings.delta)
        if after > settings.epsilon:
            found = f"epsilon {after:.3g} after one more message"
            raise MessageRefused([Problem("privacy budget", found, f"at most {settings.epsilon:g}")])


def _header_problems(request: Message, reply: Message) -> Problems:
    problems = Problems()
    for name, expected in (("version", VERSION), *((name, getattr(request, name)) for name in _ECHOED)):
        if type(getattr(reply, name)) is not type(expected) or getattr(reply, name) != expected:
            problems.add(f"message -> {name}", "another value", "the value of the request")
    if reply.extra:
        problems.add("message -> extra", "words", "no words from a site")
    if type(reply.n) is not int or reply.n < 0:
        problems.add("message -> n", "another value", "a whole number >= 0")
    if len(reply.metrics) > _MOST_METRICS:
        problems.add("message -> metrics", "too many", f"at most {_MOST_METRICS}")
    with problems.collected():
        Message(Kind.METRICS, reply.site, 0, 1, metrics=reply.metrics).check(up=False)
    return problems


def _noise_of(record: Any) -> Any:
    noise = record.get("noise")
    return noise["noise_multiplier"] if noise else None


def _split(reply: Message) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Splits a reply into weights and statistics; only names that are text can be of a statistic."""
    if reply.kind != Kind.WEIGHTS or not all(isinstance(name, str) for name in reply.tensors):
        return dict(reply.tensors), {}
    return split_statistics(reply.tensors)


def _content(message: Message) -> dict[str, Any]:
    names, size = sorted(message.tensors), wire_size(message)
    most = _HEADER_BYTES + sum(tensor.numel() * tensor.element_size() for tensor in message.tensors.values())
    if size > most:
        raise MessageRefused([Problem("message", f"{size} bytes", f"at most {most} bytes")])
    return {
        "kind": Kind(message.kind).value,
        "tensors": len(names),
        "names_sha256": _names_hash(names),
        "bytes": size,
        "n": message.n,
        "metrics": sorted(message.metrics, key=lambda name: (name not in METRIC_NAMES, name)),
        "withheld": sorted(message.extra),
    }


def _names_hash(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
