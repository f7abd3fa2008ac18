"""``federate.json -> privacy``: the privacy settings of a run, checks that its method can follow them, an account."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import Problem, Problems, refused
from samfed_monai.core.io import read_json
from samfed_monai.core.validators import installed, require, schema_problems
from samfed_monai.data.datalist import LEAST_IMAGES
from samfed_monai.privacy.accounting import DELTA, accountant, epsilon
from samfed_monai.protocol.guard import Action, UpdateGuard
from samfed_monai.protocol.message import Kind, MessageRefused
from samfed_monai.protocol.statistics import StatisticKind, StatisticRule

if TYPE_CHECKING:
    from samfed_monai.config.method import Method
    from samfed_monai.protocol.strategy import Strategy

WHERE = "federate.json -> privacy"


@dataclass(frozen=True)
class DifferentialPrivacy:
    """Clipping and Gaussian noise on a site's update (``docs/privacy.md`` describes the guarantee).

    Args:
        clip: maximum L2 norm of the difference between the weights sent and those received; with soft masks, of the
            difference of each public image's mask (probabilities in [0, 1], one number per pixel).
        noise_multiplier: standard deviation of the noise over the message's sensitivity, which is ``2 * clip`` for
            weights and ``2 * clip * sqrt(number of masks)`` for soft masks.
        delta: of (epsilon, delta), in (0, 1); far below one over the number of patients.
        epsilon: a site sends no message that would exceed it; ``None`` sets no limit.

    Example::

        {"clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-05, "epsilon": null}
    """

    clip: float = 1.0
    noise_multiplier: float = 1.0
    delta: float = DELTA
    epsilon: float | None = None


@dataclass(frozen=True)
class CentralPrivacy(DifferentialPrivacy):
    """Clipping and Gaussian noise on the mean, at a trusted server (:class:`CentralNoise`).

    Args:
        clip: maximum L2 norm of a site's step, over all parameters together; with a ``quantile``, in the first round.
        noise_multiplier: standard deviation of the noise on the sum of the steps over ``clip``, as if the ``quantile``
            cost nothing; accounting uses this number.
        delta: of (epsilon, delta), in (0, 1).
        epsilon: a run that would exceed it is refused, or ends; ``None`` sets no limit.
        quantile: part of the sites whose steps should be within ``clip``, in (0, 1); ``clip`` is adapted to it in every
            round (Andrew et al., arXiv 1905.03871). ``None`` keeps ``clip`` fixed.
        clip_rate: rate of that adaptation: ``clip * exp(-clip_rate * (part within clip - quantile))``.
        count_noise: standard deviation of the noise on the number of sites within ``clip``, more than half of
            ``noise_multiplier``; ``None`` is the paper's twentieth of the sites, but at least ``noise_multiplier``.

    Example::

        {"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-05, "epsilon": null, "quantile": 0.5}
    """

    quantile: float | None = 0.5
    clip_rate: float = 0.2
    count_noise: float | None = None


@dataclass(frozen=True)
class SecureAggregation:
    """Masked updates, of which the server learns only the sum (:mod:`samfed_monai.privacy.secure_aggregation`).

    Args:
        threshold: number of sites that must complete all steps of a round, or the run stops; more than half of those
            that train, and at least 2. ``None`` is the minimum.
        fraction_bits: number of fractional bits of a weight, from 8 to 40.

    Example::

        {"threshold": null, "fraction_bits": 32}
    """

    threshold: int | None = None
    fraction_bits: int = 32

    def threshold_of(self, sites: int) -> int:
        """Returns the threshold of a run in which ``sites`` sites train."""
        return self.threshold or max(2, sites // 2 + 1)

    def require_threshold(self, sites: int) -> None:
        """Refuses a threshold of at most half, or of more than all sites.

        Raises:
            Refused: two disjoint groups could each be unmasked, or none at all.
        """
        least, threshold = max(2, sites // 2 + 1), self.threshold_of(sites)
        if not least <= threshold <= sites:
            where, expected = f"{WHERE}#secure_aggregation#threshold", f"from {least} to {sites} for {sites} sites"
            hint = "null sets the minimum" if sites >= least else "at least two sites: a sum of one hides nothing"
            raise refused(where, str(threshold), expected, hint)


@dataclass(frozen=True)
class Privacy:
    """The privacy settings of a run.

    Args:
        least_images: statistics of fewer images do not leave a site; 1 withholds nothing.
        differential_privacy: noise at the sites; ``None`` adds none.
        central_differential_privacy: noise at the server, instead; ``None`` adds none.
        secure_aggregation: the server learns only the sum of the sites' weights; ``None`` sends them unmasked.
        statistics: rules by kind of image-derived statistic; ``None`` forbids a kind, missing kinds have the defaults.

    Example::

        "privacy": {"least_images": 5, "differential_privacy": null, "secure_aggregation": {"threshold": null}}
    """

    least_images: int = LEAST_IMAGES
    differential_privacy: DifferentialPrivacy | None = None
    central_differential_privacy: CentralPrivacy | None = None
    secure_aggregation: SecureAggregation | None = None
    statistics: Mapping[StatisticKind, StatisticRule | None] = field(default_factory=dict)

    def rule(self, kind: StatisticKind) -> StatisticRule | None:
        """Returns the rule for a statistic that the method in use sends; ``None`` if it may not leave."""
        rule = self.statistics.get(kind, StatisticRule())
        return rule and replace(rule, least_images=max(rule.least_images, self.least_images))

    @classmethod
    def from_json(cls, content: Any) -> Privacy:
        """Reads content of :data:`SCHEMA`; ``None`` and missing settings are the defaults.

        Raises:
            Refused: unknown names, values out of range, settings that exclude each other; all together.
        """
        require(schema_problems({"privacy": content}, SCHEMA, "federate.json"), _conflicts(content))
        given = content or {}
        parts = {name: kind(**given[name]) for name, kind in _PARTS.items() if given.get(name) is not None}
        rules = {
            StatisticKind(kind): None if rule is None else StatisticRule(**rule)
            for kind, rule in (given.get("statistics") or {}).items()
        }
        return cls(given.get("least_images", cls.least_images), **parts, statistics=rules)


@dataclass(frozen=True)
class PrivacyFloor:
    """A site's own minimum for every run; the stricter of it and the run's plan applies.

    Args:
        least_images: see :class:`Privacy`; 1 leaves it to the plan.
        epsilon: see :class:`DifferentialPrivacy`, with a ``delta`` of at most that class's default; ``None`` leaves it
            to the plan.
        statistics: kinds of image-derived statistics that may leave; ``None`` leaves it to the plan.
    """

    least_images: int = 1
    epsilon: float | None = None
    statistics: tuple[StatisticKind, ...] | None = None

    def tighten(self, privacy: Privacy) -> Privacy:
        """Returns the plan's settings, with the site's where these are stricter.

        Raises:
            MessageRefused: the site has an ``epsilon``, but the plan adds no noise.
        """
        least, noise = max(self.least_images, privacy.least_images), privacy.differential_privacy
        if self.epsilon is not None and noise is None:
            expected, hint = "noise, as the site file sets epsilon", "set it in federate.json, or leave this site out"
            raise MessageRefused([Problem(f"{WHERE}#differential_privacy", "none", expected, hint)])
        if self.epsilon is not None and noise is not None:
            noise = replace(noise, epsilon=min(self.epsilon, noise.epsilon or math.inf), delta=min(noise.delta, DELTA))
        statistics = dict(privacy.statistics)
        if self.statistics is not None:
            statistics |= {kind: None for kind in StatisticKind if kind not in self.statistics}
        return replace(privacy, least_images=least, differential_privacy=noise, statistics=statistics)


SCHEMA = read_json(Path(__file__).with_name("rules.schema.json"))
"""JSON Schema of ``privacy`` in ``federate.json``."""
_PARTS: dict[str, Any] = {
    "differential_privacy": DifferentialPrivacy,
    "central_differential_privacy": CentralPrivacy,
    "secure_aggregation": SecureAggregation,
}


def _conflicts(content: Any) -> Iterator[Problem]:
    """Yields settings that exclude each other, and noise of undefined size."""
    content = _mapping(content)
    local, central, secure = (content.get(name) is not None for name in _PARTS)
    if secure and central:
        hint = "the server cannot clip updates that it does not see: use differential_privacy, at the sites"
        yield Problem(WHERE, "secure_aggregation and central_differential_privacy", "only one of them", hint)
    if local and central:
        hint = "set central_differential_privacy to null if the server is not trusted, else differential_privacy"
        yield Problem(WHERE, "noise at the sites and at the server", "only one of them", hint)
    settings = {**asdict(CentralPrivacy()), **_mapping(content.get("central_differential_privacy"))}
    count, noise = _number(settings["count_noise"]), _number(settings["noise_multiplier"])
    if settings["quantile"] is not None and 0 < count <= noise / 2:
        expected = f"more than half of noise_multiplier ({noise / 2:g})"
        hint = "null chooses a value; with less, the quantile alone would use more than the whole epsilon"
        yield Problem(f"{WHERE}#central_differential_privacy#count_noise", f"{count!r}", expected, hint)
    for kind, rule in ((kind, _mapping(given)) for kind, given in _mapping(content.get("statistics")).items()):
        where, noise = f"{WHERE}#statistics#{kind}#noise_multiplier", _number(rule.get("noise_multiplier"))
        if noise > 0 and rule.get("clip") is None:
            expected, hint = "a clip, which sets the scale of the noise", "set clip, or set noise_multiplier to 0"
            yield Problem(where, f"{noise:g} without a clip", expected, hint)
        elif noise > 0 and kind == StatisticKind.PROTOTYPES.value:
            expected = "0, as prototypes are sent with pixel counts, which noise would distort"
            yield Problem(where, f"{noise:g}", expected, "set noise_multiplier to 0")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float:
    """Returns a number, and 0 for anything else."""
    return value if type(value) in (int, float) else 0


def stored_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``federate.json -> privacy`` as ``run.json`` stores it: without newer settings that are off."""
    return {name: value for name, value in content.items() if value is not None or name not in _LATER_SETTINGS}


_LATER_SETTINGS = ("central_differential_privacy", "secure_aggregation", "statistics")


def forbidden_problems(kind: StatisticKind, privacy: Privacy, method: Method | None) -> list[Problem]:
    """Returns why a kind of image-derived statistic may not leave: it is undeclared, or the policy forbids it.

    Args:
        kind: the kind of statistic.
        privacy: the plan's settings; at a site, combined with its own.
        method: see :func:`undeclared_parts`; a method without a declaration declares no statistic.
    """
    if method is not None and kind.value not in (leaves := method.leaves_site or ()):
        expected = f"what {method.name} declares: {', '.join(leaves) or 'nothing'}"
        hint = "add it there if the method should send it, or choose a method that does (samfed variants)"
        return [Problem(method.where or "_method#leaves_site", found=kind.value, expected=expected, hint=hint)]
    if privacy.rule(kind) is None:
        found = f"{kind.description}, which the method sends and the policy forbids"
        hint = "choose a variant that sends none, or allow it in the plan and in `statistics` of the site file"
        return [Problem(f"{WHERE}#statistics#{kind.value}", found, "a method that sends none", hint)]
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
    """Refuses a run that cannot follow its privacy settings; all problems together.

    Args:
        privacy: the run's settings.
        strategy: the run's strategy, with the image-derived statistic that sites send, if any.
        method: the variant's declaration; ``None`` skips its check.
        guard: the run's guard; with secure aggregation it sees only the mean.
        rounds: number of rounds, whose noise must stay within ``epsilon``; ``None`` skips the check.
        sites: number of sites that train, for the threshold of secure aggregation; ``None`` skips the check.

    Raises:
        Refused: a method for a single site; a statistic that the method does not declare or the policy forbids;
            differential privacy with a statistic, with means of loss terms, or with an exchange that it does not
            support; noise without Opacus; secure aggregation with a strategy or a guard that needs each update, or
            without ``cryptography``; a budget or a threshold that cannot be met.
    """
    problems, kind = Problems(), strategy.statistic
    local, central, secure = (getattr(privacy, name) for name in _PARTS)
    if method is not None and method.leaves_site is not None and not method.leaves_site:
        hint = "run its train.json at the site (docs/methods.md), or choose another variant"
        problems.add("variant", repr(method.name), "a federated method: with this one, a site sends nothing", hint)
    if kind is not None:
        problems.extend(forbidden_problems(kind, privacy, method))
    if secure is not None:
        problems.extend(_secure_problems(secure, strategy, guard, sites))
    for noise in filter(None, (central, local)):
        with problems.collected():
            require_budget(noise, rounds or 0)
    if central is not None:
        problems.extend(_central_problems(strategy, guard))
    if local is not None:
        problems.extend(_exchange_problems(strategy))
    rule = privacy.rule(kind) if kind is not None else None
    if local or central or (rule is not None and rule.noise_multiplier):
        with problems.collected():
            accountant()
    problems.refuse_if_any()


def _secure_problems(
    settings: SecureAggregation, strategy: Strategy, guard: UpdateGuard | None, sites: int | None
) -> list[Problem]:
    where, problems = f"{WHERE}#secure_aggregation", Problems()
    if sites is not None:
        with problems.collected():
            settings.require_threshold(sites)
    package = installed("cryptography", "privacy", where, "no such package", "cryptography, for keys")
    return [*problems, *_mean_problems(strategy, where), *_guard_problems(guard, where), *package]


def _central_problems(strategy: Strategy, guard: UpdateGuard | None) -> list[Problem]:
    where, limits = f"{WHERE}#central_differential_privacy", vars(UpdateGuard())
    expected = "no limits of single updates: the noise clips each, and sites count alike"
    changed = [name for name, limit in vars(guard or UpdateGuard()).items() if limit != limits[name]]
    limited = [Problem(where, f"job#update_guard#{name}", expected, "leave it out") for name in changed]
    return [*_mean_problems(strategy, where), *limited]


def _mean_problems(strategy: Strategy, where: str) -> list[Problem]:
    """Returns the problem of a strategy that needs each update, if only the mean of the sites' weights is available."""
    if strategy.exchange.mean and strategy.statistic is None:
        return []
    found = f"{type(strategy).__name__}, which needs each site's reply"
    hint = f"choose a variant that averages, such as samfed, or set {where.rpartition('#')[2]} to null"
    return [Problem(where, found, "a strategy that needs only the mean of the sites' weights, such as FedAvg", hint)]


def _guard_problems(guard: UpdateGuard | None, where: str) -> Iterator[Problem]:
    expected = "no check of single updates, as the server sees only their sum"
    if guard is not None and guard.largest_share is not None:
        hint = "set largest_share or secure_aggregation to null"
        yield Problem(where, "job#update_guard#largest_share", expected, hint)
    if guard is not None and guard.action is Action.SKIP:
        hint = "set it to 'clip', which then shortens the mean's step, or set secure_aggregation to null"
        yield Problem(where, "job#update_guard#action 'skip'", expected, hint)


def _exchange_problems(strategy: Strategy) -> list[Problem]:
    """Returns the problem of an exchange that does not support noise at the sites."""
    exchange, kind = strategy.exchange, strategy.statistic
    if kind is not None and kind is not StatisticKind.PROTOTYPES:
        found, expected = f"weights with noise, but {kind.description} without", "only weights"
        hint = "choose a variant that sends no image statistics"
    elif exchange.reads_term_means:
        found, expected = "weights with noise, but means of loss terms without", "only weights"
        hint = "choose a variant that weights sites by their number of images, such as samfed"
    else:
        differ = exchange.answer is Kind.WEIGHTS and exchange.own_networks
        if exchange.answer in (Kind.WEIGHTS, Kind.SOFT_MASKS) and not differ:
            return []
        found = "weights of networks that differ between sites" if differ else f"an exchange of {exchange.word}"
        expected, hint = "weights of one network, or predictions", "choose a variant that exchanges these"
    return [Problem(f"{WHERE}#differential_privacy", found, expected, f"{hint}, or set differential_privacy to null")]


def notes_on_statistics(privacy: Privacy, strategy: Strategy, name: str) -> list[str]:
    """Returns the notes to print before a run: the image statistics that leave the sites, and unused rules.

    Args:
        privacy: the run's settings.
        strategy: the run's strategy, with the kind of statistic that it sends, if any.
        name: name of the variant.
    """
    notes, kind = [], strategy.statistic
    if kind is not None and (rule := privacy.rule(kind)) is not None:
        text = f"{name}: every site sends {kind.description} of its images, {rule.describe()}"
        notes.append(f"{text} (privacy#statistics#{kind.value}; docs/privacy.md says what they reveal)")
    return [*notes, *map(str, unsent_rules(privacy, strategy, name))]


def unsent_rules(privacy: Privacy, strategy: Strategy, name: str) -> list[Problem]:
    """Returns rules for kinds of statistics that a run does not send; they are no errors and have no effect.

    A ``null`` is not among them: it forbids a kind for any variant.

    Args:
        privacy: the run's settings.
        strategy: the run's strategy, with the kind of statistic that it sends, if any.
        name: name of the variant.
    """
    sent = strategy.statistic
    expected = f"a rule for {sent.value}, which {name} sends" if sent else f"no rule, as {name} sends no statistics"
    found, hint = "a rule for statistics that it does not send", "remove it, or choose a variant that sends them"
    return [
        Problem(f"{WHERE}#statistics#{kind.value}", found=found, expected=expected, hint=hint)
        for kind, rule in privacy.statistics.items()
        if rule is not None and kind is not sent
    ]


def too_few_images(images: int, privacy: Privacy, strategy: Strategy) -> list[Problem]:
    """Returns why a site cannot take part, before round 0: its messages would be refused in every round.

    Args:
        images: number of images that the site trains on.
        privacy: the run's settings.
        strategy: the run's strategy, with the kind of messages that leave a site.
    """
    where, least, kind = "least_images", privacy.least_images, strategy.statistic
    rule = privacy.rule(kind) if kind is not None else None
    if kind is not None and rule is not None and rule.least_images > least:
        where, least = f"statistics#{kind.value}#least_images", rule.least_images
    if images >= least or strategy.exchange.answer is Kind.METRICS:
        return []
    return [too_few_problem("images", f"at least {least} training images (privacy#{where})")]


def too_few_problem(where: str, expected: str) -> Problem:
    """Returns the problem of too few images."""
    return Problem(where, "fewer", expected, "merge with another site, or agree on a lower least_images")


def require_budget(settings: DifferentialPrivacy, rounds: int) -> None:
    """Refuses, before any computation, a run whose rounds would exceed its ``epsilon``.

    Args:
        settings: the noise settings; without an ``epsilon`` there is no limit.
        rounds: number of rounds.

    Raises:
        Refused: the budget is exceeded; the message has a sufficient noise multiplier.
    """
    if settings.epsilon is None:
        return
    sufficient = settings.noise_multiplier
    spent = sufficient_epsilon = epsilon(sufficient, rounds, settings.delta)
    while sufficient_epsilon > settings.epsilon and sufficient < 1e6:
        sufficient *= 1.05
        sufficient_epsilon = epsilon(sufficient, rounds, settings.delta)
    if spent > settings.epsilon:
        part = f"{'central_' if isinstance(settings, CentralPrivacy) else ''}differential_privacy"
        where, expected = f"{WHERE}#{part}#epsilon", f"at most {settings.epsilon:g}"
        hint = f"set noise_multiplier to {sufficient:.3g}, run fewer rounds, or allow a larger epsilon"
        raise refused(where, f"{spent:.3g} after {rounds} rounds", expected, hint)


#: The unit of privacy, as worded in ``results.json`` and in the report.
UNIT = "all training images of one site, replaced by as many others"


def privacy_account(
    privacy: Privacy,
    records: Iterable[Mapping[str, Any]],
    withheld: Mapping[tuple[str, str], str],
    central: Mapping[str, Any] | None = None,
    statistic: StatisticKind | None = None,
) -> dict[str, Any]:
    """Returns ``results.json -> privacy``.

    Args:
        privacy: the run's settings.
        records: ``round.json`` of every round. A site's ``releases`` is its own count, including restarts; if it does
            not rise, the count was restarted, and the earlier count is added. A skipped round after the last count may
            have had an update that was lost, and counts as one more.
        withheld: by (site, split), the reason why a site sent no scores of the best or the last model.
        central: the account of noise at the server (:meth:`CentralNoise.account`); ``None`` without.
        statistic: the image-derived statistic that sites sent; ``None`` for none.
    """
    totals, reported, earlier, unreported = (Counter[str]() for _ in range(4))
    for record in records:
        for site, entry in record["sites"].items():
            count = int(entry.get("releases") or 0)
            if 0 < count <= reported[site]:
                earlier[site] = totals[site] + unreported[site]
            # skipped rounds since then, whose updates may have been sent
            unreported[site] = 0 if count else unreported[site] + (entry.get("status") == "skipped")
            reported[site] = count or reported[site]
            totals[site] = earlier[site] + reported[site]
    releases = {site: count + unreported[site] if any(totals.values()) else 0 for site, count in sorted(totals.items())}

    def account_of(noise_multiplier: float, delta: float) -> dict[str, Any]:
        epsilons = {site: epsilon(noise_multiplier, count, delta) for site, count in releases.items()}
        return {"delta": delta, "releases": releases, "epsilon": epsilons}

    noise, secure = privacy.differential_privacy, privacy.secure_aggregation
    account: dict[str, Any] = {
        "least_images": privacy.least_images,
        "withheld": [
            {"site": site, "split": split, "reason": withheld[site, split]} for site, split in sorted(withheld)
        ],
        "differential_privacy": None,
        "central_differential_privacy": dict(central) if central is not None else None,
        "secure_aggregation": asdict(secure) if secure is not None else None,
    }
    if statistic is not None and (rule := privacy.rule(statistic)) is not None:
        none = dict.fromkeys(("delta", "releases", "epsilon"))
        known = account_of(rule.noise_multiplier, DELTA) if rule.noise_multiplier else none
        account["statistics"] = {"kind": statistic.value, **asdict(rule), **known}
    if noise is not None:
        known = account_of(noise.noise_multiplier, noise.delta)
        one = epsilon(noise.noise_multiplier, 1, noise.delta)
        spent = {"epsilon_per_round": one, "epsilon_total": max(known["epsilon"].values(), default=0.0)}
        account["differential_privacy"] = {"unit": UNIT, **asdict(noise), **spent, **known}
    return account
