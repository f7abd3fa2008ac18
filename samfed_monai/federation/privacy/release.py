"""The one filter through which every message of a site leaves, on every transport."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch
from torch.utils.data import Subset

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.federation.own_network import personal_patterns
from samfed_monai.federation.privacy.audit import AuditLog
from samfed_monai.federation.privacy.ledger import PrivacyLedger
from samfed_monai.federation.privacy.noise import Noise, SystemNoise, noisy_masks, noisy_update
from samfed_monai.federation.privacy.settings import (
    EFFORT,
    WHERE,
    DifferentialPrivacy,
    Privacy,
    epsilon_of,
    require_accountant,
    withhold_small,
)
from samfed_monai.networks.key_patterns import KeySplit, network_split
from samfed_monai.protocol.guard import Action, UpdateGuard
from samfed_monai.protocol.message import (
    METRIC_NAMES,
    STATISTICS,
    VERSION,
    Envelope,
    Kind,
    MessageRefused,
    wire_size,
)
from samfed_monai.protocol.secure_sum import require_cryptography
from samfed_monai.protocol.statistics import (
    Statistic,
    StatisticKind,
    StatisticRule,
    limited,
    split_statistics,
    with_statistics,
)
from samfed_monai.protocol.strategy import WORDS
from samfed_monai.protocol.transport import Task, scrub

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samfed_monai.config.variants import Method
    from samfed_monai.protocol.strategy import Strategy


@dataclass(frozen=True)
class Allowed:
    """An allow-list of tensors.

    Args:
        like: kind of message to names, shapes and dtypes; a kind that is missing may not leave. Messages without
            tensors (``metrics``) need no entry.
        exact: kinds whose tensors must equal those of ``like``, to the bit.
        learned: names of the network's parameters; the rest of its state is running statistics and counters.
        batch: images of the smallest batch that the site trains on; ``None`` where that is not known.
        momentum: the largest weight that a running statistic which is shared gives to one batch; 0 without any.
        statistic: what the site measures of its images for others; ``None`` is nothing.
    """

    like: Mapping[Kind, Mapping[str, Tensor]] = field(default_factory=dict)
    exact: frozenset[Kind] = frozenset()
    learned: frozenset[str] = frozenset()
    batch: int | None = None
    momentum: float = 0.0
    statistic: Statistic | None = None


def allowed_weights(network: nn.Module, *, personal: Sequence[str] = ()) -> Allowed:
    """The shared names of a network: those that it declares itself (``key_split()``), without the personal ones.

    Args:
        network: the site's own. One that declares nothing shares its whole state dict; of one that does, frozen and
            personal names never leave.
        personal: patterns of names that never leave (:func:`network_split`).

    Raises:
        Refused: a pattern that matches nothing.
    """
    from monai.networks.utils import get_state_dict

    state = get_state_dict(network)
    shared = {name: state[name] for name in network_split(network, personal).shared}
    learned = frozenset(name.removeprefix("module.") for name, _ in network.named_parameters())
    return Allowed({Kind.WEIGHTS: shared}, learned=learned, momentum=_largest_momentum(network, shared))


def _largest_momentum(network: nn.Module, shared: Mapping[str, Tensor]) -> float:
    """1 where a statistic is an average over all batches, of which there may be one, or its momentum is not known."""
    found = [0.0]
    for prefix, module in network.named_modules():
        if f"{prefix}.running_mean".removeprefix("module.").lstrip(".") in shared:
            momentum = getattr(module, "momentum", None)
            found.append(abs(float(momentum)) if isinstance(momentum, (int, float)) else 1.0)
    return max(found)


def _private_loader(client: Any) -> Any:
    parser = getattr(client.train_workflow, "parser", None)
    if parser is not None and "unlabelled#dataloader" in parser:
        return parser.get_parsed_content("unlabelled#dataloader")
    return client.trainer.data_loader


def _smallest_batch(loader: Any) -> int | None:
    size, sampler = getattr(loader, "batch_size", None), getattr(loader, "sampler", None)
    if not isinstance(size, int) or not isinstance(sampler, Sized):
        return None
    rest = len(sampler) % size
    return size if not rest or getattr(loader, "drop_last", False) else rest


def statistics_problems(allowed: Allowed, least_images: int) -> list[Problem]:
    """Why running statistics may not leave: one image would have too large a part of them.

    A layer's running mean is ``(1 - momentum)`` of what it was and ``momentum`` of the mean of the last batch, so an
    image of a batch of B has a part of ``momentum / B``, and ``B / momentum`` images are behind it at the least. A plan
    with momentum 1 and batches of one would make it that image's own.

    Args:
        allowed: what may leave.
        least_images: as in :class:`Privacy`.
    """
    if Kind.WEIGHTS not in allowed.like or not allowed.momentum:
        return []
    behind = (1 if allowed.batch is None else allowed.batch) / allowed.momentum
    if behind >= least_images:
        return []
    expected = f"at least {least_images} images behind them, as privacy -> least_images says"
    mend = "a larger batch_size, or a smaller momentum of the network's normalisation layers"
    return [Problem("running statistics", found=f"those of {behind:.3g}", expected=expected, mend=mend)]


def allowed_of(client: Any, *, personal: Sequence[str] | None = None) -> Allowed:
    """What a :class:`SamFedAlgo` may send: its sharing's tensors where it keeps its network, else the network's.

    A request does not widen it: a site with a sharing does not send its network because a server asks it to.

    Args:
        client: an initialized client; one that only evaluates may send no tensors.
        personal: patterns of names that never leave (:func:`network_split`); ``None`` takes those of its bundle.
    """
    if getattr(client, "trainer", None) is None:
        return Allowed()
    network, own = client.trainer.network, getattr(client, "own", None)
    batch = _smallest_batch(_private_loader(client))
    if personal is None:
        personal = personal_patterns(getattr(client.train_workflow, "parser", None))
    weights = replace(
        allowed_weights(network, personal=personal), batch=batch, statistic=getattr(client, "statistic", None)
    )
    if own is None:
        return weights
    like = dict(own.sharing.may_share())
    if Kind.WEIGHTS in like:
        like[Kind.WEIGHTS] = weights.like[Kind.WEIGHTS]
    return replace(weights, like=like, exact=frozenset({Kind.SOFT_MASKS}) & like.keys())


def tensor_problems(reply: Envelope, allowed: Allowed) -> list[Problem]:
    """Everything about the tensors of ``reply`` that keeps it from leaving: kind, names, shapes, dtypes, values.

    No name that is not on the list, and no value, is repeated: the text of a problem may itself leave.

    Args:
        reply: what is about to leave.
        allowed: what may leave now.
    """
    problems = Problems()
    try:
        kind = Kind(reply.kind)
    except ValueError:
        return [Problem("message -> kind", found="an unknown kind", expected="one of the allow-list")]
    if not reply.tensors and kind == Kind.METRICS:
        return []
    like = allowed.like.get(kind)
    if like is None:
        may = ", ".join(sorted({Kind(each).value for each in allowed.like} | {Kind.METRICS.value}))
        return [Problem("message -> kind", found="a kind that may not leave", expected=f"one of {may}")]
    unknown, missing = len(reply.tensors.keys() - like.keys()), len(like.keys() - reply.tensors.keys())
    if unknown:
        expected = f"the {len(like)} names of the allow-list"
        problems.add("message -> tensors", found=f"{unknown} with names that may not leave", expected=expected)
    if missing:
        problems.add("message -> tensors", found=f"{missing} names missing", expected="all of the allow-list")
    for name in sorted(like.keys() & reply.tensors.keys()):
        tensor, wanted = reply.tensors[name], like[name]
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            problems.add(f"message -> {name}", found="something else", expected="a plain tensor")
        elif tensor.shape != wanted.shape:
            problems.add(f"message -> {name}", found="another shape", expected=f"shape {tuple(wanted.shape)}")
        elif tensor.dtype != wanted.dtype:
            problems.add(f"message -> {name}", found="another dtype", expected=str(wanted.dtype))
        elif kind in allowed.exact and not torch.equal(tensor.cpu(), wanted.cpu()):
            problems.add(f"message -> {name}", found="other values", expected="the site's own on the public images")
    return list(problems)


def undeclared(reply: Envelope, method: Method | None) -> list[Problem]:
    """What of ``reply`` the method in use does not let leave a site, by its own declaration (``leaves_site``).

    Args:
        reply: what is about to leave; of a known kind.
        method: as :func:`samfed_monai.config.variants.declared` reads it; ``None``, and one of version 0.1 that
            declares nothing, leave it to the allow-list.
    """
    if method is None or method.leaves_site is None:
        return []
    parts = [WORDS.get(Kind(reply.kind), Kind(reply.kind).value)] if reply.tensors else []
    parts += ["scores"] if reply.metrics.keys() - EFFORT else []
    expected = f"what {method.name} declares, {', '.join(method.leaves_site) or 'nothing'}"
    mend = "add it there if the method is meant to send it"
    return [Problem(method.where, part, expected, mend) for part in parts if part not in method.leaves_site]


def statistic_problems(
    statistics: Mapping[str, Tensor], asked: str | None, allowed: Allowed, privacy: Privacy, method: Method | None
) -> list[Problem]:
    """Everything that keeps an image-derived statistic, which travels beside weights, from leaving.

    Args:
        statistics: names, without their prefix, to tensors that are about to leave.
        asked: the kind that the request names; ``None`` is none.
        allowed: says what the site measures.
        privacy: says which may leave, and of how many images.
        method: as :func:`undeclared` takes it.
    """
    if not statistics:
        return []
    own, where = allowed.statistic, "message -> statistics"
    if asked is None or own is None or own.kind.value != asked:
        found = "one that nobody asked for" if asked is None else "a kind that this site does not measure"
        return [Problem(where, found=found, expected="what the request names and the bundle measures")]
    if forbidden := forbidden_problems(own.kind, privacy, method):
        return forbidden
    problems, like, rule = Problems(), own.like(), privacy.rule(own.kind)
    if statistics.keys() != like.keys():
        problems.add(where, found="other names", expected=", ".join(sorted(like)))
    for name in sorted(like.keys() & statistics.keys()):
        tensor, wanted = statistics[name], like[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            expected = f"{tuple(wanted.shape)}, {wanted.dtype}"
            problems.add(f"{where} -> {name}", found="another shape or dtype", expected=expected)
    if rule is not None and own.images(rule.least_images) < rule.least_images:
        expected = f"entries of at least {rule.least_images} images each"
        mend = "join with another site, or agree on another least_images"
        problems.add(where, found="fewer", expected=expected, mend=mend)
    return list(problems)


def forbidden_problems(kind: StatisticKind, privacy: Privacy, method: Method | None) -> list[Problem]:
    """Why a kind of image-derived statistic may not leave: the method does not say so, or the policy forbids it.

    Args:
        kind: which.
        privacy: the plan's settings, at a site under its own floor.
        method: as :func:`undeclared` takes it; one of version 0.1, which declares nothing, declares no statistic.
    """
    leaves = (method.leaves_site or ()) if method is not None else None
    if leaves is not None and kind.value not in leaves:
        name = method.name if method is not None else ""
        expected = f"what {name} declares, {', '.join(leaves) or 'nothing'}"
        mend = "add it there if the method is meant to send it, or name a method that does (samfed variants)"
        where = (method.where if method is not None else "") or "_method#leaves_site"
        return [Problem(where, found=kind.value, expected=expected, mend=mend)]
    if privacy.rule(kind) is None:
        found = f"{kind.words}, which the method sends and the policy forbids"
        mend = "choose a variant that sends none, or let the plan, and `statistics` of this site's file, allow it"
        return [Problem(f"{WHERE} -> statistics -> {kind.value}", found, "a method without them", mend)]
    return []


Records = Sequence[Mapping[str, Any]]


def require_public_images(sharing: Any, public: Callable[[], Records]) -> None:
    """Refuses a sharing that would make masks of anything but the site's public images, in the order of its list.

    The release filter asks the sharing itself what it may send; this asks the site's own list.

    Args:
        sharing: the client's; one without a ``predictor`` makes no masks.
        public: gives the records of the site's public images (:func:`samfed_monai.data.load_records`).

    Raises:
        MessageRefused: another image, the same ones in another order, or a data set whose records are not to be seen.
    """
    predictor = getattr(sharing, "predictor", None)
    if predictor is None:
        return
    own = [_identity(record) for record in public()]
    shown = [_identity(record) for record in _records(predictor.dataset)]
    others, rest = len([image for image in shown if image not in own]), iter(own)
    if not others and all(image in rest for image in shown):  # `in` steps on: those of `own`, some left out
        return
    found = f"{others} other images" if others else "another order"
    expected, mend = "images of this site's own public list alone", "leave the data of sharing#plain to the variant"
    raise MessageRefused([Problem("images that masks are exchanged of", found=found, expected=expected, mend=mend)])


def _records(dataset: Any) -> Records:
    if isinstance(dataset, Subset):
        whole = _records(dataset.dataset)
        return [whole[index] for index in dataset.indices]
    records: Any = getattr(dataset, "data", None)
    if not isinstance(records, list) or not all(isinstance(record, Mapping) for record in records):
        found, expected = f"a {type(dataset).__name__}", "a data set whose records are to be seen"
        mend = "leave sharing#plain to the variant"
        raise MessageRefused([Problem("images that masks are exchanged of", found=found, expected=expected, mend=mend)])
    return records


def _identity(record: Mapping[str, Any]) -> tuple[Any, Any]:
    image = record.get("image")
    return (image if isinstance(image, str) else None), record.get("image_sha256")


#: Bytes of a message beside its tensors: names, shapes and the header.
_HEADER_BYTES = 1024**2
#: More numbers than any bundle's terms need.
_MOST_METRICS = 64
#: Scores of one round that leave a site: its own and those of the best and the last model are seven at most, with the
#: teacher's; the rest is for runs that were started again in the middle of them.
MOST_EVALUATIONS = 32
_ECHOED = ("site", "round", "rounds", "seed")


class Release:
    """``release(task, request, reply)``: what of ``reply`` may leave, or :class:`MessageRefused`.

    In this order: the reply is compared with the allow-list (kind, names, shapes, dtypes, size; site, round and seed
    must be those of the request) and with what the method declares (:func:`undeclared`), small counts are withheld,
    noise is added where it is asked for, and a line is written to the audit file. Whatever is not on the list is
    refused, and its name or value is not repeated. A message whose line cannot be written does not leave.

    Args:
        site: the site's name.
        allowed: what may leave now; called for each reply with tensors, because a client's network is made late.
        privacy: the run's settings; ``None`` is their defaults.
        folder: the site's own folder, for ``audit.jsonl``; ``None`` writes to the logger only.
        ledger: the site's own budget over all of its runs; ``None`` where it has none.
        method: what the method in use says of itself; ``None`` leaves what may leave to ``allowed``.
        rounds: of the plan; a request of another round, or of a run of another length, is not answered. ``None`` takes
            any.
        least_seen: images that a site must have trained on in a round, repeats included, for anything that it learned
            to leave; its own floor, since short rounds of small batches are common where nothing is private.
        noise: draws of the standard normal distribution; a seed is for tests, and no JSON can set one.
    """

    def __init__(
        self,
        site: str,
        *,
        allowed: Callable[[], Allowed],
        privacy: Privacy | None = None,
        folder: str | Path | None = None,
        ledger: PrivacyLedger | None = None,
        method: Method | None = None,
        rounds: int | None = None,
        least_seen: int = 1,
        noise: Noise | None = None,
    ) -> None:
        self.site, self.allowed, self.ledger, self.method = site, allowed, ledger, method
        self.rounds, self.least_seen = rounds, least_seen
        self.privacy, self.noise = privacy or Privacy(), noise or SystemNoise()
        self.audit = AuditLog(folder)
        self._run = Path(folder).parent.parent.name if folder is not None else ""
        #: Noise multiplier to the messages with it that this site has sent in this run, before a restart included.
        self.releases = self.audit.noised()
        #: Round to how many times scores of it have left, before a restart included.
        self.evaluations = self.audit.evaluated()

    def __call__(self, task: Task, request: Envelope, reply: Envelope) -> Envelope:
        """The message that may leave in answer to ``request``.

        Raises:
            MessageRefused: nothing of it may; the text may travel.
            OSError: the audit file could not be written.
        """
        try:
            allowed = self.allowed() if getattr(reply, "tensors", None) else Allowed()
            self._check(task, request, reply, allowed)
            message, noise = self._noised(task, request, withhold_small(reply, self.privacy.least_images), allowed)
            message, noise, statistics = self._limited(message, noise, allowed)
            content = {**_content(message), **statistics}
        except MessageRefused as refused:
            self._write(task, request, outcome="refused", problems=[str(each) for each in refused.problems])
            raise
        hidden = self.privacy.secure_aggregation is not None and bool(message.tensors)
        self._write(task, request, outcome="masked" if hidden else "sent", **content, noise=noise)
        self.evaluations[request.round] += task == Task.EVALUATE
        return message

    def hidden(self, task: Task, request: Envelope, reply: Envelope) -> Envelope:
        """Writes a line about a step of secure aggregation, whose content this filter let go when it was trained."""
        self._write(task, request, outcome="sent", **_content(reply), noise=None)
        return reply

    def require_statistics(self) -> None:
        """Refuses before round 0 what would be refused in every round: running statistics of too few images.

        Raises:
            MessageRefused: see :func:`statistics_problems`.
        """
        problems = self._statistics_problems(self.allowed())
        if problems:
            raise MessageRefused(problems)

    def _statistics_problems(self, allowed: Allowed) -> list[Problem]:
        if self.privacy.differential_privacy is not None:  # they go back as they were received
            return []
        return statistics_problems(allowed, self.privacy.least_images)

    def declare(self, split: KeySplit) -> None:
        """Writes a line about what of this site's network may leave, where that is not all of it."""
        if split.personal or split.frozen:
            parts = {"shared": len(split.shared), "personal": len(split.personal), "frozen": len(split.frozen)}
            names = _names_hash(split.shared)
            line = {"site": self.site, "round": None, "task": None, "outcome": "declared", "kind": Kind.WEIGHTS.value}
            self.audit.write({**line, "tensors": len(split.shared), "names_sha256": names, **parts})

    def failed(self, task: Task, request: Envelope, error: Exception) -> str:
        """Writes a line about an answer that there is none of; returns the words about it that may leave."""
        words = scrub(error)
        self._write(task, request, outcome="failed", problems=[words])
        return words

    def _write(self, task: Task, request: Envelope, **record: Any) -> None:
        self.audit.write({"site": self.site, "round": request.round, "task": Task(task).value, **record})

    def _check(self, task: Task, request: Envelope, reply: Envelope, allowed: Allowed) -> None:
        if not isinstance(reply, Envelope):
            raise MessageRefused([Problem("message", found="something else", expected="an Envelope")])
        problems = Problems()
        for name, wanted in (("version", VERSION), *((name, getattr(request, name)) for name in _ECHOED)):
            if type(getattr(reply, name)) is not type(wanted) or getattr(reply, name) != wanted:
                problems.add(f"message -> {name}", found="another one", expected="that of the request")
        if request.site != self.site:
            problems.add("message -> site", found="a request to another site", expected="one to this site")
        if reply.extra:
            problems.add("message -> extra", found="words", expected="none from a site")
        if type(reply.n) is not int or reply.n < 0:
            problems.add("message -> n", found="another value", expected="a whole number >= 0")
        if len(reply.metrics) > _MOST_METRICS:
            problems.add("message -> metrics", found="too many", expected=f"at most {_MOST_METRICS}")
        problems.extend(Envelope(Kind.METRICS, self.site, 0, 1, metrics=reply.metrics).problems(up=False))
        if reply.tensors and task != Task.TRAIN:
            problems.add("message -> tensors", found="tensors that were not trained", expected="numbers only")
        if self.rounds is not None and not (request.rounds == self.rounds and 0 <= request.round < self.rounds):
            problems.add("message -> round", found="one that the plan does not have", expected=f"{self.rounds} rounds")
        if task == Task.EVALUATE and self.evaluations[request.round] >= MOST_EVALUATIONS:
            expected = f"at most {MOST_EVALUATIONS} in a round"
            problems.add("evaluations", found="one more", expected=expected, mend="start a new run under another name")
        weights, statistics = _parted(reply)
        problems.extend(tensor_problems(replace(reply, tensors=weights) if statistics else reply, allowed))
        word = request.extra.get(STATISTICS)
        problems.extend(statistic_problems(statistics, word, allowed, self.privacy, self.method))
        if reply.tensors and reply.kind == Kind.PROTOTYPES and not len(problems):
            problems.extend(self._prototype_problems(reply))
        if reply.tensors:
            problems.extend(self._statistics_problems(allowed) if reply.kind == Kind.WEIGHTS else ())
            seen = reply.metrics.get("iterations", 0) * (allowed.batch or 1)
            if 0 < seen < self.least_seen:  # a round in which nothing is trained tells nothing new
                expected = f"at least {self.least_seen} images trained on in a round, as this site's file says"
                mend = "more local_steps, or a larger batch_size"
                problems.add("round", found=f"{seen}", expected=expected, mend=mend)
        found = list(problems) or undeclared(reply, self.method)
        if found:
            raise MessageRefused(found)

    def _noised(
        self, task: Task, request: Envelope, reply: Envelope, allowed: Allowed
    ) -> tuple[Envelope, dict[str, Any] | None]:
        settings = self.privacy.differential_privacy
        if settings is None or task != Task.TRAIN:
            return reply, None
        # means of loss terms come from the images trained on, and no noise is added to them
        reply = replace(reply, metrics={name: value for name, value in reply.metrics.items() if name in EFFORT})
        if not reply.tensors:
            return reply, None
        self._require_budget(settings)
        how: dict[str, Any] = {
            "clip": settings.clip,
            "noise_multiplier": settings.noise_multiplier,
            "noise": self.noise,
        }
        deviation = 2.0 * settings.clip * settings.noise_multiplier
        if reply.kind == Kind.WEIGHTS:
            tensors = noisy_update(reply.tensors, request.tensors, learned=sorted(allowed.learned), **how)
        elif reply.kind == Kind.SOFT_MASKS and len(reply.tensors) == 1:
            ((name, masks),) = reply.tensors.items()
            tensors = {name: noisy_masks(masks, request.tensors.get(name), **how)}
            deviation *= len(masks) ** 0.5
        else:
            expected = "weights or soft masks, to which noise can be added"
            raise MessageRefused([Problem("differential privacy", found=Kind(reply.kind).value, expected=expected)])
        if self.ledger is not None:
            self.ledger.enter(settings, run=self._run)
        self.releases[settings.noise_multiplier] += 1
        count = self.releases.total()
        metrics = {**reply.metrics, "releases": count}
        noise = {"deviation": deviation, **settings.__dict__, "release": count}
        return replace(reply, tensors=tensors, metrics=metrics), noise

    def _prototype_problems(self, reply: Envelope) -> list[Problem]:
        rule = self.privacy.rule(StatisticKind.PROTOTYPES)
        if rule is None:
            return forbidden_problems(StatisticKind.PROTOTYPES, self.privacy, None)
        if reply.n >= max(rule.least_images, 1) or reply.n < self.privacy.least_images:  # the latter: withhold_small
            return []
        expected = f"prototypes of at least {rule.least_images} images"
        mend = "join with another site, or agree on another least_images"
        return [Problem("message -> n", found="fewer", expected=expected, mend=mend)]

    def _limited(
        self, reply: Envelope, noise: dict[str, Any] | None, allowed: Allowed
    ) -> tuple[Envelope, dict[str, Any] | None, dict[str, Any]]:
        """The reply with its statistic under its rule; the noise and what the audit line says of it."""
        weights, statistics = _parted(reply)
        if reply.kind == Kind.PROTOTYPES and reply.tensors:
            kind, images, statistics = StatisticKind.PROTOTYPES, reply.n, reply.tensors
        else:
            if not statistics or allowed.statistic is None:
                return reply, noise, {}
            kind = allowed.statistic.kind
            images = allowed.statistic.images(self._rule(kind).least_images)
        rule = self._rule(kind)
        line = {"kind": kind.value, "images": images, "clip": rule.clip, "noise_multiplier": rule.noise_multiplier}
        if rule.clip is None:
            limited(statistics, rule, noise=self.noise)  # looks whether they are finite
            return reply, noise, {"statistics": line}
        tensors, deviation = limited(statistics, rule, noise=self.noise)
        tensors = tensors if kind is StatisticKind.PROTOTYPES else with_statistics(weights, tensors)
        metrics = reply.metrics
        if deviation:
            self.releases[rule.noise_multiplier] += 1
            count = self.releases.total()
            metrics = {**metrics, "releases": count}
            used = DifferentialPrivacy(rule.clip, rule.noise_multiplier)
            noise = {"deviation": deviation, **used.__dict__, "release": count}
        return replace(reply, tensors=tensors, metrics=metrics), noise, {"statistics": line}

    def _rule(self, kind: StatisticKind) -> StatisticRule:
        return self.privacy.rule(kind) or StatisticRule()

    def _require_budget(self, settings: DifferentialPrivacy) -> None:
        if settings.epsilon is None:
            return
        after = epsilon_of(self.releases + Counter([settings.noise_multiplier]), settings.delta)
        if after > settings.epsilon:
            found = f"epsilon {after:.3g} after one more message"
            raise MessageRefused([Problem("privacy budget", found=found, expected=f"at most {settings.epsilon:g}")])


def _parted(reply: Envelope) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of an answer, and its statistics; only names of text can be of a statistic."""
    if reply.kind != Kind.WEIGHTS or not all(isinstance(name, str) for name in reply.tensors):
        return dict(reply.tensors), {}
    return split_statistics(reply.tensors)


def _content(message: Envelope) -> dict[str, Any]:
    names, size = sorted(message.tensors), wire_size(message)
    most = _HEADER_BYTES + sum(tensor.numel() * tensor.element_size() for tensor in message.tensors.values())
    if size > most:
        raise MessageRefused([Problem("message", found=f"{size} bytes", expected=f"at most {most} bytes")])
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


def site_release(
    site: str,
    client: Callable[[], Any],
    privacy: Privacy,
    run_folder: str | Path,
    ledger: PrivacyLedger | None = None,
    method: Method | None = None,
    rounds: int | None = None,
    least_seen: int = 1,
) -> Release:
    """What every answer of a :class:`SiteNode` passes.

    Args:
        site: the site's name.
        client: gives the MONAI FL client whose network and sharing say what may leave.
        privacy: the plan's, under the site's own floor (:meth:`PrivacyFloor.under`).
        run_folder: the run's folder at the site; the audit file is ``sites/<site>/audit.jsonl`` below it.
        ledger: the site's own budget over all of its runs; ``None`` where it has none.
        method: what the plan's variant says of itself, as this site has it.
        rounds: of the plan.
        least_seen: of the site's own floor: images trained on in a round.
    """
    folder, allowed = Path(run_folder) / "sites" / quote(site, safe=" "), lambda: allowed_of(client())
    settings: dict[str, Any] = {"ledger": ledger, "method": method, "rounds": rounds, "least_seen": least_seen}
    return Release(site, allowed=allowed, privacy=privacy, folder=folder, **settings)


def require_possible(
    privacy: Privacy, strategy: Strategy, method: Method | None = None, guard: UpdateGuard | None = None
) -> None:
    """Refuses what may not leave, noise that cannot be added or accounted for, and sums that cannot be made, at once.

    Args:
        privacy: the run's settings.
        strategy: of the run; says which image-derived statistic sites send, if any.
        method: what the variant says of itself; ``None`` is not asked.
        guard: of the run; with secure aggregation it sees the mean alone.

    Raises:
        Refused: a statistic that the method does not declare or the policy forbids; differential privacy with one, or
            with an exchange that it is not made for; noise without Opacus; secure aggregation with a strategy or a
            guard that has to see each answer, or without ``cryptography``.
    """
    kind = strategy.statistic
    if privacy.secure_aggregation is not None:
        where = f"{WHERE} -> secure_aggregation"
        require_mean(strategy, where)
        _require_blind(guard, where)
        require_cryptography(where)
    if privacy.central_differential_privacy is not None:
        require_mean(strategy, f"{WHERE} -> central_differential_privacy")
        require_accountant()
    if kind is not None:
        problems = Problems()
        problems.extend(forbidden_problems(kind, privacy, method))
        problems.refuse_if_any()
        rule = privacy.rule(kind)
        if rule is not None and rule.noise_multiplier:
            require_accountant()
    if privacy.differential_privacy is None:
        return
    if kind is not None and kind is not StatisticKind.PROTOTYPES:
        found, expected = f"weights with noise, and {kind.words} beside them", "weights alone"
        mend = "choose a variant that sends no statistic of images, or differential_privacy: null"
        raise Refused([Problem(f"{WHERE} -> differential_privacy", found=found, expected=expected, mend=mend)])
    exchange = strategy.exchange
    unlike = exchange.answer is Kind.WEIGHTS and exchange.own_networks
    if exchange.answer not in (Kind.WEIGHTS, Kind.SOFT_MASKS) or unlike:
        found = "weights of networks that sites keep" if unlike else f"an exchange of {exchange.word}"
        expected = "weights of one network, or predictions"
        mend = "choose a variant that exchanges those, or differential_privacy: null"
        raise Refused([Problem(f"{WHERE} -> differential_privacy", found=found, expected=expected, mend=mend)])
    require_accountant()


def require_mean(strategy: Strategy, where: str) -> None:
    """Refuses what has the mean of the sites' weights and nothing else, where a strategy looks at each answer.

    Args:
        strategy: whose :attr:`Exchange.mean` says so.
        where: the setting that needs it.

    Raises:
        Refused: it is not so.
    """
    if strategy.exchange.mean and strategy.statistic is None:
        return
    found = f"{type(strategy).__name__}, which has to see each site's answer"
    expected = "a strategy that takes the mean of the sites' weights, as FedAvg does"
    mend = f"choose a variant that averages, such as samfed, or {where.rpartition(' ')[2]}: null"
    raise Refused([Problem(where, found=found, expected=expected, mend=mend)])


def _require_blind(guard: UpdateGuard | None, where: str) -> None:
    problems = Problems()
    expected = "nothing that looks at each update, as the server sees their sum alone"
    if guard is not None and guard.largest_share is not None:
        mend = "largest_share: null, or secure_aggregation: null"
        problems.add(where, found="job#update_guard#largest_share", expected=expected, mend=mend)
    if guard is not None and guard.action is Action.SKIP:
        mend = "'clip', which then shortens the step of the mean, or secure_aggregation: null"
        problems.add(where, found="job#update_guard#action 'skip'", expected=expected, mend=mend)
    problems.refuse_if_any()


def statistics_notice(privacy: Privacy, strategy: Strategy, name: str) -> str | None:
    """What is said before a run in which statistics of images leave the sites; ``None`` in any other.

    Args:
        privacy: the run's settings.
        strategy: says which.
        name: of the variant.
    """
    kind = strategy.statistic
    rule = privacy.rule(kind) if kind is not None else None
    if kind is None or rule is None:
        return None
    text = f"{name}: every site sends {kind.words} of its images, {rule.told()}"
    return f"{text} (privacy -> statistics -> {kind.value}; docs/privacy.md says what that tells of them)"


def too_few_images(images: int, privacy: Privacy, strategy: Strategy) -> list[Problem]:
    """What keeps a site from taking part before round 0: its messages would be refused in every round.

    Args:
        images: images that the site trains on.
        privacy: the run's settings.
        strategy: says whether anything but scores leaves a site.
    """
    where, least, kind = "least_images", privacy.least_images, strategy.statistic
    rule = privacy.rule(kind) if kind is not None else None
    if kind is not None and rule is not None and rule.least_images > least:
        where, least = f"statistics -> {kind.value} -> least_images", rule.least_images
    if images >= least or strategy.exchange.answer is Kind.METRICS:
        return []
    expected = f"at least {least} images to train on, as privacy -> {where} says"
    mend = "join with another site, or agree on another least_images"
    return [Problem("images", found="fewer", expected=expected, mend=mend)]
