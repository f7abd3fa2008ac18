"""``federate.json -> privacy``: read, checked, and described in ``results.json``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from samfed_monai.core.errors import Problem, Problems, Refused, did_you_mean
from samfed_monai.data.datalist import LEAST_IMAGES
from samfed_monai.protocol.message import Kind, Message, MessageRefused
from samfed_monai.protocol.statistics import StatisticKind, StatisticRule, read_rules

#: Renyi orders that are tried; Opacus' own begin at 1.1 and end at 63, too few for strong and for weak noise.
_ORDERS = (*(1 + x / 100 for x in range(1, 100)), *(1 + x / 10 for x in range(10, 100)), *range(12, 64), 128, 256, 512)


def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Epsilon of ``releases`` releases with the same noise: :func:`epsilon_of`.

    Args:
        noise_multiplier: standard deviation over sensitivity.
        releases: how many; 0 gives 0.
        delta: in (0, 1).
    """
    return epsilon_of({noise_multiplier: releases}, delta)


def epsilon_of(releases: Mapping[float, int], delta: float) -> float:
    """Epsilon of adaptive releases with Gaussian noise, without subsampling.

    Renyi differential privacy (Mironov, CSF 2017): an upper bound, here some 10 % above the exact value of Gaussian
    composition (Balle and Wang, ICML 2018), which the tests compare it with.

    Args:
        releases: noise multiplier (standard deviation over sensitivity) to how many were made with it; none give 0.
        delta: in (0, 1).

    Raises:
        Refused: Opacus is not installed.
    """
    return _epsilon(tuple(sorted((noise, count) for noise, count in releases.items() if count)), delta)


@lru_cache(maxsize=1024)
def _epsilon(releases: tuple[tuple[float, int], ...], delta: float) -> float:
    if not releases:
        return 0.0
    rdp = _analysis()
    spent = sum(
        rdp.compute_rdp(q=1.0, noise_multiplier=noise, steps=count, orders=_ORDERS) for noise, count in releases
    )
    with warnings.catch_warnings():  # "optimal order is the largest alpha": a bound all the same
        warnings.simplefilter("ignore")
        value, _ = rdp.get_privacy_spent(orders=_ORDERS, rdp=spent, delta=delta)
    return float(value)


def require_accountant() -> None:
    """Refuses a run with noise that nobody could account for."""
    _analysis()


def _analysis() -> Any:
    try:
        with warnings.catch_warnings():  # of Opacus about torch
            warnings.simplefilter("ignore")
            from opacus.accountants.analysis import rdp
    except ImportError:
        where, hint = "federate.json -> privacy -> differential_privacy", "pip install 'samfed-monai[privacy]'"
        raise Refused([Problem(where, found="no Opacus", expected="its accountant", hint=hint)]) from None
    return rdp


#: Numbers that say how long a site worked, not what it saw.
EFFORT = frozenset({"seconds", "iterations", "releases"})
#: Word of an answer whose statistics were withheld; its value is the number of images that they would have needed.
WITHHELD = "withheld"


def withhold_small(message: Message, least_images: int) -> Message:
    """``message`` without what fewer than ``least_images`` images say.

    Of many images, counts of empty masks that are above 0 and below ``least_images`` stay (three images without a
    lesion are three images), and HD95 where the counts that go leave fewer images than that. Of several classes, the
    scores of one that fewer images hold stay, and how many hold it where fewer do not.
    Scores go, and the count with them; the word ``withheld`` says so, unless there are no images at all. Tensors that
    were learned from so few images are such a statistic too, and cannot be left out of themselves.

    Raises:
        MessageRefused: tensors of fewer than ``least_images`` images.
    """
    if message.n >= least_images:
        return _without_few(message, least_images)
    if message.tensors:
        found, expected = "fewer", f"tensors of at least {least_images} images"
        hint = "join with another site, or agree on another least_images"
        raise MessageRefused([Problem("message -> n", found=found, expected=expected, hint=hint)])
    statistics = message.metrics.keys() - EFFORT
    if message.kind != Kind.METRICS or not (message.n or statistics):
        return message
    return without_scores(message, str(least_images))


def without_scores(message: Message, word: str) -> Message:
    """``message`` without scores and their count; ``withheld`` says ``word``, unless there are no images at all."""
    kept = {name: value for name, value in message.metrics.items() if name in EFFORT}
    withheld = {WITHHELD: word} if message.n else {}
    return replace(message, n=0, metrics=kept, extra={**message.extra, **withheld})


def _without_few(message: Message, least_images: int) -> Message:
    counts = {name: value for name, value in message.metrics.items() if name.startswith("empty_")}
    few = {name for name, value in counts.items() if 0 < value < least_images}
    shown = sum(value for name, value in counts.items() if name not in few)
    if shown and 0 < message.n - shown < least_images:
        few.add("hd95")
    for name, value in message.metrics.items():
        if name.startswith("images_class_"):
            number = name.removeprefix("images_class_")
            if 0 < value < least_images:
                few |= {f"{score}_class_{number}" for score in ("dice", "iou", "hd95", "images")}
            elif 0 < message.n - value < least_images:
                few.add(name)
    if not few & message.metrics.keys():
        return message
    return replace(message, metrics={name: value for name, value in message.metrics.items() if name not in few})


def withheld_reason(message: Message) -> str | None:
    """Why an answer holds no statistics: ``withheld: fewer than 5 images``, ``no images``; ``None`` where it does."""
    least = message.extra.get(WITHHELD)
    if least == OWN_NETWORK:
        return "withheld: of what the site keeps, to which no noise is added"
    if least is not None:
        return f"withheld: fewer than {least} images"
    return None if message.n or message.metrics.keys() - EFFORT else NO_IMAGES


OWN_NETWORK = "0"
"""With differential privacy, the word ``withheld`` of scores of a network that stays at its site, or in part."""

NO_IMAGES = "no images"
"""Why a site without masks has no scores."""


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
    delta: float = 1e-5
    epsilon: float | None = None


@dataclass(frozen=True)
class CentralPrivacy:
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

    clip: float = 1.0
    noise_multiplier: float = 1.0
    delta: float = 1e-5
    epsilon: float | None = None
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
            where, expected = (
                f"{WHERE} -> secure_aggregation -> threshold",
                f"from {least} to {sites}, of {sites} sites",
            )
            hint = "null takes the least" if sites >= least else "at least two sites; alone none is hidden in a sum"
            raise Refused([Problem(where, found=str(threshold), expected=expected, hint=hint)])


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
    def from_json(cls, content: Any, *, where: str = WHERE) -> Privacy:
        """Reads an object of the names above; ``None`` and what is left out are the defaults.

        Raises:
            Refused: an unknown name or a value out of its range; all of them are listed.
        """
        problems = Problems()
        given = _object(content, cls, where, problems)
        least = given.get("least_images", cls.least_images)
        problems.unless(type(least) is int and least >= 1, f"{where} -> least_images", least, "a whole number >= 1")
        parts: dict[str, Any] = {}
        for name, kind in _PARTS.items():
            if given.get(name) is not None:
                parts[name] = _part(given[name], kind, f"{where} -> {name}", problems)
        if given.get("secure_aggregation") is not None:
            parts["secure_aggregation"] = _secure(
                given["secure_aggregation"], problems, f"{where} -> secure_aggregation"
            )
            if "central_differential_privacy" in parts:
                found, expected = "secure_aggregation and central_differential_privacy", "one of the two"
                hint = "the server cannot clip what it does not see: take differential_privacy, at the sites"
                problems.add(where, found=found, expected=expected, hint=hint)
        if _PARTS.keys() <= parts.keys():
            found, expected = "noise at the sites and at the server", "one of the two"
            hint = "leave central_differential_privacy null where the server is not trusted, else differential_privacy"
            problems.add(where, found=found, expected=expected, hint=hint)
        statistics = read_rules(given.get("statistics"), f"{where} -> statistics", problems)
        problems.refuse_if_any()
        return cls(least, **parts, statistics=statistics)

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        rules = {kind.value: rule and asdict(rule) for kind, rule in self.statistics.items()}
        content = {**asdict(replace(self, statistics={})), "statistics": rules}
        return content if rules else {name: value for name, value in content.items() if name != "statistics"}


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
            where = f"{WHERE} -> differential_privacy"
            raise MessageRefused([Problem(where, found="none", expected=expected, hint=hint)])
        if self.epsilon is not None and noise is not None:
            epsilon = min(self.epsilon, noise.epsilon or math.inf)
            noise = replace(noise, epsilon=epsilon, delta=min(noise.delta, DifferentialPrivacy.delta))
        statistics = dict(privacy.statistics)
        if self.statistics is not None:
            statistics |= {kind: None for kind in StatisticKind if kind not in self.statistics}
        return replace(privacy, least_images=least, differential_privacy=noise, statistics=statistics)


def _secure(content: Any, problems: Problems, where: str) -> SecureAggregation:
    given = _object(content, SecureAggregation, where, problems)
    threshold, bits = given.get("threshold"), given.get("fraction_bits", SecureAggregation.fraction_bits)
    if threshold is not None and (type(threshold) is not int or threshold < 2):
        problems.add(f"{where} -> threshold", found=repr(threshold), expected="a whole number >= 2, or null")
        threshold = None
    if type(bits) is not int or not 8 <= bits <= 40:
        problems.add(f"{where} -> fraction_bits", found=repr(bits), expected="a whole number from 8 to 40")
        bits = SecureAggregation.fraction_bits
    return SecureAggregation(threshold, bits)


_PARTS: dict[str, type] = {
    "differential_privacy": DifferentialPrivacy,
    "central_differential_privacy": CentralPrivacy,
}
_OPTIONAL, _FRACTIONS = ("epsilon", "quantile", "count_noise"), ("delta", "quantile")


def _part(content: Any, kind: type, where: str, problems: Problems) -> Any:
    given = _object(content, kind, where, problems)
    found = {field.name: given.get(field.name, field.default) for field in fields(kind)}
    sound = True
    for name, value in found.items():
        if name in _OPTIONAL and value is None:
            continue
        most = 1.0 if name in _FRACTIONS else math.inf
        if type(value) not in (int, float) or not 0 < value < most:
            expected = "a number between 0 and 1" if name in _FRACTIONS else "a positive number"
            problems.add(f"{where} -> {name}", found=repr(value), expected=expected)
            sound = False
    counted = sound and found.get("quantile") is not None and found["count_noise"] is not None
    if counted and found["count_noise"] <= found["noise_multiplier"] / 2:
        expected = f"more than half of noise_multiplier, {found['noise_multiplier'] / 2:g}"
        hint = "null takes one that fits; less would spend more than the whole epsilon on the quantile alone"
        problems.add(f"{where} -> count_noise", found=repr(found["count_noise"]), expected=expected, hint=hint)
    return kind(**found)


def _object(content: Any, kind: Any, where: str, problems: Problems) -> Mapping[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        problems.add(where, found=type(content).__name__, expected="an object")
        return {}
    known = [field.name for field in fields(kind)]
    for name in content:
        if name not in known:
            expected = f"one of {', '.join(known)}"
            problems.add(where, found=repr(name), expected=expected, hint=did_you_mean(str(name), known))
    return content


def settings_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """``federate.json -> privacy`` as ``run.json`` keeps it: without what came later than a run and is off."""
    return {name: value for name, value in content.items() if value is not None or name not in _LATER}


_LATER = ("central_differential_privacy", "secure_aggregation", "statistics")

#: What the guarantee is about; the words of ``results.json`` and of the report.
UNIT = "all training images of one site, replaced by as many others"


def privacy_account(
    privacy: Privacy,
    records: Iterable[Mapping[str, Any]],
    withheld: Mapping[tuple[str, str], str],
    central: Mapping[str, Any] | None = None,
    statistic: StatisticKind | None = None,
) -> dict[str, Any]:
    """``results.json -> privacy``.

    Args:
        privacy: the run's settings.
        records: ``round.json`` of every round; a site's ``releases`` there is its own count, restarts included. A
            round after its last one may have had an answer that was lost, and counts as one more.
        withheld: (site, split) to the reason why a site sent no scores of the best or the last model.
        central: what noise at the server amounts to (:meth:`CentralNoise.account`); ``None`` without.
        statistic: the image-derived statistic that sites sent; ``None`` is none.
    """
    account: dict[str, Any] = {
        "least_images": privacy.least_images,
        "withheld": [
            {"site": site, "split": split, "reason": reason} for (site, split), reason in sorted(withheld.items())
        ],
        "differential_privacy": None,
        "central_differential_privacy": dict(central) if central is not None else None,
        "secure_aggregation": asdict(privacy.secure_aggregation) if privacy.secure_aggregation is not None else None,
    }
    noise = privacy.differential_privacy
    counted: dict[str, int] = {}
    lost: dict[str, int] = {}  # rounds since then without an answer that counts; it may have been sent
    for record in records:
        for site, entry in record["sites"].items():
            told = int(entry.get("releases") or 0)
            lost[site] = 0 if told else lost.get(site, 0) + (entry.get("status") == "skipped")
            counted[site] = max(counted.get(site, 0), told)
    releases = {site: count + lost[site] if any(counted.values()) else 0 for site, count in counted.items()}
    if statistic is not None and (rule := privacy.rule(statistic)) is not None:
        multiplier, delta = rule.noise_multiplier, DifferentialPrivacy.delta
        account["statistics"] = {
            "kind": statistic.value,
            **asdict(rule),
            "delta": delta if multiplier else None,
            "releases": dict(sorted(releases.items())) if multiplier else None,
            "epsilon": {s: epsilon(multiplier, count, delta) for s, count in sorted(releases.items())}
            if multiplier
            else None,
        }
    if noise is None:
        return account
    spent = {site: epsilon(noise.noise_multiplier, count, noise.delta) for site, count in sorted(releases.items())}
    account["differential_privacy"] = {
        "unit": UNIT,
        "clip": noise.clip,
        "noise_multiplier": noise.noise_multiplier,
        "delta": noise.delta,
        "epsilon_per_round": epsilon(noise.noise_multiplier, 1, noise.delta),
        "releases": dict(sorted(releases.items())),
        "epsilon": spent,
        "epsilon_total": max(spent.values(), default=0.0),
    }
    return account
