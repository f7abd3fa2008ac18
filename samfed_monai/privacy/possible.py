"""Checks, before anything is computed, that a run's strategy can keep its privacy settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.privacy.allowed import forbidden_problems
from samfed_monai.privacy.central import require_budget
from samfed_monai.privacy.secure_sum import require_cryptography
from samfed_monai.privacy.settings import WHERE, Privacy, require_accountant
from samfed_monai.protocol.guard import Action, UpdateGuard
from samfed_monai.protocol.message import Kind
from samfed_monai.protocol.statistics import StatisticKind

if TYPE_CHECKING:
    from samfed_monai.config.variants import Method
    from samfed_monai.protocol.strategy import Strategy


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
        rounds: of the run, whose noise at the server has to stay within its ``epsilon``; ``None`` is not asked.
        sites: that train, of which a sum under masks needs its threshold; ``None`` is not asked.

    Raises:
        Refused: a method of one site alone; a statistic that the method does not declare or the policy forbids;
            differential privacy with one, with means of loss terms, or with an exchange that it is not made for; noise
            without Opacus; secure aggregation with a strategy or a guard that has to see each answer, or without
            ``cryptography``; a budget or a threshold that cannot be met.
    """
    problems = Problems()
    if method is not None and method.leaves_site is not None and not method.leaves_site:
        hint = "run its train.json at that site (docs/methods.md), or choose another variant"
        expected = "a method of a federation; of this one nothing leaves a site"
        problems.add("variant", found=repr(method.name), expected=expected, hint=hint)
    if rounds is not None:
        with problems.collected():
            require_budget(privacy.central_differential_privacy, rounds)
    if sites is not None and privacy.secure_aggregation is not None:
        with problems.collected():
            privacy.secure_aggregation.require_threshold(sites)
    with problems.collected():
        _require_kept(privacy, strategy, method, guard)
    problems.refuse_if_any()


def _require_kept(privacy: Privacy, strategy: Strategy, method: Method | None, guard: UpdateGuard | None) -> None:
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
        hint = "choose a variant that sends no statistic of images, or differential_privacy: null"
        raise Refused([Problem(f"{WHERE} -> differential_privacy", found=found, expected=expected, hint=hint)])
    exchange = strategy.exchange
    if exchange.means_of_terms:
        found, expected = "weights with noise, and means of loss terms beside them", "weights alone"
        hint = "choose a variant that weighs sites by their images, such as samfed, or differential_privacy: null"
        raise Refused([Problem(f"{WHERE} -> differential_privacy", found=found, expected=expected, hint=hint)])
    unlike = exchange.answer is Kind.WEIGHTS and exchange.own_networks
    if exchange.answer not in (Kind.WEIGHTS, Kind.SOFT_MASKS) or unlike:
        found = "weights of networks that sites keep" if unlike else f"an exchange of {exchange.word}"
        expected = "weights of one network, or predictions"
        hint = "choose a variant that exchanges those, or differential_privacy: null"
        raise Refused([Problem(f"{WHERE} -> differential_privacy", found=found, expected=expected, hint=hint)])
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
    hint = f"choose a variant that averages, such as samfed, or {where.rpartition(' ')[2]}: null"
    raise Refused([Problem(where, found=found, expected=expected, hint=hint)])


def _require_blind(guard: UpdateGuard | None, where: str) -> None:
    problems = Problems()
    expected = "nothing that looks at each update, as the server sees their sum alone"
    if guard is not None and guard.largest_share is not None:
        hint = "largest_share: null, or secure_aggregation: null"
        problems.add(where, found="job#update_guard#largest_share", expected=expected, hint=hint)
    if guard is not None and guard.action is Action.SKIP:
        hint = "'clip', which then shortens the step of the mean, or secure_aggregation: null"
        problems.add(where, found="job#update_guard#action 'skip'", expected=expected, hint=hint)
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
    text = f"{name}: every site sends {kind.words} of its images, {rule.in_words()}"
    return f"{text} (privacy -> statistics -> {kind.value}; docs/privacy.md says what that reveals of them)"


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
        Problem(f"{WHERE} -> statistics -> {kind.value}", found=found, expected=expected, hint=hint)
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
        where, least = f"statistics -> {kind.value} -> least_images", rule.least_images
    if images >= least or strategy.exchange.answer is Kind.METRICS:
        return []
    expected = f"at least {least} images to train on, as privacy -> {where} says"
    hint = "join with another site, or agree on another least_images"
    return [Problem("images", found="fewer", expected=expected, hint=hint)]
