"""``federate.json -> privacy``: what a run promises its sites, and the checks that its method can keep it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problem, Problems, refused
from samfed_monai.core.validators import departures, installed, require
from samfed_monai.data.datalist import LEAST_IMAGES
from samfed_monai.privacy.accounting import DELTA, accountant, epsilon
from samfed_monai.protocol.guard import Action, UpdateGuard
from samfed_monai.protocol.message import Kind, MessageRefused
from samfed_monai.protocol.statistics import StatisticKind, StatisticRule

if TYPE_CHECKING:
    from samfed_monai.config.variants import Method
    from samfed_monai.protocol.strategy import Strategy

WHERE = "federate.json -> privacy"


@dataclass(frozen=True)
class DifferentialPrivacy:
    """Clipping and Gaussian noise on what a site sends after its local epoch (``docs/privacy.md``: what that gives).

    Args:
        clip: largest L2 norm: of the difference between the weights sent and those received; with soft masks, of the
            difference of each public image's mask (probabilities in [0, 1], one number a pixel).
        noise_multiplier: standard deviation of the noise over the message's sensitivity, which is ``2 * clip`` for
            weights and ``2 * clip * sqrt(number of masks)`` for soft masks.
        delta: of (epsilon, delta), in (0, 1); far below one over the number of patients.
        epsilon: a site sends nothing more once this much would be spent; ``None`` sets no limit.

    Example::

        {"clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-05, "epsilon": null}
    """

    clip: float = 1.0
    noise_multiplier: float = 1.0
    delta: float = DELTA
    epsilon: float | None = None


@dataclass(frozen=True)
class CentralPrivacy(DifferentialPrivacy):
    """Clipping and Gaussian noise on the mean, at a server that is trusted (:class:`CentralNoise`).

    Args:
        clip: largest L2 norm of a site's step, of all parameters together; with a ``quantile``, of the first round.
        noise_multiplier: standard deviation of the noise on the sum of the steps over ``clip``, as if nothing were
            spent on the ``quantile``: what is accounted for is this number.
        delta: of (epsilon, delta), in (0, 1).
        epsilon: the run is refused, or ends, where more would be spent; ``None`` sets no limit.
        quantile: part of the sites whose steps should be within ``clip``, in (0, 1); ``clip`` follows it from round to
            round (Andrew et al., arXiv 1905.03871). ``None`` keeps ``clip`` as it is.
        clip_rate: how fast it follows: ``clip * exp(-clip_rate * (part within clip - quantile))``.
        count_noise: standard deviation of the noise on the number of sites within ``clip``, more than half of
            ``noise_multiplier``; ``None`` is the paper's twentieth of the sites, and no less than ``noise_multiplier``.

    Example::

        {"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-05, "epsilon": null, "quantile": 0.5}
    """

    quantile: float | None = 0.5
    clip_rate: float = 0.2
    count_noise: float | None = None


@dataclass(frozen=True)
class SecureAggregation:
    """Masked updates, of which the server learns the sum alone (:mod:`samfed_monai.privacy.secure_aggregation`).

    Args:
        threshold: sites that must go through all steps of a round, or the run stops; more than half of those that
            train, and at least 2. ``None`` is the least.
        fraction_bits: binary digits behind the point that a weight keeps, from 8 to 40.

    Example::

        {"threshold": null, "fraction_bits": 32}
    """

    threshold: int | None = None
    fraction_bits: int = 32

    def threshold_of(self, sites: int) -> int:
        """That of a run in which so many sites train."""
        return self.threshold or max(2, sites // 2 + 1)

    def require_threshold(self, sites: int) -> None:
        """Refuses one that fewer than half, or more than all, would reach.

        Raises:
            Refused: of two halves each could be unmasked, or none ever.
        """
        least, threshold = max(2, sites // 2 + 1), self.threshold_of(sites)
        if not least <= threshold <= sites:
            where, expected = f"{WHERE}#secure_aggregation#threshold", f"from {least} to {sites}, of {sites} sites"
            hint = "null takes the least" if sites >= least else "at least two sites; alone none is hidden in a sum"
            raise refused(where, str(threshold), expected, hint)


@dataclass(frozen=True)
class Privacy:
    """What a run promises its sites.

    Args:
        least_images: statistics of fewer images do not leave a site; 1 withholds nothing.
        differential_privacy: noise at the sites; ``None`` adds none.
        central_differential_privacy: noise at the server, instead; ``None`` adds none.
        secure_aggregation: the server learns the sum of the sites' weights alone; ``None`` sends them as they are.
        statistics: kind of image-derived statistic to its rule; ``None`` forbids it, what is not named has defaults.

    Example::

        "privacy": {"least_images": 5, "differential_privacy": null, "secure_aggregation": {"threshold": null}}
    """

    least_images: int = LEAST_IMAGES
    differential_privacy: DifferentialPrivacy | None = None
    central_differential_privacy: CentralPrivacy | None = None
    secure_aggregation: SecureAggregation | None = None
    statistics: Mapping[StatisticKind, StatisticRule | None] = field(default_factory=dict)

    def rule(self, kind: StatisticKind) -> StatisticRule | None:
        """What holds for a statistic that the method in use sends; ``None`` where it may not leave."""
        rule = self.statistics.get(kind, StatisticRule())
        return rule and replace(rule, least_images=max(rule.least_images, self.least_images))

    @classmethod
    def from_json(cls, content: Any) -> Privacy:
        """Reads content of :data:`SCHEMA`; ``None`` and what is left out are the defaults.

        Raises:
            Refused: an unknown name, a value out of its range, settings that exclude each other; all of them.
        """
        wrong = departures({"privacy": content}, {"properties": {"privacy": SCHEMA}}, "federate.json")
        require(wrong, _conflicts(content))
        given = content or {}
        parts = {name: kind(**given[name]) for name, kind in _PARTS.items() if given.get(name) is not None}
        rules = {
            StatisticKind(kind): None if rule is None else StatisticRule(**rule)
            for kind, rule in (given.get("statistics") or {}).items()
        }
        return cls(given.get("least_images", cls.least_images), **parts, statistics=rules)


@dataclass(frozen=True)
class PrivacyFloor:
    """What a site asks of every run, whatever the run's plan promises: the stricter of the two counts.

    Args:
        least_images: as in :class:`Privacy`; 1 leaves it to the plan.
        epsilon: as in :class:`DifferentialPrivacy`, counted at a ``delta`` of at most that class's default; ``None``
            leaves it to the plan.
        statistics: kinds of image-derived statistics that may leave; ``None`` leaves it to the plan.
    """

    least_images: int = 1
    epsilon: float | None = None
    statistics: tuple[StatisticKind, ...] | None = None

    def under(self, privacy: Privacy) -> Privacy:
        """The plan's settings, made stricter where the site's are.

        Raises:
            MessageRefused: the site has an ``epsilon``, and the plan adds no noise.
        """
        least, noise = max(self.least_images, privacy.least_images), privacy.differential_privacy
        if self.epsilon is not None and noise is None:
            expected, hint = "noise: this site's file has an epsilon", "set it in federate.json, or leave this site out"
            raise MessageRefused([Problem(f"{WHERE}#differential_privacy", "none", expected, hint)])
        if self.epsilon is not None and noise is not None:
            epsilon = min(self.epsilon, noise.epsilon or math.inf)
            noise = replace(noise, epsilon=epsilon, delta=min(noise.delta, DELTA))
        statistics = dict(privacy.statistics)
        if self.statistics is not None:
            statistics |= {kind: None for kind in StatisticKind if kind not in self.statistics}
        return replace(privacy, least_images=least, differential_privacy=noise, statistics=statistics)


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": False}


_NOT_NEGATIVE = {"type": "number", "minimum": 0}
_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_FRACTION = {**_POSITIVE, "exclusiveMaximum": 1}
_AT_LEAST_ONE = {"type": "integer", "minimum": 1}
_ANY_POSITIVE, _ANY_FRACTION = ({**schema, "type": ["number", "null"]} for schema in (_POSITIVE, _FRACTION))
_NOISE = {"clip": _POSITIVE, "noise_multiplier": _POSITIVE, "delta": _FRACTION, "epsilon": _ANY_POSITIVE}
_RULE = _object(clip=_ANY_POSITIVE, noise_multiplier=_NOT_NEGATIVE, least_images=_AT_LEAST_ONE)
SCHEMA = _object(
    least_images=_AT_LEAST_ONE,
    differential_privacy=_object(**_NOISE),
    central_differential_privacy=_object(
        **_NOISE, quantile=_ANY_FRACTION, clip_rate=_POSITIVE, count_noise=_ANY_POSITIVE
    ),
    secure_aggregation=_object(
        threshold={"type": ["integer", "null"], "minimum": 2},
        fraction_bits={"type": "integer", "minimum": 8, "maximum": 40},
    ),
    statistics=_object(**{kind.value: _RULE for kind in StatisticKind}),
)
"""JSON Schema of ``federate.json -> privacy``; of a kind of statistics ``null`` forbids it."""
_PARTS: dict[str, Any] = {
    "differential_privacy": DifferentialPrivacy,
    "central_differential_privacy": CentralPrivacy,
    "secure_aggregation": SecureAggregation,
}


def _conflicts(content: Any) -> Iterator[Problem]:
    """Settings of which one undoes the other, or noise that nothing sets the size of."""
    content = _mapping(content)
    local, central, secure = (content.get(name) is not None for name in _PARTS)
    if secure and central:
        found = "secure_aggregation and central_differential_privacy"
        hint = "the server cannot clip what it does not see: take differential_privacy, at the sites"
        yield Problem(WHERE, found, "one of the two", hint)
    if local and central:
        hint = "leave central_differential_privacy null where the server is not trusted, else differential_privacy"
        yield Problem(WHERE, "noise at the sites and at the server", "one of the two", hint)
    settings = {**asdict(CentralPrivacy()), **_mapping(content.get("central_differential_privacy"))}
    count, noise = _number(settings["count_noise"]), _number(settings["noise_multiplier"])
    if settings["quantile"] is not None and 0 < count <= noise / 2:
        expected = f"more than half of noise_multiplier, {noise / 2:g}"
        hint = "null takes one that fits; less would spend more than the whole epsilon on the quantile alone"
        yield Problem(f"{WHERE}#central_differential_privacy#count_noise", f"{count!r}", expected, hint)
    for kind, rule in ((kind, _mapping(given)) for kind, given in _mapping(content.get("statistics")).items()):
        where, noise = f"{WHERE}#statistics#{kind}#noise_multiplier", _number(rule.get("noise_multiplier"))
        if noise > 0 and rule.get("clip") is None:
            expected, hint = "a clip, which says how much noise that is", "set clip, or noise_multiplier to 0"
            yield Problem(where, f"{noise:g} without a clip", expected, hint)
        elif noise > 0 and kind == StatisticKind.PROTOTYPES.value:
            expected = "0: they travel with counts of pixels, which noise would spoil"
            yield Problem(where, f"{noise:g}", expected, "set noise_multiplier to 0")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float:
    """A number, and 0 for anything else."""
    return value if type(value) in (int, float) else 0


def settings_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """``federate.json -> privacy`` as ``run.json`` keeps it: without what came later than a run and is off."""
    return {name: value for name, value in content.items() if value is not None or name not in _LATER}


_LATER = ("central_differential_privacy", "secure_aggregation", "statistics")


def forbidden_problems(kind: StatisticKind, privacy: Privacy, method: Method | None) -> list[Problem]:
    """Why a kind of image-derived statistic may not leave: the method does not say so, or the policy forbids it.

    Args:
        kind: which.
        privacy: the plan's settings, at a site under its own floor.
        method: as :func:`undeclared` takes it; one that declares nothing declares no statistic.
    """
    if method is not None and kind.value not in (leaves := method.leaves_site or ()):
        expected = f"what {method.name} declares, {', '.join(leaves) or 'nothing'}"
        hint = "add it there if the method is meant to send it, or name a method that does (samfed variants)"
        where = method.where or "_method#leaves_site"
        return [Problem(where, found=kind.value, expected=expected, hint=hint)]
    if privacy.rule(kind) is None:
        found = f"{kind.words}, which the method sends and the policy forbids"
        hint = "choose a variant that sends none, or let the plan, and `statistics` of this site's file, allow it"
        return [Problem(f"{WHERE}#statistics#{kind.value}", found, "a method without them", hint)]
    return []


def require_possible(
    privacy: Privacy,
    strategy: Strategy,
    method: Method | None = None,
    guard: UpdateGuard | None = None,
    *,
    rounds: int | None = None,
    sites: int | None = None,
) -> None:
    """Refuses what may not leave, noise that cannot be added or accounted for, and sums that cannot be made, at once.

    Args:
        privacy: the run's settings.
        strategy: of the run; says which image-derived statistic sites send, if any.
        method: what the variant says of itself; ``None`` is not asked.
        guard: of the run; with secure aggregation it sees the mean alone.
        rounds: of the run, whose noise has to stay within its ``epsilon``; ``None`` is not asked.
        sites: that train, of which a sum under masks needs its threshold; ``None`` is not asked.

    Raises:
        Refused: a method of one site alone; a statistic that the method does not declare or the policy forbids;
            differential privacy with one, with means of loss terms, or with an exchange that it is not made for; noise
            without Opacus; secure aggregation with a strategy or a guard that has to see each answer, or without
            ``cryptography``; a budget or a threshold that cannot be met.
    """
    problems, kind = Problems(), strategy.statistic
    local, central, secure = (getattr(privacy, name) for name in _PARTS)
    if method is not None and method.leaves_site is not None and not method.leaves_site:
        hint = "run its train.json at that site (docs/methods.md), or choose another variant"
        expected = "a method of a federation; of this one nothing leaves a site"
        problems.add("variant", found=repr(method.name), expected=expected, hint=hint)
    if kind is not None:
        problems.extend(forbidden_problems(kind, privacy, method))
    if secure is not None:
        where = f"{WHERE}#secure_aggregation"
        if sites is not None:
            with problems.collected():
                secure.require_threshold(sites)
        problems.extend([*_no_mean(strategy, where), *_looking(guard, where)])
        problems.extend(installed("cryptography", "privacy", where, "no cryptography", "its keys and ciphers"))
    for noise in filter(None, (central, local)):
        with problems.collected():
            require_budget(noise, rounds or 0)
    if central is not None:
        problems.extend(_no_mean(strategy, f"{WHERE}#central_differential_privacy"))
    if local is not None:
        problems.extend(_unprotected(strategy))
    rule = privacy.rule(kind) if kind is not None else None
    if local or central or (rule is not None and rule.noise_multiplier):
        with problems.collected():
            accountant()
    problems.refuse_if_any()


def _no_mean(strategy: Strategy, where: str) -> list[Problem]:
    """Of a strategy that looks at each answer, where there is the mean of the sites' weights and nothing else."""
    if strategy.exchange.mean and strategy.statistic is None:
        return []
    found = f"{type(strategy).__name__}, which has to see each site's answer"
    expected = "a strategy that takes the mean of the sites' weights, as FedAvg does"
    hint = f"choose a variant that averages, such as samfed, or {where.rpartition('#')[2]}: null"
    return [Problem(where, found, expected, hint)]


def _looking(guard: UpdateGuard | None, where: str) -> Iterator[Problem]:
    expected = "nothing that looks at each update, as the server sees their sum alone"
    if guard is not None and guard.largest_share is not None:
        hint = "largest_share: null, or secure_aggregation: null"
        yield Problem(where, "job#update_guard#largest_share", expected, hint)
    if guard is not None and guard.action is Action.SKIP:
        hint = "'clip', which then shortens the step of the mean, or secure_aggregation: null"
        yield Problem(where, "job#update_guard#action 'skip'", expected, hint)


def _unprotected(strategy: Strategy) -> list[Problem]:
    """Of an exchange that noise at the sites is not made for."""
    exchange, kind = strategy.exchange, strategy.statistic
    if kind is not None and kind is not StatisticKind.PROTOTYPES:
        found, expected = f"weights with noise, and {kind.words} beside them", "weights alone"
        hint = "choose a variant that sends no statistic of images"
    elif exchange.means_of_terms:
        found, expected = "weights with noise, and means of loss terms beside them", "weights alone"
        hint = "choose a variant that weighs sites by their images, such as samfed"
    else:
        unlike = exchange.answer is Kind.WEIGHTS and exchange.own_networks
        if exchange.answer in (Kind.WEIGHTS, Kind.SOFT_MASKS) and not unlike:
            return []
        found = "weights of networks that sites keep" if unlike else f"an exchange of {exchange.word}"
        expected, hint = "weights of one network, or predictions", "choose a variant that exchanges those"
    where = f"{WHERE}#differential_privacy"
    return [Problem(where, found, expected, f"{hint}, or differential_privacy: null")]


def notes_on_statistics(privacy: Privacy, strategy: Strategy, name: str) -> list[str]:
    """What is said before a run: which statistics of images leave the sites, and rules for others.

    Args:
        privacy: the run's settings.
        strategy: says which kind it sends, if any.
        name: of the variant.
    """
    notes, kind = [], strategy.statistic
    if kind is not None and (rule := privacy.rule(kind)) is not None:
        text = f"{name}: every site sends {kind.words} of its images, {rule.in_words()}"
        notes.append(f"{text} (privacy#statistics#{kind.value}; docs/privacy.md says what that reveals of them)")
    return [*notes, *map(str, unsent_rules(privacy, strategy, name))]


def unsent_rules(privacy: Privacy, strategy: Strategy, name: str) -> list[Problem]:
    """Rules for kinds of statistics that a run does not send; they are no mistakes, and do nothing.

    A ``null`` is not among them: it forbids a kind whatever the variant.

    Args:
        privacy: the run's settings.
        strategy: says which kind it sends, if any.
        name: of the variant.
    """
    sent = strategy.statistic
    expected = f"a rule for {sent.value}, the kind that {name} sends" if sent else f"none: {name} sends no statistics"
    found, hint = "a rule for a kind that it does not send", "leave it out, or choose a variant that sends it"
    return [
        Problem(f"{WHERE}#statistics#{kind.value}", found=found, expected=expected, hint=hint)
        for kind, rule in privacy.statistics.items()
        if rule is not None and kind is not sent
    ]


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
        where, least = f"statistics#{kind.value}#least_images", rule.least_images
    if images >= least or strategy.exchange.answer is Kind.METRICS:
        return []
    expected = f"at least {least} images to train on, as privacy#{where} says"
    hint = "join with another site, or agree on another least_images"
    return [Problem("images", found="fewer", expected=expected, hint=hint)]


def require_budget(settings: DifferentialPrivacy, rounds: int) -> None:
    """Refuses a run whose rounds would spend more than its ``epsilon``, before anything is computed.

    Args:
        settings: one without an ``epsilon`` has no budget.
        rounds: of the run.

    Raises:
        Refused: with the noise multiplier that would do.
    """
    if settings.epsilon is None:
        return
    enough = settings.noise_multiplier
    spent = again = epsilon(enough, rounds, settings.delta)
    while again > settings.epsilon and enough < 1e6:
        enough *= 1.05
        again = epsilon(enough, rounds, settings.delta)
    if spent > settings.epsilon:
        part = f"{'central_' if isinstance(settings, CentralPrivacy) else ''}differential_privacy"
        where, expected = f"{WHERE}#{part}#epsilon", f"at most {settings.epsilon:g}"
        hint = f"noise_multiplier {enough:.3g}, fewer rounds, or a larger epsilon"
        raise refused(where, f"{spent:.3g} after {rounds} rounds", expected, hint)
